"""Training encoders: what trains moves and nothing else does, a task trains in a mixed batch as alone, and the steps before
it, on inference pairs and on masked tokens, train what they say."""

import dataclasses
import functools

import entailed
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model
import tiny_roberta
import tiny_t5
from entailed import ABSENT, CONFIG, IDS, METHODS, USED, WEIGHTS, per_task

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.full import Classification, Full, MaskedLM
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import Loss, make_train_step

RATE = 0.01
DECAYED = Optimizer("adamw", Schedule(RATE), weight_decay=0.1, clip_norm=1.0)
BACKBONE = states.flatten({"backbone": WEIGHTS})
BATCH = entailed.batch()
UNMOVED = "key/bias"  # it adds the same to all of a query's scores, which softmax takes out again


@functools.cache
def stepper(method, optimizer, accumulate=1, config=CONFIG):
    """(optimizer, compiled training step)."""
    tx = optimizer.build(10, method.banked)
    made = make_train_step(config, method, tx, optimizer.schedule.build(10), Loss(z_loss=0.0), accumulate)
    return tx, tiny_t5.jit(made)


def train(method, params, batches, optimizer, **options):
    """(parameters after the batches, metrics of the last, what was frozen) from parameters of the method by path."""
    tx, step = stepper(method, optimizer, **options)
    trained, frozen = states.split(BACKBONE | params, method.trainable)
    state, metrics = states.create(trained, tx), None
    for batch in batches:
        state, metrics = step(state, frozen, batch)
    return jax.device_get(state.params), jax.device_get(metrics), frozen


def first(method):
    """A bank as if trained, with zeros where a task has no slot."""
    params = entailed.bank(method)
    if "method/slots" in params:
        for n in range(entailed.TASKS):
            params["method/slots"][n, USED.get(n, 0) :] = 0
    return params


@pytest.mark.parametrize("name", ["fluency", "prompt", "head", "adapter", "full"])
def test_training_moves_what_trains_and_nothing_else(name):
    """With weight decay, which moves what is given to the optimizer even without a gradient."""
    method, params = per_task(name), first(per_task(name))
    before = jax.tree.map(np.copy, BACKBONE | params)
    found, _, frozen = train(method, params, [BATCH] * 3, DECAYED)
    assert found.keys() | frozen.keys() == before.keys() and not found.keys() & frozen.keys()
    backbone = {path for path in BACKBONE if path in found}
    assert backbone == ({path for path in BACKBONE if "_head/" not in path} if name == "full" else set())
    assert ("method/slots" in found, "method/head/dense/bias" in found) == (name != "head", name != "prompt")
    for path, leaf in frozen.items():
        assert leaf.tobytes() == before[path].tobytes(), path
    for path, leaf in found.items():
        moves = np.abs(leaf - before[path])
        if not method.banked(path):
            assert moves.max() > RATE / 2 or path.endswith(UNMOVED), path  # Adam steps by the rate, decay by less
            continue
        assert leaf[ABSENT].tobytes() == before[path][ABSENT].tobytes(), path
        for n, used in USED.items():
            assert moves[n].max() > RATE / 2, path
            if path == "method/slots":
                assert (moves[n, :used].max(-1) > RATE / 2).all() and (leaf[n, used:] == 0).all()


def test_whole_tree_decay_would_move_what_is_to_stay():
    """The negative control: zero gradients do not freeze."""
    tx = DECAYED.build(10)

    @tiny_t5.jit
    def after(params):
        update, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return optax.apply_updates(params, update)

    after = after(BACKBONE)
    assert all(np.asarray(after[path]).tobytes() != leaf.tobytes() for path, leaf in BACKBONE.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_remembers_only_what_trains(name):
    method = per_task(name)
    trained, _ = states.split(BACKBONE | entailed.shapes(method), method.trainable)
    state = jax.eval_shape(DECAYED.build(10, method.banked).init, trained)
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(sizes) == 2 * states.count(trained)  # Adam's two moments


SGD = Optimizer("sgd", Schedule(1.0))


def test_a_task_trains_in_a_mixed_batch_as_alone():
    """Each by the mean over its own rows, the masked tokens' loss included, whatever the others' number of rows."""
    method, alone = per_task("fluency"), METHODS["fluency"]
    params = first(method)
    found, metrics, _ = train(method, params, [BATCH], SGD)
    losses = []
    for n in USED:
        weights = BATCH["row_weights"] * (IDS == n)
        wanted, own, _ = train(alone, entailed.slices(params, n), [{**BATCH, "row_weights": weights}], SGD)
        moved = {path: leaf[n : n + 1] - params[path][n : n + 1] for path, leaf in found.items()}
        wanted = {path: leaf - params[path][n : n + 1] for path, leaf in wanted.items()}
        assert small_model.worst(moved, wanted) < 1e-4
        losses.append((own["loss"], own["loss/fluency"]))
    for name, wanted in zip(("loss", "loss/fluency"), np.mean(losses, axis=0)):
        assert metrics[name] == pytest.approx(wanted, rel=1e-5)
    assert metrics["target_tokens"] == BATCH["row_weights"].sum() == 7

    parts, _, _ = train(method, params, [BATCH], SGD, accumulate=2)
    moved, wanted = ({path: leaf - params[path] for path, leaf in each.items()} for each in (parts, found))
    assert small_model.worst(moved, wanted) < 1e-4


PAIRS = {
    "encoder_input_tokens": BATCH["encoder_input_tokens"],
    "labels": np.array([0, 1, 2, 2, 0, 1, 1, 0], np.int32),
    "row_weights": BATCH["row_weights"],
}


def test_a_classifier_trains_with_the_encoder_and_not_the_other_head():
    found, metrics, frozen = train(Classification(), {}, [PAIRS], SGD)
    assert {path.split("/")[1] for path in frozen} == {"mlm_head"}
    assert all(np.any(leaf != BACKBONE[path]) for path, leaf in found.items() if not path.endswith(UNMOVED))
    logits = tiny_roberta.outputs(CONFIG, PAIRS["encoder_input_tokens"]).class_logits
    lost = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), PAIRS["labels"]]
    weights = PAIRS["row_weights"]
    assert metrics["loss"] == pytest.approx((lost * weights).sum() / weights.sum(), rel=1e-5)
    right = (logits.argmax(1) == PAIRS["labels"]) * weights
    assert metrics["token_accuracy"] == pytest.approx(right.sum() / weights.sum())


def test_masked_tokens_train_the_encoder_and_their_head():
    batch = {name: BATCH[name] for name in ("encoder_input_tokens", "mlm_targets", "mlm_weights")}
    found, metrics, frozen = train(MaskedLM(), {}, [batch], SGD)
    assert {path.split("/")[1] for path in frozen} == {"pooled_head"}
    assert all(np.any(leaf != BACKBONE[path]) for path, leaf in found.items() if not path.endswith(UNMOVED))
    logits = tiny_roberta.outputs(CONFIG, batch["encoder_input_tokens"]).logits
    chosen = np.take_along_axis(logits, batch["mlm_targets"][..., None], -1)[..., 0]
    lost = (np.log(np.exp(logits).sum(-1)) - chosen) * batch["mlm_weights"]
    assert metrics["loss"] == pytest.approx(lost.sum() / batch["mlm_weights"].sum(), rel=1e-5)


def test_what_a_batch_or_a_backbone_lacks_is_named():
    trained = lambda method, batch, config=CONFIG: jax.eval_shape(
        stepper(method, SGD, config=config)[1],
        states.create(BACKBONE, stepper(method, SGD)[0]),
        {},
        batch,
    )
    with pytest.raises(
        UserError, match="Full trains on 'decoder_target_tokens'; the batch has encoder_input_tokens, labels"
    ):
        trained(Full(), PAIRS)
    with pytest.raises(UserError, match="MaskedLM trains on 'mlm_targets'"):
        trained(MaskedLM(), PAIRS)
    with pytest.raises(UserError, match="this backbone has none: set RobertaConfig.labels"):
        trained(Classification(), PAIRS, dataclasses.replace(CONFIG, labels=()))
    with pytest.raises(UserError, match="this backbone has none: set RobertaConfig.mlm_head"):
        trained(MaskedLM(), BATCH, dataclasses.replace(CONFIG, mlm_head=False))
    batch = {name: column for name, column in BATCH.items() if not name.startswith("mlm")}
    method = Entailment(3, fluency=0.5)
    state = states.create(entailed.bank(method), SGD.build(10, method.banked))
    with pytest.raises(UserError, match="Entailment.fluency is 0.5, and the batch has no 'mlm_targets'"):
        jax.eval_shape(stepper(method, SGD)[1], state, BACKBONE, batch)
