"""T5X's model with a method that needs more of its rows than tokens: its step, scores and decoding are ours."""

import dataclasses
import functools
from pathlib import Path

import flax.traverse_util
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_t5

from zeroprompt_jax.data import cards, seqio_bridge
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import t5x_module
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Run, Setting
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.methods.soft_prompt import SoftPrompt
from zeroprompt_jax.models import decoding
from zeroprompt_jax.models.t5 import Backbone
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.step import Loss, make_train_step

t5x = pytest.importorskip("t5x", reason="T5X is not installed; it is not on PyPI but at github.com/google-research/t5x")

import seqio
from t5x import adafactor, models, optimizers, partitioning, trainer, utils
from t5x import decoding as theirs

from zeroprompt_jax.interop import t5x_model

CONFIG = tiny_t5.config(scan_layers=False)
ROWS, T, S = 4, 9, 6
TASKS = ("one", "two", "three", "four")
METHODS = {
    "prompts": Prompt(3, ("encoder", "decoder"), per_task=True),
    "mpt": MPT(3, initialiser=Uniform()),
    "distilled": MPT(3, initialiser=Uniform(), teachers="somewhere"),
    "composed": SoftPrompt(3, dropout=0.0, train_backbone=False),
    "hint": Hint((generated.Prefix(2), generated.Adapter(3))),
    "hypter": Hypter((generated.Adapter(2),)),
}


def setting(config):
    teacher = np.random.default_rng(0).normal(size=(4, 2, CONFIG.emb_dim)).astype(np.float32)
    facts = {task: {"type": "t", "domain": "d", "family": task, "labels": ""} for task in TASKS}
    return Setting(config, TASKS, facts=facts, run=lambda path: Run({"prompt": teacher}, TASKS))


def batch(method):
    encoder, decoder = tiny_t5.tokens(ROWS, T, S)
    targets = np.concatenate([decoder[:, 1:], np.ones((ROWS, 1), np.int32)], 1)
    weights = np.arange(S) < np.array([[6], [2], [5], [3]])
    columns = {"encoder_input_tokens": encoder, "decoder_input_tokens": decoder, "decoder_target_tokens": targets}
    columns["decoder_loss_weights"] = weights.astype(np.int32)  # as SeqIO gives them
    if method.per_task:
        places = method.places(setting(CONFIG))
        columns["task_ids"] = np.array([places[task] for task in ("four", "one", "four", "two")], np.int32)
    if method.reads_instructions:
        columns["instruction_tokens"] = tiny_t5.tokens(ROWS, 5, seed=1)[0]
    return jax.tree.map(jnp.asarray, columns)


class _Vocabulary:
    eos_id = 1


def model(method, config=CONFIG, **changes):
    module = t5x_module.Transformer(config, method, setting)
    rules = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    traversal = flax.traverse_util.ModelParamTraversal(t5x_module.trained(method))
    optimizer = optimizers.MultiOptimizer(((traversal, rules),))
    return t5x_model.EncoderDecoderModel(module, _Vocabulary(), _Vocabulary(), optimizer, **changes)


def params(method):
    made = jax.eval_shape(lambda: model(method).get_initial_variables(jax.random.key(0)))["params"]
    own = jax.tree_util.tree_map_with_path(tiny_t5.draw, {"method": made["method"]})
    return {**tiny_t5.params(CONFIG), **own}


def bound(method, params):
    return Backbone(CONFIG, {name: x for name, x in params.items() if name != "method"})


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_and_its_gradients_are_our_train_steps(name):
    method = METHODS[name]
    start, rows = params(method), batch(method)
    flat = states.flatten({"backbone": {k: x for k, x in start.items() if k != "method"}, "method": start["method"]})
    trained, frozen = states.split(flat, method.trainable)
    tx = optax.sgd(1.0)
    step = make_train_step(CONFIG, method, tx, lambda step: 1.0, Loss(z_loss=1e-2))
    state = states.State(jnp.int32(0), trained, tx.init(trained))
    theirs = model(method, z_loss=1e-2, loss_normalizing_factor="NUM_REAL_TARGET_TOKENS")

    def run(start):
        (loss, metrics), grads = jax.value_and_grad(theirs.loss_fn, has_aux=True)(start, rows, jax.random.key(0))
        return loss, {name: x.total for name, x in metrics.items() if name.startswith("loss/")}, grads

    after, told = tiny_t5.jit(step)(state, frozen, {**rows, "decoder_loss_weights": rows["decoder_loss_weights"] * 1.0})
    loss, further, grads = tiny_t5.jit(run)(start)
    got = flax.traverse_util.flatten_dict(grads, sep="/")
    own = {path if path.startswith("method/") else f"backbone/{path}": x for path, x in got.items()}
    want = {path: np.asarray(trained[path] - after.params[path]) for path in trained}
    assert further.keys() == {metric for metric in told if metric.startswith("loss/")}
    if name == "prompts":  # where only banks train, we divide by each task's own number of tokens
        shares_N = np.array([2, 3, 0, 11]).reshape(4, 1, 1) / 16
        want = {path: x * shares_N for path, x in want.items()}
    else:
        np.testing.assert_allclose(loss, told["loss"] + sum(told[metric] for metric in further), rtol=1e-5)
        assert all(told[metric] > 0 for metric in further)
        np.testing.assert_allclose([further[metric] for metric in further], [told[metric] for metric in further], rtol=1e-5)
    for path, x in own.items():
        if path in want:
            np.testing.assert_allclose(x, want[path], atol=2e-5, rtol=1e-4, err_msg=path)
        assert np.any(x) == (path in want), path


@pytest.mark.parametrize("name", METHODS)
def test_scores_and_decodes_as_we_do(name):
    method = METHODS[name]
    rows, start = batch(method), params(method)
    greedy = model(method, decode_fn=functools.partial(theirs.temperature_sample, temperature=0.0))

    def run(start):
        backbone = bound(method, start)
        conditioning = method.condition(start["method"], rows, backbone)
        tokens, targets = rows["encoder_input_tokens"], rows["decoder_target_tokens"]
        logits = backbone(tokens, rows["decoder_input_tokens"], conditioning).logits
        score = jnp.sum(decoding.token_log_probs(logits, targets) * rows["decoder_loss_weights"], -1)
        one = decoding.generate(backbone, tokens, conditioning, decoding.Greedy(), S)
        # Rows run to their full length: test_t5x_beams says how answers that end differ.
        beams = decoding.generate(backbone, tokens, conditioning, decoding.Beam(3, 0.0), S, eos_id=99)
        got = model(method).predict_batch_with_aux(start, rows, decoder_params={"eos_id": 99}, num_decodes=3)
        return (
            (score, one.tokens[:, 0], beams.tokens[:, 0], beams.scores[:, 0]),
            (greedy.score_batch(start, rows), greedy.predict_batch(start, rows), got[0], got[1]["scores"]),
        )

    want, got = tiny_t5.jit(run)(start)
    for ours, other in zip(want, got):
        np.testing.assert_allclose(other, ours, atol=1e-4)
    assert len(np.unique(np.asarray(want[0]).round(3))) == ROWS


def test_dropout_and_what_a_method_draws_are_the_steps_own():
    """A training step draws anew with every key; an evaluation draws nothing."""
    method = SoftPrompt(3, dropout=0.5, train_backbone=False)
    rows, start = batch(method), params(method)
    loss = tiny_t5.jit(lambda start, key: model(method).loss_fn(start, rows, key)[0])
    drawn = {float(loss(start, jax.random.PRNGKey(i))) for i in range(6)}
    assert len(drawn) > 1
    still = tiny_t5.jit(lambda start: model(dataclasses.replace(method, dropout=0.0)).eval_fn(start, rows)[0])(start)
    np.testing.assert_allclose(tiny_t5.jit(lambda start: model(method).eval_fn(start, rows)[0])(start), still, rtol=1e-6)
    config = dataclasses.replace(CONFIG, dropout_rate=0.3)
    hint = METHODS["hint"]
    rows, start = batch(hint), params(hint)
    loss = tiny_t5.jit(lambda start, key: model(hint, config).loss_fn(start, rows, key)[0])
    assert len({float(loss(start, jax.random.PRNGKey(i))) for i in range(3)}) == 3


@pytest.mark.parametrize("name", ["mpt", "hint"])
def test_t5x_trains_it_from_a_seqio_mixture(name, monkeypatch):
    """From T5X's data to T5X's step: what trains moves, slices of absent tasks stay."""
    reads = ["task"] if name == "mpt" else ["instructions"]
    v = load_vocabulary("bytes")
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(registry, "_REGISTRY", {})
    for registry in ("_TASKS", "_MIXTURES"):
        monkeypatch.setattr(cards, registry, {})
    for n, task in enumerate(TASKS):
        card = cards.TaskCard(name=task, type="t", instructions=(f"say {task}.", f"answer {task}!"))
        examples = lambda split, n=n: [{"input": "abcdefg"[i], "target": "abcdefg"[i - n]} for i in range(7)]
        cards.register(card, cards.Source(examples, task))
    cards.register_mixture("of_t5x", TASKS)
    seqio_bridge.mixture_to_seqio("of_t5x", v, reads)
    method, config = METHODS[name], dataclasses.replace(CONFIG, vocab_size=512)
    module = t5x_module.Transformer(config, method, functools.partial(t5x_model.setting, mixture="of_t5x"))
    made = t5x_model.EncoderDecoderModel(module, v.to_seqio(), v.to_seqio(), model(method).optimizer_def)
    lengths = {"inputs": 24, "targets": 4, **({} if name == "mpt" else {"instructions": 16})}
    cfg = utils.DatasetConfig("two" if name == "mpt" else "of_t5x", lengths, "train", 4, shuffle=False, pack=False, seed=0)
    dataset = utils.get_dataset(cfg, 0, 1, made.FEATURE_CONVERTER_CLS)
    rows = next(dataset.as_numpy_iterator())
    if name == "mpt":
        place = seqio_bridge.card_names("of_t5x").index("two")
        assert (rows["task_ids"] == place).all() and place == 3  # in SeqIO's order
    else:
        assert rows["instruction_tokens"].shape == (4, 16)
    shapes = jax.tree.map(lambda x: (4, *x.shape[1:]), dataset.element_spec)
    types = jax.tree.map(lambda x: x.dtype.as_numpy_dtype, dataset.element_spec)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = utils.TrainStateInitializer(made.optimizer_def, made.get_initial_variables, shapes, partitioner, types)
    start = initializer.from_scratch(jax.random.PRNGKey(0))
    step = tiny_t5.jit(lambda state, b: trainer.train_with_lr(state, b, 0.1, jax.random.PRNGKey(1), made, None)[0])
    flat = lambda state: flax.traverse_util.flatten_dict(jax.device_get(dict(state.params)), sep="/")
    before, after = flat(start), flat(step(start, rows))
    trains = t5x_module.trained(method)
    for path, x in before.items():
        moved = x != after[path]
        assert moved.any() == trains(path, None), path
        if name == "mpt" and path in ("method/u", "method/v"):
            np.testing.assert_array_equal(moved.any((1, 2)), np.arange(4) == place)


def test_a_method_without_its_tasks_is_refused():
    with pytest.raises(UserError, match="Unknown SeqIO task or mixture 'nowhere'"):
        t5x_model.setting(CONFIG, "nowhere")
    with pytest.raises(UserError, match="reads 'task' of each row, so rows cannot be packed"):
        model(METHODS["mpt"]).FEATURE_CONVERTER_CLS(pack=True)
    plain = models.EncoderDecoderModel(model(METHODS["mpt"]).module, _Vocabulary(), _Vocabulary(), None)
    with pytest.raises(UserError, match="use t5x_model.EncoderDecoderModel"):
        jax.eval_shape(lambda: plain._compute_logits(params(METHODS["mpt"]), batch(METHODS["mpt"])))


def test_the_gin_file_gives_t5x_its_model():
    gin.clear_config()
    gin.add_config_file_search_path(Path(t5x.__path__[0]).parent)
    root = Path(__file__).parents[2]
    gin.add_config_file_search_path(root)
    found = gin.external_configurable(lambda model: model, "found_mpt", module="tests")
    try:
        bindings = ["DROPOUT_RATE = 0.1", "MIXTURE_OR_TASK_NAME = 'mixture'", "tests.found_mpt.model = %MODEL"]
        gin.parse_config_files_and_bindings([str(root / "gin/t5x/t5_1_1_small_mpt.gin")], bindings)
        made = found()
        with pytest.raises(UserError, match="Unknown SeqIO task or mixture 'mixture'"):
            made.module.setting(made.module.config)
    finally:
        gin.clear_config()
    assert isinstance(made, t5x_model.EncoderDecoderModel)
    assert isinstance(made.module.method, MPT) and made.module.method.length == 100
    assert made._z_loss == 1e-4
