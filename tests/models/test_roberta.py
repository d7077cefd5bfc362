"""The RoBERTa and BERT encoder: equal to the published model, row by row, and conditioned as the T5 is."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_roberta
import tiny_roberta
import tiny_t5
from tiny_t5 import TOLERANCE

from zeroprompt_jax import config as configs
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.backbone import logical_axes, stack_layers, unstack_layers
from zeroprompt_jax.models.conditioning import Conditioning, Prefix, Stack, Sublayer
from zeroprompt_jax.training.partitioning import RULES

CONFIG = tiny_roberta.config()
BERT = tiny_roberta.config(**tiny_roberta.BERT)
D, H, K = CONFIG.emb_dim, CONFIG.num_heads, CONFIG.head_dim
TOKENS = tiny_roberta.tokens(CONFIG)
VALID = TOKENS != CONFIG.pad_id
EVERYTHING = tiny_roberta.everything(CONFIG, groups=4)
KINDS = tiny_t5.kinds(EVERYTHING)
same = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)


def outputs(conditioning=Conditioning(), tokens=TOKENS, **kwargs):
    return tiny_roberta.outputs(CONFIG, tokens, conditioning, **kwargs)


def heads(found: roberta.Output, skip: int = 0, valid=VALID) -> list[np.ndarray]:
    """What a user sees: states of the valid tokens behind `skip` positions, and what the heads make of them."""
    return [found.encoded.hidden[:, skip:][valid], found.logits[valid], found.pooled, found.class_logits]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        same(a, b)


def embedded(tokens):
    return tiny_roberta.params(CONFIG)["token_embedder"]["embedding"][tokens]


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("variant", [{}, tiny_roberta.BERT], ids=["roberta", "bert"])
def test_empty_conditioning_is_the_published_model(variant, scan):
    config = tiny_roberta.config(**variant, scan_layers=scan)
    tokens = tiny_roberta.tokens(config)
    types = np.cumsum(tokens % 7 == 0, axis=1, dtype=np.int32) % config.num_token_types
    found = tiny_roberta.outputs(config, tokens, token_types=types)
    flat = tiny_roberta.params(dataclasses.replace(config, scan_layers=False))
    for row in range(len(tokens)):
        n = np.count_nonzero(tokens[row] != config.pad_id)
        given = tokens[row, :n], types[row, :n], config.num_heads, config.position_offset, config.norm_epsilon
        states, logits, pooled, class_logits = reference_roberta.outputs(flat, *given)
        same(found.encoder_hidden[:, row, :n], states)
        same(found.encoded.hidden[row, :n], states[-1])
        same(found.logits[row, :n], logits)
        same(found.pooled[row], pooled)
        same(found.class_logits[row], class_logits)
        assert np.abs(logits).max() > 1 and found.encoded.mask[row].sum() == n
    if config.num_token_types > 1:
        assert np.abs(tiny_roberta.outputs(config, tokens).logits - found.logits).max() > 0.1


@pytest.mark.parametrize("conditioned", [False, True], ids=["plain", "conditioned"])
def test_a_row_depends_on_that_row_alone(conditioned):
    own = EVERYTHING if conditioned else Conditioning()
    P = own.encoder.prompt_length
    want = heads(outputs(own), P)

    order = np.array([2, 0, 3, 1])
    turned = outputs(tiny_t5.take(own, order), TOKENS[order])
    back = jax.tree.map(lambda x: x[np.argsort(order)], turned.replace(encoder_hidden=None))
    assert_same(heads(back, P), want)

    others = tiny_roberta.tokens(CONFIG, seed=1)
    mixed = outputs(own, np.concatenate([TOKENS[:2], others[2:]]))
    alone = outputs(own)
    same(mixed.encoded.hidden[:2], alone.encoded.hidden[:2])
    assert np.abs(mixed.encoded.hidden[2:] - alone.encoded.hidden[2:]).max() > 0.1

    padded = outputs(own, np.pad(TOKENS, [(0, 0), (0, 3)], constant_values=CONFIG.pad_id))
    assert_same(heads(padded, P, np.pad(VALID, [(0, 0), (0, 3)])), want)


@pytest.mark.parametrize("config", [CONFIG, BERT], ids=["roberta", "bert"])
def test_padding_may_stand_anywhere(config):
    """Valid tokens are counted, so their positions do not move."""
    tokens = tiny_roberta.tokens(config)
    valid = tokens != config.pad_id
    left = np.full_like(tokens, config.pad_id)
    for row, n in enumerate(valid.sum(1)):
        left[row, len(left[row]) - n :] = tokens[row, :n]
    found, want = (tiny_roberta.outputs(config, rows) for rows in (left, tokens))
    same(found.logits[left != config.pad_id], want.logits[valid])
    turned = tiny_roberta.outputs(config, np.roll(tokens, 1, axis=1))
    assert np.abs(turned.logits[0, 1:] - want.logits[0, :-1]).max() > 0.1  # while order does count


def test_every_kind_of_an_encoder_is_covered():
    kinds = [f"encoder.{name}" for name in ("prompt", "slots", "layer_prompt")]
    kinds += [f"encoder.self_attention.{name}" for name in ("prefix", "adapter", "lora", "scale", "bias")]
    kinds += [f"encoder.mlp.{name}" for name in ("adapter", "lora", "scale", "bias")]
    assert sorted(KINDS) == sorted(kinds)


def test_switched_off_by_value_everything_is_the_plain_model():
    off = tiny_t5.only(EVERYTHING)
    assert_same(heads(outputs(off), off.encoder.prompt_length), heads(outputs()))


def test_zeros_ones_and_unplaced_slots_are_the_plain_model_bit_for_bit():
    """What adds no position. Compiled without fusions, which sum a norm in another order when zeros are added to it."""
    config = tiny_roberta.config(num_encoder_layers=1, scan_layers=False)
    off = tiny_t5.only(tiny_roberta.everything(config, groups=4)).encoder
    bare = Stack(slots=off.slots, slot_positions=off.slot_positions, mlp=off.mlp)
    bare = Conditioning(bare.replace(self_attention=off.self_attention.replace(prefix=None)))
    assert len(tiny_t5.kinds(bare)) == len(KINDS) - 3
    options = tiny_t5.fast_options() | {"xla_disable_hlo_passes": "fusion"}

    def hidden(given):
        encode = lambda params, given: roberta.Backbone(config, params).encode(TOKENS, given).hidden
        return jax.jit(encode, compiler_options=options)(tiny_roberta.params(config), given)

    np.testing.assert_array_equal(hidden(bare), hidden(Conditioning()))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_changes_its_own_row(kind):
    off, alone = tiny_t5.only(EVERYTHING), tiny_t5.only(EVERYTHING, kind)
    changed = np.abs(outputs(alone).logits - outputs(off).logits)
    assert (changed.max((1, 2)) > 1e-3).all()
    one = jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.concatenate(
            [np.take(x, rows, tiny_t5.row_axis(path)) for x, rows in ((a, [0]), (b, [1, 2, 3]))], tiny_t5.row_axis(path)
        ),
        alone,
        off,
    )
    same(outputs(one).logits[1:], outputs(off).logits[1:])
    same(outputs(one).logits[:1], outputs(alone).logits[:1])


def test_slots_of_token_embeddings_are_those_tokens():
    """A row of a table in place of a token: positions and token types stay."""
    table = embedded(np.array([[20, 21, 3]]))
    written = TOKENS.copy()
    written[:, [2, 0]] = 20, 21
    shared = Stack(slots=table, slot_positions=np.array([[2, 0, -1]], np.int32))
    assert_same(heads(outputs(Conditioning(shared))), heads(outputs(tokens=written)))
    identity = Stack(slots=embedded(TOKENS[:, :3]), slot_positions=np.arange(3, dtype=np.int32)[None])
    assert_same(heads(outputs(Conditioning(identity))), heads(outputs()))

    # One table, read at another place in every row; what stands under a slot is not read.
    places = np.array([[2, 0, -1], [1, 3, -1], [0, 1, 2], [-1, -1, -1]], np.int32)
    own, strange, written = shared.replace(slot_positions=places), TOKENS.copy(), TOKENS.copy()
    for row, at in enumerate(places):
        for token, place in zip((20, 21, 3), at):
            if place >= 0:
                written[row, place], strange[row, place] = token, 7
    want = heads(outputs(tokens=written))
    assert_same(heads(outputs(Conditioning(own))), want)
    assert_same(heads(outputs(Conditioning(own), strange)), want)
    assert np.abs(outputs(tokens=written).logits - outputs().logits).max((1, 2))[:3].min() > 0.01

    types = np.arange(9, dtype=np.int32)[None].repeat(4, 0) % 2
    tokens, table = tiny_roberta.tokens(BERT), tiny_roberta.params(BERT)["token_embedder"]["embedding"]
    given = Conditioning(Stack(slots=table[None, [20, 21]], slot_positions=np.array([[3, 1]], np.int32)))
    written = tokens.copy()
    written[:, [3, 1]] = 20, 21
    found = tiny_roberta.outputs(BERT, tokens, given, types)
    same(found.logits, tiny_roberta.outputs(BERT, written, token_types=types).logits)


def test_a_prompt_of_token_embeddings_is_those_tokens():
    prompt = np.array([[7, 8, 9]] * 2 + [[10, 11, 12]] * 2)
    written = np.concatenate([prompt, TOKENS], axis=1)
    groups, want = embedded(prompt[[0, 2]]), outputs(tokens=written)
    found = outputs(Conditioning(Stack(prompt=groups)))
    same(found.encoded.hidden[found.encoded.mask], want.encoded.hidden[written != CONFIG.pad_id])
    same(found.logits[VALID], want.logits[:, 3:][VALID])  # heads read the tokens; the first of them is the pooled one
    p = tiny_roberta.params(CONFIG)["pooled_head"]["dense"]
    same(found.pooled, np.tanh(want.encoded.hidden[:, 3] @ p["kernel"] + p["bias"]))
    # With its last position masked, the prompt is the two tokens, and the input stands right behind them.
    masked = Conditioning(Stack(prompt=groups, prompt_mask=np.array([[True, True, False]])))
    shorter = outputs(Conditioning(Stack(prompt=groups[:, :2])))
    assert_same(heads(outputs(masked), 3), heads(shorter, 2))


def merged():
    """Conditioning of LoRA, scales and biases alone, shared by all rows, and parameters that have all three in them."""
    one = tiny_t5.take(EVERYTHING, [0]).encoder
    given = {"self_attention": one.self_attention, "mlp": one.mlp}
    kept = {name: Sublayer(lora=sub.lora, scale=sub.scale, bias=sub.bias) for name, sub in given.items()}
    params = jax.tree.map(np.copy, tiny_roberta.params(CONFIG))
    for module, given in {"attention": kept["self_attention"], "mlp": kept["mlp"]}.items():
        for name, leaf in params["encoder"]["layers"][module].items():
            product = given.lora[name].a[:, 0] @ given.lora[name].b[:, 0]
            leaf["kernel"] = (leaf["kernel"] + product) * given.scale[name][:, 0, None]
            leaf["bias"] = leaf["bias"] * given.scale[name][:, 0] + given.bias[name][:, 0]
            if name == "wo":
                hidden = given.scale["hidden"][:, 0, :, None]
                # LoRA reads the rescaled hidden activations too, so both products are rescaled.
                leaf["kernel"] = leaf["kernel"] * hidden
    return params, Conditioning(Stack(**kept))


def test_lora_scales_and_biases_equal_changed_kernels_and_biases():
    params, conditioning = merged()
    found = heads(outputs(conditioning))
    assert_same(found, heads(outputs(weights=params)))
    assert np.abs(found[-1] - outputs().class_logits).max() > 0.1


def test_a_prefix_is_more_keys_and_values():
    """Without positions and with one layer, two tokens before a row are to its others their keys and values alone."""
    config = tiny_roberta.config(num_encoder_layers=1)
    params = tiny_roberta.params(config)
    params = params | {"position_embedder": jax.tree.map(np.zeros_like, params["position_embedder"])}
    want = tiny_roberta.outputs(config, np.pad(TOKENS, [(0, 0), (2, 0)], constant_values=7), weights=params)
    first = want.encoder_hidden[0, :1, :2]
    layer = jax.tree.map(lambda leaf: leaf[0], params["encoder"]["layers"]["attention"])
    made = lambda name: (first @ layer[name]["kernel"] + layer[name]["bias"]).reshape(1, 1, 2, H, K)
    given = Conditioning(Stack(self_attention=Sublayer(prefix=Prefix(made("key"), made("value")))))
    found = tiny_roberta.outputs(config, TOKENS, given, weights=params)
    same(found.encoded.hidden[VALID], want.encoded.hidden[:, 2:][VALID])
    without = tiny_roberta.outputs(config, TOKENS, weights=params)
    assert np.abs(found.encoded.hidden - without.encoded.hidden)[VALID].max() > 0.05


def test_gradients_reach_every_parameter_and_every_leaf():
    """Of the outputs of all heads, by the parameters and by the float leaves of every kind of conditioning."""
    floats = jax.tree.map(lambda leaf: leaf.dtype == np.float32, EVERYTHING)

    def loss(params, ours):
        given = jax.tree.map(lambda keep, own, fixed: own if keep else fixed, floats, ours, EVERYTHING)
        found = roberta.Backbone(CONFIG, params)(TOKENS, given)
        return jnp.square(found.logits).mean() + jnp.square(found.class_logits).mean()

    ours = jax.tree.map(lambda keep, leaf: leaf if keep else np.zeros((), np.float32), floats, EVERYTHING)
    of_params, of_leaves = tiny_t5.jit(jax.grad(loss, argnums=(0, 1)))(tiny_roberta.params(CONFIG), ours)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.abs(leaf).max() > 0, tiny_t5.path_of(path)
    for (path, leaf), keep in zip(jax.tree_util.tree_leaves_with_path(of_leaves), jax.tree.leaves(floats), strict=True):
        assert not keep or np.abs(leaf).max() > 0, tiny_t5.path_of(path)


def test_bfloat16_keeps_norms_softmax_and_logits_in_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    found, exact = tiny_roberta.outputs(config, TOKENS), outputs()
    assert found.logits.dtype == found.class_logits.dtype == np.float32
    assert found.encoded.hidden.dtype == jnp.bfloat16
    assert 1e-4 < np.abs(found.class_logits - exact.class_logits).max() < 0.2
    run = lambda params: roberta.Backbone(config, params)(TOKENS).logits
    kinds = tiny_t5.dtypes(run, tiny_roberta.params(config))
    assert kinds["exp"] == kinds["rsqrt"] == kinds["reduce_max"] == {"float32"} and "bfloat16" in kinds["dot_general"]


def test_dropout_needs_an_rng_and_differs_between_rows():
    config = tiny_roberta.config(dropout_rate=0.3)
    tokens = np.repeat(TOKENS[:1], 2, axis=0)

    @tiny_t5.jit
    def dropped(key):
        return roberta.Backbone(config, tiny_roberta.params(config), {"dropout": key})(tokens)

    plain = tiny_roberta.outputs(config, tokens)
    np.testing.assert_array_equal(plain.logits, outputs(tokens=tokens).logits)
    one, two = (jax.tree.map(np.asarray, dropped(jax.random.key(seed))) for seed in (0, 1))
    for a, b in ((one, two), (one, plain)):
        assert np.abs(a.logits - b.logits).max() > 0.05 and np.abs(a.class_logits - b.class_logits).max() > 0.05
    assert np.abs(one.logits[0] - one.logits[1]).max() > 0.05
    # The classifier drops the pooled state by a mask of each row's own.
    p = tiny_roberta.params(config)["pooled_head"]["classifier"]
    undropped = one.pooled @ p["kernel"] + p["bias"]
    difference = one.class_logits - undropped
    assert np.abs(difference[0] - difference[1]).max() > 1e-3


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("variant", [{}, tiny_roberta.BERT], ids=["roberta", "bert"])
def test_logical_axes_cover_every_parameter(variant, scan):
    config, sizes = tiny_roberta.config(**variant, scan_layers=scan), {}
    known = {axis for axis, _ in RULES} | {None}
    for path, leaf in flax.traverse_util.flatten_dict(tiny_roberta.params(config), sep="/").items():
        axes = logical_axes(path)
        assert len(axes) == leaf.ndim and set(axes) <= known, path
        assert (axes[0] == "layers") == ("/layers/" in path), path
        for axis, size in zip(axes, leaf.shape):
            if axis:
                sizes.setdefault(axis, set()).add(size)
    wanted = {"vocab": {32}, "embed": {12}, "mlp": {20}, "joined_kv": {12}, "abspos_buckets": {18}}
    assert sizes == wanted | ({"layers": {2}} if scan else {})


def test_initialised_models_stack_and_unstack():
    scanned, unscanned = (tiny_roberta.config(scan_layers=scan) for scan in (True, False))
    params = tiny_t5.jit(lambda key: roberta.init(scanned, key))(jax.random.key(0))
    unstacked = unstack_layers(params)
    shapes = jax.eval_shape(lambda: roberta.init(unscanned, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, unstacked) == jax.tree.map(jnp.shape, dict(shapes))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unstacked), dict(params))
    for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        end = path.split("/")[-1]
        if end in ("scale", "bias"):
            assert (np.asarray(leaf) == (end == "scale")).all(), path
        elif leaf.size > 100:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.2), path


# What is published, in millions, without the pooled head but for BERT's.
@pytest.mark.parametrize("name, millions", [("roberta_base", 124.7), ("roberta_large", 355.4), ("bert_base", 110.1)])
def test_model_files_have_the_published_number_of_parameters(name, millions):
    configs.load([f"models/{name}.gin"])
    c = configs.make("RobertaConfig")
    shapes = jax.eval_shape(lambda: roberta.init(c, jax.random.key(0)))
    V, D, F = c.vocab_size, c.emb_dim, c.mlp_dim
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D
    encoder = (V + c.num_positions + c.num_token_types) * D + 2 * D + c.num_encoder_layers * layer
    heads = D * D + D + 2 * D + V + (D * D + D if c.pooled_head else 0)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == encoder + heads and total / 1e6 == pytest.approx(millions, abs=0.06)
    if name == "roberta_large":
        assert encoder == 354_310_144


def test_what_does_not_fit_is_named():
    params = tiny_roberta.params(CONFIG)

    def run(conditioning=Conditioning(), tokens=TOKENS, types=None, config=CONFIG):
        jax.eval_shape(lambda: roberta.Backbone(config, params)(tokens, conditioning, types))

    vectors = np.ones((1, 3, D), np.float32)
    for given, name in [
        (Conditioning(decoder=Stack(prompt=vectors)), "decoder.prompt"),
        (Conditioning(memory=vectors), "memory"),
        (Conditioning(decoder=Stack(mlp=Sublayer(bias={"wo": vectors}))), "decoder.mlp.bias.wo"),
    ]:
        with pytest.raises(UserError, match=f"{name} is set, but this backbone is an encoder without a decoder"):
            run(given)
    with pytest.raises(UserError, match="encoder.cross_attention is set, but an encoder"):
        run(Conditioning(Stack(cross_attention=Sublayer(bias={"key": vectors}))))
    with pytest.raises(UserError, match=r"encoder\.prompt has 3 groups, which do not divide 4 rows"):
        run(Conditioning(Stack(prompt=np.ones((3, 2, D), np.float32))))
    assert CONFIG.max_length == 16 and BERT.max_length == 18
    longest = np.full((4, 16), 5, np.int32)
    run(tokens=longest)
    with pytest.raises(UserError, match="16 tokens and a prompt of 3 are more than the 16 positions"):
        run(Conditioning(Stack(prompt=vectors)), longest)
    with pytest.raises(UserError, match=r"token_types have shape \(4, 3\), but tokens \(4, 9\)"):
        run(types=np.zeros((4, 3), np.int32))
    with pytest.raises(UserError, match="emb_dim 12 does not divide into 5 heads; 10 would"):
        tiny_roberta.config(num_heads=5)
    with pytest.raises(UserError, match="labels entailment, neutral, contradiction need the pooled head"):
        tiny_roberta.config(pooled_head=False)
    with pytest.raises(UserError, match="activation 'gelu_exat'.*'gelu_exact'"):
        tiny_roberta.config(mlp_activations=("gelu_exat",))
    headless = tiny_roberta.config(mlm_head=False, pooled_head=False, labels=())
    plain = jax.eval_shape(lambda: roberta.Backbone(headless, params)(TOKENS))
    assert plain.logits is plain.pooled is plain.class_logits is plain.encoder_hidden is None


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    """Logits and gradients under conditioning of every kind, whatever the mesh; measured in a process of its own, as the
    number of devices is fixed when jax starts."""
    script = Path(__file__).with_name("eight_devices.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and set(found["meshes"]) == {"8×1×1", "2×2×2"}
    for mesh, report in found["meshes"].items():
        assert report["logits"] <= TOLERANCE and report["gradient"] <= 1e-4, mesh
        assert report["kernels"] == [1.0 if mesh == "8×1×1" else 0.25]


def test_a_token_type_that_there_is_not_is_refused():
    backbone = roberta.Backbone(CONFIG, tiny_roberta.params(CONFIG))
    with pytest.raises(UserError, match="token type is 1; this backbone has 1"):
        backbone(np.full((1, 3), 5, np.int32), token_types=np.array([[0, 1, 1]], np.int32))
