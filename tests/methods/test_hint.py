"""HINT and Hypter: what they generate, where it goes, and that it depends on nothing but the instruction."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
import tiny_t5

from zeroprompt_jax import config as configs
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.generated import Adapter, Kind, LoRA, Prefix, Prompt, Tensor
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import describe
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.partitioning import RULES
from zeroprompt_jax.training.step import Loss, forward

CONFIG = tiny_t5.config()
ALL = Hint((Prefix(3), Adapter(5), LoRA(2, ".*attention/.*"), Prompt(2)))
METHODS = {
    "all": ALL,
    "hint": Hint((Prefix(3), Adapter(5))),
    "no_fusion": Hint((Prefix(3), Adapter(5)), fusion=False),
    "no_hypernetwork": Hint(()),
    "separate_encoder": Hint((Adapter(5),), separate_encoder=True),
    "separate_encoder_alone": Hint((), separate_encoder=True),
    "mlp_lora": Hint((LoRA(2, ".*"),)),
    "hypter": Hypter((Adapter(5),)),
    "hypter_all": Hypter(ALL.kinds),
}
EVERY = pytest.mark.parametrize("name", METHODS)
TRUE = pytest.mark.parametrize("name", ["all", "hypter"])
U, B, T, S, I = 2, 6, 7, 6, 8  # instructions, rows, inputs, targets, tokens of an instruction


@functools.cache
def params(method) -> dict:
    """The method's parameters, random and large enough to matter."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] / 1.5)).astype(np.float32)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), Setting(CONFIG)))
    weights = jax.tree.map(draw, {"generator": shapes["generator"]} if method.kinds else {})
    encoder = {name: tiny_t5.params(CONFIG)[name] for name in ("encoder", "token_embedder")}
    return weights | ({"hyperencoder": encoder} if method.separate_encoder else {})


def instructions(number: int = U, width: int = I, seed: int = 0) -> np.ndarray:
    """[number, width], of 6 tokens and fewer."""
    tokens = np.random.default_rng(seed).integers(2, CONFIG.vocab_size, (number, width)).astype(np.int32)
    return np.where(np.arange(width) < 6 - np.arange(number)[:, None] % 4, tokens, 0).astype(np.int32)


def batch(**changes) -> dict[str, np.ndarray]:
    made = small_model.batch(B, T, S, vocab=CONFIG.vocab_size)
    return {**made, "instruction_tokens": instructions(), **changes}


@functools.cache
def _run(method):
    def run(backbone, params, batch):
        bound = t5.Backbone(CONFIG, backbone)
        made = method.condition(params, batch, bound)
        return made, bound(batch["encoder_input_tokens"], batch["decoder_input_tokens"], made).logits

    return tiny_t5.jit(run)


def run(method, batch, weights=None):
    """(conditioning, teacher-forced logits)."""
    return jax.device_get(_run(method)(tiny_t5.params(CONFIG), weights or params(method), batch))


def plain(batch) -> np.ndarray:
    return tiny_t5.logits(CONFIG, batch["encoder_input_tokens"], batch["decoder_input_tokens"])


@EVERY
def test_what_every_configuration_keeps_to(name):
    method, known = METHODS[name], {axis for axis, _ in RULES} | {None}
    setting = Setting(CONFIG, backbone=tiny_t5.params(CONFIG))
    own = states.flatten({"method": jax.eval_shape(lambda: method.init(jax.random.key(0), setting))})
    for path, leaf in own.items():
        axes = method.logical_axes(path.removeprefix("method/"))
        assert leaf.dtype == jnp.float32 and len(axes) == leaf.ndim and set(axes) <= known, path
        assert not method.banked(path)
    for path in ("nothing", "generator/prefix_key/bias", "generator/attention/query/bias", "encoder/encoder_norm/scale"):
        with pytest.raises(KeyError):
            method.logical_axes(path)
    backbone = states.flatten({"backbone": tiny_t5.params(CONFIG)})
    trained, frozen = states.split(backbone | own, method.trainable)
    assert trained.keys() == backbone.keys() | own.keys() and not frozen, "everything trains"
    assert method == dataclasses.replace(method) and hash(method) == hash(dataclasses.replace(method))
    bound = t5.Backbone(CONFIG, tiny_t5.params(CONFIG))
    made = jax.eval_shape(lambda: method.condition(params(method), batch(), bound))
    for path, shape in describe(made):
        assert shape["memory" not in path and "prompt" not in path] == U, path
    assert (made.memory is not None) == method.fusion


def test_a_changed_copy_trains_all_that_it_has():
    every, chosen = ("backbone/.*", "method/.*"), ("method/.*",)
    assert Hint().trainable == dataclasses.replace(Hint(()), kinds=(Adapter(5),)).trainable == every
    assert dataclasses.replace(Hint(), kinds=()).trainable == Hint(()).trainable == every[:1]
    assert dataclasses.replace(Hint(()), separate_encoder=True).trainable == every
    assert dataclasses.replace(Hint(trainable=chosen), fusion=False).trainable == chosen
    assert Hint() == Hint(trainable=every) and hash(Hint()) == hash(Hint(trainable=every))


def test_the_numbers_of_parameters_are_those_of_the_formula():
    base = t5.T5Config(emb_dim=768, num_heads=12, head_dim=64, mlp_dim=2048, num_encoder_layers=12, num_decoder_layers=12)
    configs.load(["models/t5_tiny.gin"])
    try:
        packaged = configs.make("T5Config")
    finally:
        configs.load()
    counts = []
    for c, r, p in ((base, 64, 30), (packaged, 64, 30)):
        E, L, D, HK = c.num_encoder_layers, c.num_decoder_layers, c.emb_dim, c.num_heads * c.head_dim
        rows = (E + L) * (2 * r + 2) + (E + 2 * L) * 2 * p
        mlps = 6 * D * D + D * (3 * D + r + 2 * HK)  # down, up, their biases, keys, values
        method = Hint((Prefix(p), Adapter(r)))
        shapes = jax.eval_shape(lambda c=c, method=method: method.init(jax.random.key(0), Setting(c)))
        counts.append(states.count(states.flatten(shapes)))
        assert counts[-1] == rows * D + 4 * D * HK + mlps
    # The paper's 6,840 rows but for those of adapters in cross-attention, which it generates and does not use.
    assert counts == [12_951_552, 422_912] and counts[0] == 14_149_632 - 12 * 130 * 768


@TRUE
def test_nothing_depends_on_how_far_an_instruction_is_padded(name):
    method, short = METHODS[name], batch()
    far = {**short, "instruction_tokens": np.pad(short["instruction_tokens"], ((0, 0), (0, 5)))}
    (made, logits), (other, same) = run(method, short), run(method, far)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    assert np.abs(logits - plain(short)).max((1, 2)).min() > 1e-2
    if method.fusion:
        np.testing.assert_allclose(other.memory[:, :I], made.memory, atol=1e-5)
    cut = lambda made: jax.tree.leaves(made.replace(memory=None, memory_mask=None))
    for a, b in zip(cut(made), cut(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # An encoder that saw its pads would see further tokens.
    seen = np.where(far["instruction_tokens"] == 0, 3, far["instruction_tokens"])
    shown, moved = run(method, {**far, "instruction_tokens": seen})
    assert np.abs(moved - logits).max() > 1e-2
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(cut(made), cut(shown), strict=True))


def test_fused_pads_have_no_influence():
    made, logits = run(ALL, batch())
    tokens = batch()["encoder_input_tokens"], batch()["decoder_input_tokens"]
    pads = instructions() == 0
    assert np.array_equal(made.memory_mask, ~pads) and pads.any(1).all()
    change = lambda where: made.replace(memory=np.where(where[..., None], 1e3, made.memory).astype(np.float32))
    assert np.array_equal(tiny_t5.logits(CONFIG, *tokens, change(pads)), tiny_t5.logits(CONFIG, *tokens, made))
    assert np.abs(tiny_t5.logits(CONFIG, *tokens, change(~pads)) - logits).max((1, 2)).min() > 1e-2


def test_the_hyperencoder_is_the_encoder_to_the_bit():
    made, _ = run(METHODS["no_hypernetwork"], batch())
    encoded = tiny_t5.jit(lambda p, x: t5.Backbone(CONFIG, p).encode(x).hidden)(tiny_t5.params(CONFIG), instructions())
    assert np.array_equal(made.memory, encoded)


def test_modules_that_are_off_leave_the_plain_model_to_the_bit():
    method = Hint((Adapter(5), LoRA(2)), fusion=False)
    flat = states.flatten(params(method))
    off = {path: np.zeros_like(x) if path.endswith("wo/kernel") else x for path, x in flat.items()}
    made, logits = run(method, batch(), states.unflatten(off))
    assert len(jax.tree.leaves(made)) > 10 and not any(leaf.any() for leaf in jax.tree.leaves(made))
    assert np.array_equal(logits, plain(batch()))
    assert np.abs(run(method, batch())[1] - logits).max((1, 2)).min() > 1e-2


@functools.cache
def _gradient(method):
    def loss(variables, batch):
        return forward(variables, batch, method, CONFIG, Loss(), None)[0].loss

    return tiny_t5.jit(jax.value_and_grad(loss))


def gradient(method, batch):
    """(loss, gradient by path) of backbone and method."""
    loss, grads = _gradient(method)({"backbone": tiny_t5.params(CONFIG), "method": params(method)}, batch)
    return float(loss), {path: np.asarray(leaf) for path, leaf in states.flatten(grads).items()}


@TRUE
def test_every_row_that_is_generated_learns(name):
    _, grads = gradient(METHODS[name], batch())
    for path, leaf in grads.items():
        assert np.abs(leaf).max() > 0, path
        if path.endswith(("/queries", "/heads")):
            assert (np.abs(leaf).max(-1) > 0).all(), f"{path} has dead rows"


@TRUE
def test_grouped_rows_learn_as_rows_with_a_copy_of_their_own(name):
    copies = batch(instruction_tokens=np.repeat(instructions(), B // U, axis=0))
    (loss, grads), (naive, wanted) = gradient(METHODS[name], batch()), gradient(METHODS[name], copies)
    assert loss == pytest.approx(naive, rel=1e-5)
    assert small_model.worst(grads, wanted) <= 1e-5
    swapped, _ = gradient(METHODS[name], batch(instruction_tokens=instructions()[::-1]))
    assert abs(swapped - loss) > 1e-2, "rows read their own instruction"


def test_generating_for_groups_costs_what_their_number_says():
    """A training step of 64 rows: what it costs beyond one instruction's grows with the instructions, not with the rows."""

    def flops(number):
        rows = small_model.batch(64, T, S, vocab=CONFIG.vocab_size)
        variables = {"backbone": tiny_t5.params(CONFIG), "method": params(METHODS["hint"])}
        step = _gradient(METHODS["hint"]).lower(variables, {**rows, "instruction_tokens": instructions(number, 16)})
        return step.cost_analysis()["flops"]

    one, groups, rows = flops(1), flops(8), flops(64)
    assert 0 < groups - one <= 0.35 * (rows - one)


@TRUE
def test_incremental_decoding_gives_the_teacher_forced_logits(name):
    decoder = batch()["decoder_input_tokens"]

    @tiny_t5.jit
    def incremental(backbone, made, tokens):
        bound = t5.Backbone(CONFIG, backbone)
        encoded = bound.encode(tokens, made)
        out, cache = bound.start(decoder[:, :2], encoded, made, S)
        outs = [out]
        for i in range(2, S, 2):
            out, cache = bound.step(decoder[:, i : i + 2], encoded, made, cache)
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    made, logits = run(METHODS[name], batch())
    found = incremental(tiny_t5.params(CONFIG), made, batch()["encoder_input_tokens"])
    np.testing.assert_allclose(found, logits, atol=1e-5)


def rows_of(method, tokens):
    """What the generator makes, before it is put in its places: {tensor: [slots, U, rows, width]}."""

    def make(backbone, weights):
        encoded = t5.Backbone(CONFIG, backbone).encode(tokens)
        return method.generator(CONFIG).apply({"params": weights["generator"]}, encoded.hidden, encoded.mask)

    return jax.device_get(tiny_t5.jit(make)(tiny_t5.params(CONFIG), params(method)))


def test_every_row_is_a_key_a_value_or_one_units_weights():
    made, rows = run(ALL, batch())[0], rows_of(ALL, instructions())
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    keys = rows["prefix_key"].reshape(8, U, 3, CONFIG.num_heads, CONFIG.head_dim)
    for first, stack, sublayer in ((0, "encoder", "self"), (2, "decoder", "self"), (5, "decoder", "cross")):
        place = getattr(getattr(made, stack), f"{sublayer}_attention")
        close(place.prefix.key, keys[first : first + len(place.prefix.key)])
    for first, stack in ((0, made.encoder), (2, made.decoder)):
        part = stack.mlp.adapter
        for unit in range(5):
            close(part.down[..., unit], rows["adapter_down"][first : first + len(part.down), :, unit])
            close(part.up[..., unit, :], rows["adapter_up"][first : first + len(part.up), :, unit])
        close(part.down_bias, rows["adapter_down_bias"][first : first + len(part.down), :, 0])
    close(made.encoder.prompt, rows["prompt_vectors"][0])


def test_lora_equals_changed_kernels():
    method = Hint((LoRA(3, ".*attention/.*"),), fusion=False)
    one = batch(instruction_tokens=instructions(1))
    rows, changed, slots = rows_of(method, one["instruction_tokens"]), jax.tree.map(np.copy, tiny_t5.params(CONFIG)), {}
    names = {"encoder": {"attention": "self"}, "decoder": {"self_attention": "self", "encoder_decoder_attention": "cross"}}
    for stack, sublayers in names.items():
        for sublayer in sublayers:
            for name in ("query", "key", "value", "out"):
                kernel = changed[stack]["layers"][sublayer][name]["kernel"]
                first = slots.get(name, 0)
                a, b = (rows[f"lora_{name}_{factor}"][first : first + len(kernel), 0] for factor in "ab")
                kernel += np.einsum("lri,lro->lio", a, b) / 3
                slots[name] = first + len(kernel)
    wanted = tiny_t5.logits(CONFIG, one["encoder_input_tokens"], one["decoder_input_tokens"], weights=changed)
    found = run(method, one)[1]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(wanted - plain(one)).max((1, 2)).min() > 1e-2


@dataclasses.dataclass(frozen=True)
class Gains(Kind):
    """A kind of these tests: gains of the MLPs' hidden activations, as IA3's."""

    name = "gains"

    def tensors(self, config):
        return {"hidden": Tensor({"encoder/mlp": config.num_encoder_layers}, 1, config.mlp_dim)}

    def build(self, made, config):
        return {place: {"scale": {"hidden": 1 + rows[:, :, 0]}} for place, rows in made["hidden"].items()}


def test_another_kind_needs_nothing_but_itself():
    method = Hint((Adapter(5), Gains()), fusion=False)
    made, logits = run(method, batch())
    assert made.encoder.mlp.scale["hidden"].shape == (2, U, CONFIG.mlp_dim) and made.encoder.mlp.adapter is not None
    _, grads = gradient(method, batch())
    assert (np.abs(grads["method/generator/gains_hidden/queries"]).max(-1) > 0).all()
    assert np.abs(logits - run(Hint((Adapter(5),), fusion=False), batch())[1]).max() > 1e-3


def test_dropout_is_the_configs():
    def made(rate, seed):
        config = dataclasses.replace(CONFIG, dropout_rate=rate)
        rngs = None if seed is None else {"dropout": jax.random.key(seed)}
        encoded = jnp.ones((U, 3, CONFIG.emb_dim)), jnp.ones((U, 3), bool)
        weights = ({"params": params(method)["generator"]} for method in both)
        return [method.generator(config).apply(w, *encoded, rngs=rngs) for method, w in zip(both, weights)]

    both = Hint((Prefix(2),)), Hypter((Prefix(2),))
    same = lambda a, b: [bool((x["prefix_key"] == y["prefix_key"]).all()) for x, y in zip(a, b)]
    assert same(made(0.0, 1), made(0.5, None)) == [True, True]
    assert same(made(0.5, 1), made(0.5, None)) == same(made(0.5, 1), made(0.5, 2)) == [False, False]


def test_input_and_instruction_draw_different_dropout():
    config = dataclasses.replace(CONFIG, dropout_rate=0.5)
    backbone = t5.Backbone(config, tiny_t5.params(CONFIG), {"dropout": jax.random.key(0)})
    encode = tiny_t5.jit(lambda tokens: (Hint(()).encode({}, tokens, backbone).hidden, backbone.encode(tokens).hidden))
    assert not np.array_equal(*encode(instructions()))


def test_a_separate_encoder_starts_as_the_backbones_and_is_read_in_its_place():
    shared, apart = METHODS["no_hypernetwork"], METHODS["separate_encoder_alone"]
    weights = apart.init(jax.random.key(0), Setting(CONFIG, backbone=tiny_t5.params(CONFIG)))
    assert np.array_equal(run(apart, batch(), weights)[0].memory, run(shared, batch())[0].memory)
    other = jax.tree.map(lambda leaf: 1.1 * leaf, weights)
    assert not np.allclose(run(apart, batch(), other)[0].memory, run(shared, batch())[0].memory, atol=1e-3)


def test_fresh_modules_are_small():
    """Of standard deviation 0.1 to 1 over sqrt(D), so that the backbone is hardly changed at first."""
    config = tiny_t5.config(emb_dim=64, num_heads=4, head_dim=16)
    for method in (Hint((Prefix(3), Adapter(5))), Hypter((Adapter(5),))):
        generator = method.generator(config)
        encoded = jax.random.normal(jax.random.key(1), (U, 6, 64)), jnp.ones((U, 6), bool)
        made, weights = tiny_t5.jit(lambda g=generator, e=encoded: g.init_with_output(jax.random.key(0), *e))()
        for name, leaf in made.items():
            assert 0.1 < float(leaf.std()) * 8 < 1, name
        if isinstance(method, Hint):
            assert float(weights["params"]["prefix_key"]["queries"].std()) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Hint((), fusion=False), "Hint without kinds and without fusion reads no instruction"),
        (lambda: Hypter(()), "Hypter without kinds and without fusion"),
        (lambda: Hint((Prefix(2), Prefix(3))), "Hint.kinds has more than one 'prefix'"),
        (lambda: Hint(("prefix",)), "Hint.kinds holds 'prefix'; it takes kinds of modules: @generated.Prefix()"),
        (lambda: Prefix(0), "generated.Prefix.length is 0; it must be at least 1"),
        (lambda: Prompt(0), "generated.Prompt.length is 0"),
        (lambda: Adapter(0), "generated.Adapter.rank is 0"),
        (lambda: LoRA(0), "generated.LoRA.rank is 0"),
        (lambda: LoRA(2, ()), "generated.LoRA.targets is empty"),
        (lambda: params(Hint((LoRA(2, "encoder/cross_attention.*"),))), "generated.LoRA.targets: 'encoder/cross_attention"),
        (lambda: ALL.condition({}, {}, None), "The method Hint reads instruction_tokens; set the feature length"),
    ],
)
def test_what_cannot_run_is_refused(make, message):
    with pytest.raises(UserError) as e:
        make()
    assert message in str(e.value)


def test_every_kind_can_be_configured():
    listed = {configs._resolve(name) for name in configs.CONFIGURABLES if name.startswith("generated.")}
    assert listed == {kind for kind in Kind.__subclasses__() if kind.__module__ == generated.__name__}
    assert listed == set(map(type, ALL.kinds))


FILES = {
    "hint": Hint(),
    "hint_no_fusion": Hint(fusion=False),
    "hint_no_hypernetwork": Hint(()),
    "hint_prefix": Hint((Prefix(),)),
    "hint_adapter": Hint((Adapter(),)),
    "hint_lora": Hint((LoRA(128),)),
    "hint_separate_encoder": Hint(separate_encoder=True),
    "hypter": Hypter(),
}


@pytest.mark.parametrize("name", FILES)
def test_config_files(name):
    file = f"methods/{name}.gin"
    try:
        configs.load(["experiments/quickstart.gin", file])
        assert configs.make("Experiment").method == FILES[name]
        if name in ("hint", "hypter"):
            configs.load(["experiments/quickstart.gin", file], ["ADAPTER_RANK = 3"])
            assert Adapter(3) in configs.make("Experiment").method.kinds
    finally:
        configs.load()
