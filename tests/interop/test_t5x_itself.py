"""T5X itself restores what is written here, writes what is read here, and trains and decodes our T5 with a method."""

import dataclasses
import functools
import re
from pathlib import Path

import flax.traverse_util
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import leaves, t5x_module
from zeroprompt_jax.interop import t5x as ours
from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prefix import Prefix
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import decoding
from zeroprompt_jax.models.t5 import Backbone, T5Config

t5x = pytest.importorskip("t5x", reason="T5X is not installed; it is not on PyPI but at github.com/google-research/t5x")

from t5x import adafactor, checkpoints, models, optimizers, partitioning, trainer, utils
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network as plain

CONFIG = tiny_t5.config(scan_layers=False, relpos_num_buckets=32, relpos_max_distance=128)  # as T5X's networks are
NETWORKS = {"plain": plain, "scalable": scalable}
BATCH, S = 3, 6
SHAPES = {"encoder_input_tokens": (BATCH, 9), "decoder_input_tokens": (BATCH, S)}


def network(name):
    """T5X's own module of the shape of CONFIG."""
    sizes = "vocab_size emb_dim num_heads head_dim mlp_dim num_encoder_layers num_decoder_layers mlp_activations"
    sizes = {size: getattr(CONFIG, size) for size in sizes.split()}
    return NETWORKS[name].Transformer(NETWORKS[name].T5Config(**sizes, dropout_rate=0.0))


def model(module, method=Full()):
    rules = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    traversal = flax.traverse_util.ModelParamTraversal(t5x_module.trained(method))
    optimizer = optimizers.MultiOptimizer(((traversal, rules),))
    return models.EncoderDecoderModel(module, _Vocabulary(), _Vocabulary(), optimizer)


class _Vocabulary:
    eos_id = 1


@functools.cache
def partitioner():
    return partitioning.PjitPartitioner(num_partitions=1)


def initializer(module, train=True, method=Full()):
    made = model(module, method)
    types = {name: jnp.int32 for name in SHAPES}
    definition = made.optimizer_def if train else None
    return utils.TrainStateInitializer(definition, made.get_initial_variables, SHAPES, partitioner(), types)


def restored(module, path, mode, train=False):
    shapes = initializer(module, train).global_train_state_shape
    if mode == "legacy":
        return checkpoints.Checkpointer(shapes, partitioner(), "").restore(path=str(path))
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(path.parent), shapes, partitioner())
    state = manager.restore(path=str(path))
    manager.close()
    return state


def saved(state, folder, mode):
    folder.mkdir()
    if mode == "legacy":
        checkpoints.Checkpointer(state, partitioner(), str(folder)).save(state)
        return
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner())
    manager.save(state)
    manager.wait_until_finished()
    manager.close()


def random_state(module, train, shared=True):
    """T5X's state with random values. shared: the same relative position bias in all layers."""
    shapes = initializer(module, train).global_train_state_shape

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = np.abs(rng.normal(size=leaf.shape)).astype(leaf.dtype)
        if shared and re.match(r"target\.(encoder\.encoder|decoder\.decoder)\.relpos_bias", tiny_t5.path_of(path)):
            x = np.repeat(x[:, :1], x.shape[1], axis=1)
        return jnp.asarray(x)

    values = jax.tree_util.tree_map_with_path(draw, shapes.state_dict())
    values["state"]["step"] = jnp.int32(7)
    return shapes.restore_state(values)


def flat(state):
    tree = state.state_dict()
    return {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items() if v is not None}


def backbone_leaves():
    params = flax.traverse_util.flatten_dict(tiny_t5.params(CONFIG), sep="/")
    return {path: leaves.of(x) for path, x in params.items()}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_array_equal(got[path], x, strict=True, err_msg=path)


def batch():
    encoder, decoder = tiny_t5.tokens(BATCH, 9, S)
    targets = np.concatenate([decoder[:, 1:], np.ones((BATCH, 1), np.int32)], 1)
    weights = (targets > 0).astype(np.float32)
    columns = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    return {name: jnp.asarray(x) for name, x in zip(columns, (encoder, decoder, targets, weights))}


@pytest.mark.parametrize("mode", ["legacy", "orbax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_t5x_restores_what_is_written_here(tmp_path, name, mode):
    folder = tmp_path / "checkpoint_7"
    ours.write_t5(folder, backbone_leaves(), 7, scanned=name == "scalable")
    state = restored(network(name), folder, mode)
    assert int(state.step) == 7
    got = flax.traverse_util.flatten_dict(jax.device_get(dict(state.state_dict()["target"])), sep="/")
    if name == "plain":
        assert_same(got, {path: leaf.read() for path, leaf in backbone_leaves().items()})
    logits = tiny_t5.jit(lambda params, b: model(network(name))._compute_logits(params, b))(state.params, batch())
    want = tiny_t5.logits(CONFIG, batch()["encoder_input_tokens"], batch()["decoder_input_tokens"])
    np.testing.assert_allclose(logits, want, atol=1e-4)


def test_t5x_restores_the_optimizers_state_that_is_written_here(tmp_path):
    state = random_state(network("plain"), train=True)
    arrays = {path: leaves.of(x) for path, x in flat(state).items()}
    assert any(path.startswith("state/param_states/") for path in arrays)
    ours.write(tmp_path / "checkpoint_7", arrays)
    assert_same(flat(restored(network("plain"), tmp_path / "checkpoint_7", "legacy", train=True)), flat(state))


@pytest.mark.parametrize("mode", ["legacy", "orbax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_t5x_writes_is_read_here(tmp_path, name, mode):
    state = random_state(network(name), train=True)
    saved(state, tmp_path / "run", mode)
    want = flat(state)
    whole = ours.read(tmp_path / "run" / "checkpoint_7")
    assert_same({path: leaf.read() for path, leaf in whole.items()}, want)
    params = ours.read_t5(tmp_path / "run")
    assert params.keys() == backbone_leaves().keys()
    for i in range(CONFIG.num_decoder_layers):
        rest = "mlp/wo/kernel"
        plainly = name == "plain"
        kernel = want[f"target/decoder/layers_{i}/{rest}"] if plainly else want[f"target/decoder/decoder/{rest}"][:, i]
        np.testing.assert_array_equal(params[f"decoder/layers_{i}/{rest}"].read(), kernel, strict=True)


def test_a_bias_of_each_layers_own_is_refused(tmp_path):
    saved(random_state(network("scalable"), train=False, shared=False), tmp_path / "run", "legacy")
    with pytest.raises(UserError, match="different relative position biases"):
        ours.read_t5(tmp_path / "run")


METHODS = {
    "full": Full(),
    "prompt": Prompt(length=3, stacks=("encoder", "decoder")),
    "layer_prompt": Prompt(length=2, layers="add", stacks=("encoder", "decoder")),
    "prefix": Prefix(length=3),
    "adapter": Adapter(3),
    "mpt": MPT(length=3, per_task=False),
}


def variables(method):
    """Random parameters as T5X holds them: the backbone's of tiny_t5, and the method's."""
    module = t5x_module.Transformer(CONFIG, method)
    shapes = jax.eval_shape(lambda: model(module).get_initial_variables(jax.random.key(0), SHAPES))["params"]
    own = {"method": shapes["method"]} if "method" in shapes else {}
    return module, {**tiny_t5.params(CONFIG), **jax.tree_util.tree_map_with_path(tiny_t5.draw, dict(own))}


def conditioned(method, params):
    """(backbone, conditioning) without T5X."""
    rest = {name: x for name, x in params.items() if name != "method"}
    backbone = Backbone(CONFIG, rest)
    return backbone, method.condition(params.get("method", {}), {}, backbone)


@pytest.mark.parametrize("name", METHODS)
def test_t5xs_model_scores_and_decodes_as_we_do(name):
    method = METHODS[name]
    module, params = variables(method)
    theirs = model(module)
    b = batch()

    def run(params):
        backbone, conditioning = conditioned(method, params)
        want = backbone(b["encoder_input_tokens"], b["decoder_input_tokens"], conditioning).logits
        # Rows run to their full length: test_t5x_beams says how answers that end differ.
        strategy = decoding.Beam(size=2, length_penalty=0.0)
        beams = decoding.generate(backbone, b["encoder_input_tokens"], conditioning, strategy, S, eos_id=99)
        got, aux = theirs.predict_batch_with_aux(params, b, decoder_params={"eos_id": 99}, num_decodes=2)
        return theirs._compute_logits(params, b), want, (got, aux["scores"]), (beams.tokens[:, 0], beams.scores[:, 0])

    logits, want, got, beams = tiny_t5.jit(run)(params)
    np.testing.assert_allclose(logits, want, atol=1e-5)
    np.testing.assert_array_equal(got[0], beams[0])
    np.testing.assert_allclose(got[1], beams[1], atol=1e-4)


@pytest.mark.parametrize("name", ["full", "prompt"])
def test_t5xs_step_trains_what_the_method_trains(name):
    method = METHODS[name]
    module = t5x_module.Transformer(dataclasses.replace(CONFIG, dropout_rate=0.1), method)
    start = initializer(module, method=method).from_scratch(jax.random.PRNGKey(0))
    step = tiny_t5.jit(
        lambda state, b: trainer.train_with_lr(state, b, 0.1, jax.random.PRNGKey(1), model(module, method), None)[0]
    )
    before, after = flat(start), flat(step(start, batch()))
    trains = t5x_module.trained(method)
    paths = {path.removeprefix("target/") for path in before if path.startswith("target/")}
    moved = {path for path in paths if (before[f"target/{path}"] != after[f"target/{path}"]).any()}
    states = {path.split("/", 2)[2].rpartition("/")[0] for path in after if path.startswith("state/param_states/")}
    assert moved == states == {path for path in paths if trains(path, None)}


def test_the_gin_file_gives_t5x_its_model():
    """T5X's own gin files call the model %MODEL."""
    gin.clear_config()
    gin.add_config_file_search_path(Path(t5x.__path__[0]).parent)
    found = gin.external_configurable(lambda model: model, "found", module="tests")
    try:
        file = Path(__file__).parents[2] / "gin/t5x/t5_1_1_small_prompt.gin"
        gin.parse_config_files_and_bindings([str(file)], ["DROPOUT_RATE = 0.1", "tests.found.model = %MODEL"])
        made = found()
    finally:
        gin.clear_config()
    assert isinstance(made, models.EncoderDecoderModel)
    assert made.module.method.length == 100
    assert dataclasses.asdict(made.module.config) == dataclasses.asdict(T5Config(scan_layers=False))
    types = {name: jnp.int32 for name in SHAPES}
    shapes = utils.TrainStateInitializer(made.optimizer_def, made.get_initial_variables, SHAPES, partitioner(), types)
    states = flax.traverse_util.flatten_dict(shapes.global_train_state_shape.state_dict()["state"]["param_states"], sep="/")
    assert {path for path, x in states.items() if x is not None} == {f"method/prompt/{x}" for x in ("v", "v_row", "v_col", "m")}
