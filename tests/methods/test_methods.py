"""What every method keeps to: its parameters, what they count, what they leave of the backbone at first."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5
from cases import CONFIG, METHODS

from zeroprompt_jax import config as configs
from zeroprompt_jax.methods import initialisers
from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.compacter import Compacter
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.full import Classification, Full, MaskedLM
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.prefix import Prefix
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.methods.soft_prompt import SoftPrompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import describe
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.partitioning import RULES

EVERY = pytest.mark.parametrize("name", METHODS)


@EVERY
def test_what_every_method_keeps_to(name):
    method, known = METHODS[name], {axis for axis, _ in RULES} | {None}
    for path, leaf in cases.shapes(name).items():
        axes = method.logical_axes(path.removeprefix("method/"))
        assert leaf.dtype == jnp.float32 and leaf.shape[0] == cases.TASKS
        assert len(axes) == leaf.ndim and axes[0] == "task" and set(axes) <= known and method.banked(path)
    for path in ("nothing", "prompt/more", "lora/encoder/mlp/wo", "prefix/encoder/self_attention", "layer_prompt"):
        with pytest.raises(KeyError):
            method.logical_axes(path)
    trained, frozen = states.split(cases.backbone() | cases.shapes(name), method.trainable)
    assert trained.keys() == cases.shapes(name).keys() and frozen.keys() == cases.backbone().keys()
    assert method == type(method)(**vars(method)) and hash(method) == hash(type(method)(**vars(method)))
    assert method.losses({}, {}, None, None) == {}
    one = jax.eval_shape(lambda: method.init(jax.random.key(0), cases.setting(5)))  # shared: one slice for all tasks
    assert {leaf.shape[0] for leaf in jax.tree.leaves(one)} == {1}


def test_full_adds_nothing():
    assert Full().init(jax.random.key(0), cases.setting()) == {}
    assert list(describe(Full().condition({}, {}, None))) == []
    assert Method().trainable == () and not Full().banked("backbone/decoder/mlp/wi/kernel")


# T5 base: D 768, 12 + 12 layers, 12 heads of 64, F 2048 gated.
BASE = t5.T5Config(emb_dim=768, num_heads=12, head_dim=64, mlp_dim=2048, num_encoder_layers=12, num_decoder_layers=12)
D, L, HK, F = 768, 12, 768, 2048
COUNTS = {
    Prompt(): 76_800,  # 100 × 768
    Prompt(stacks=("encoder", "decoder")): 2 * 76_800,
    Prompt(10, layers="replace"): L * 10 * D,
    Prefix(20): 3 * L * 2 * 20 * HK,  # three attentions, keys and values
    Prefix(20, bottleneck=512): 3 * (20 * D + D * 512 + 512 + 2 * (512 + 1) * L * HK),
    Adapter(64): 5 * L * (D * 64 + 64 + 64 * D + D),  # behind two sublayers of the encoder and three of the decoder
    Adapter(64, "parallel", sublayers=".*mlp"): 2 * L * (2 * D * 64 + 64 + D),
    Compacter(32): 5 * L * 3 * (D + 32) + 4**3,
    LoRA(8): 3 * L * 2 * 8 * (D + HK),
    LoRA(4, targets=".*"): 4 * L * (12 * (D + HK) + 6 * (D + F)),  # 3 attentions × 4 projections, 2 MLPs × 3
    IA3(): 3 * L * 2 * HK + 2 * L * F,
    Bias(): 3 * L * (2 * HK + D) + 2 * L * (2 * F + D),
}


@pytest.mark.parametrize("method", COUNTS, ids=lambda method: type(method).__name__)
def test_numbers_of_parameters_at_t5_base(method):
    for tasks in (1, 8):
        own = dict(vars(method), per_task=True)
        setting = Setting(BASE, tuple(map(str, range(tasks))))
        made = jax.eval_shape(lambda: type(method)(**own).init(jax.random.key(0), setting))
        assert states.count(states.flatten(made)) == tasks * COUNTS[method]


@pytest.mark.parametrize("name", ["series", "parallel", "compacter", "lora", "ia3", "bias"])
def test_at_first_the_backbone_is_unchanged(name):
    batch, first = cases.batch(), cases.initial(name)
    plain = tiny_t5.logits(CONFIG, batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    np.testing.assert_allclose(cases.logits(cases.per_task(name), first, batch), plain, atol=1e-5)
    for path, leaf in cases.bank(name).items():  # each leaf that says so is alone enough to change it
        if path.endswith(("/a", "/down", "/down_bias", "/rule", "/down_left", "/down_right", "/up_right")):
            continue
        other = first | {path: leaf}
        changed = np.abs(cases.logits(cases.per_task(name), other, batch) - plain).max((1, 2))
        assert (changed > 1e-3).all(), path
    again = cases.initial(name)
    assert all(np.array_equal(again[path], leaf) for path, leaf in first.items())


def test_a_compacters_matrices_are_sums_of_kronecker_products():
    method, params = cases.per_task("compacter"), cases.bank("compacter")
    made = method.build(states.unflatten(params)["method"]).encoder.mlp.adapter
    own = {path.rpartition("/")[2]: leaf for path, leaf in params.items() if "/encoder/mlp/" in path}
    for task, layer in ((0, 1), (9, 0)):
        rule = params["method/compacter/rule"][task]
        for name, found in (("down", made.down), ("up", made.up)):
            left, right = own[f"{name}_left"][task, layer], own[f"{name}_right"][task, layer]
            wanted = sum(np.kron(rule[i], np.outer(left[i], right[i])) for i in range(method.division))
            np.testing.assert_allclose(found[layer, task], wanted, atol=1e-6)
    fresh = Compacter(24).init(jax.random.key(0), Setting(BASE, ("one",)))  # down begins at an adapter's scale
    down = Compacter(24).build(fresh).encoder.mlp.adapter.down
    assert 0.8 < np.std(down) / (3 * D) ** -0.5 < 1.2


def test_a_bias_of_the_keys_changes_nothing():
    """Why it is no default."""
    batch = cases.batch()
    tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    method, rng = Bias(targets=".*/key"), np.random.default_rng(0)
    params = jax.eval_shape(lambda: method.init(jax.random.key(0), cases.setting()))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    made = jax.tree.map(np.asarray, method.build(params))
    assert len(list(describe(made))) == 3
    np.testing.assert_allclose(tiny_t5.logits(CONFIG, *tokens, made), tiny_t5.logits(CONFIG, *tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["decoder_prompt", "replacing", "adding", "prefix"])
def test_incremental_decoding_gives_the_teacher_forced_logits(name):
    method, batch = cases.per_task(name), cases.batch()
    params, decoder = states.unflatten(cases.bank(name))["method"], batch["decoder_input_tokens"]

    @tiny_t5.jit
    def incremental(backbone, params, batch):
        bound = t5.Backbone(CONFIG, backbone)
        made = method.condition(params, batch, bound)
        encoded = bound.encode(batch["encoder_input_tokens"], made)
        out, cache = bound.start(decoder[:, :2], encoded, made, 8)
        outs = [out]
        for i in range(2, 6, 2):
            out, cache = bound.step(decoder[:, i : i + 2], encoded, made, cache)
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    wanted = cases.logits(method, cases.bank(name), batch)
    found = incremental(tiny_t5.params(CONFIG), params, batch)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    plain = tiny_t5.logits(CONFIG, batch["encoder_input_tokens"], decoder)
    assert np.abs(wanted - plain).max((1, 2)).min() > 1e-2


def test_every_method_and_initialiser_can_be_configured():
    listed = {configs._resolve(name) for name in configs.CONFIGURABLES if name.startswith(("methods.", "initialisers."))}
    trained = {Full, Classification, MaskedLM, Entailment, Hint, Hypter, SoftPrompt, *map(type, METHODS.values())}
    assert listed == {*trained, *initialisers.Initialiser.__subclasses__()}


def test_a_methods_file_given_after_an_experiments_decides(tmp_path):
    resolved, made = tmp_path / "resolved.gin", set()
    try:
        for file in configs.find("methods/lora.gin").parent.glob("*.gin"):
            assert file.read_text().split("\n")[0].endswith(f" --gin_file=methods/{file.name}")
            configs.load(["experiments/quickstart.gin", f"methods/{file.name}"])
            experiment = configs.make("Experiment")
            made.add(type(experiment.method))
            resolved.write_text(configs.resolved())
            configs.load([str(resolved)])
            assert configs.make("Experiment") == experiment
            # The optimizer, multipliers included, is for what this method trains.
            def init(experiment=experiment):
                backbone = t5.init(experiment.model, jax.random.key(0))
                setting = Setting(experiment.model, backbone=backbone)
                return {"method": experiment.method.init(jax.random.key(0), setting), "backbone": backbone}

            shapes = jax.eval_shape(init)
            trained, _ = states.split(states.flatten(shapes), experiment.method.trainable)
            jax.eval_shape(experiment.optimizer.build(experiment.train.steps, experiment.method.banked).init, trained)
    finally:
        configs.load()
    assert made == {Full, Hint, Hypter, SoftPrompt, *map(type, METHODS.values())}
