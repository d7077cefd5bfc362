"""Training of a whole encoder before tasks: on masked text, on pairs of inference; resumable stage by stage."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax

from zeroprompt_jax.data import entailment
from zeroprompt_jax.data.entailment import RowStream
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.data.masking import MaskedStream
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.full import Classification, MaskedLM
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.loop import Metrics, Train, fit
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.state import Flat
from zeroprompt_jax.training.step import Loss, make_train_step

_METHODS = {"text": MaskedLM(), "inference": Classification()}


@dataclasses.dataclass(frozen=True)
class EncoderStage:
    """Training of the whole encoder. data: `text`, masked, or pairs of `inference`."""

    data: str
    steps: int
    batch_size: int = 32
    optimizer: Optimizer = Optimizer("adamw", Schedule(1e-3, "linear"), clip_norm=1.0)

    def __post_init__(self):
        if self.data not in _METHODS:
            raise unknown("EncoderStage.data", self.data, _METHODS)


def check(model: RobertaConfig, stages: Mapping[str, EncoderStage], suite: Suite) -> None:
    """Raises UserError where the suite has nothing that a stage trains on, or the model no head for it."""
    for name, stage in stages.items():
        text = stage.data == "text"
        if suite.text is None if text else not suite.inference:
            raise UserError(f"The stage '{name}' trains on {stage.data}, and the suite has none.")
        if not (model.mlm_head if text else model.labels):
            needed = "mlm_head" if text else "labels"
            raise UserError(f"The stage '{name}' trains on {stage.data}, which needs RobertaConfig.{needed}.")


def classifying(stages: Mapping[str, EncoderStage], loaded: Flat) -> set[str | None]:
    """The stages, None being the beginning, after which the classifier of inference is no longer random."""
    found, told = set(), any(path.startswith("backbone/pooled_head/classifier/") for path in loaded)
    for name in (None, *stages):
        told = told or (name is not None and stages[name].data == "inference")
        found |= {name} if told else set()
    return found


def train(
    model: RobertaConfig,
    stages: Mapping[str, EncoderStage],
    suite: Suite,
    folder: Path,
    loaded: Flat,
    seed: int = 0,
) -> dict[str | None, Flat]:
    """The encoder's parameters by path, on the host, as it begins (None) and after each stage, which goes on from the one
    before. A stage that was stopped goes on, and one that was finished is read.

    Args:
      folder: of the stages' checkpoints and metrics.
      loaded: what the encoder begins with, by path; what it lacks is random.
    """
    make = jax.jit(lambda: states.flatten({"backbone": roberta.init(model, jax.random.key(seed))}))
    flat = jax.device_get(make()) | loaded
    made = {None: flat}
    for name, stage in stages.items():
        flat = flat | _train(model, stage, suite, flat, folder / name, seed)
        made[name] = flat
    return made


def _train(model: RobertaConfig, stage: EncoderStage, suite: Suite, flat: Flat, folder: Path, seed: int) -> Flat:
    """What a stage trained."""
    method, v = _METHODS[stage.data], suite.vocabulary
    if stage.data == "text":
        make_batch = MaskedStream(suite.text, v, stage.batch_size, seed).batch
    else:
        pairs = entailment.nli_rows(suite.inference, v, suite.length, model.labels)
        make_batch = RowStream(pairs, stage.batch_size, seed).batch
    settings = Train(str(folder), stage.steps, stage.batch_size, seed=seed, save_every=None)
    tx = stage.optimizer.build(stage.steps)
    rate = stage.optimizer.schedule.build(stage.steps)
    step = jax.jit(make_train_step(model, method, tx, rate, Loss(z_loss=0.0), seed=seed), donate_argnums=0)
    trained, frozen = states.split(flat, method.trainable)
    state, record = jax.jit(functools.partial(states.create, tx=tx))(trained), {}
    checkpointer = checkpoint.Checkpointer(str(folder))
    if checkpointer.latest() is not None:
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        state, record = checkpointer.restore(jax.tree.map(shape, state))
    metrics = Metrics(str(folder), int(state.step))
    try:
        state, _ = fit(settings, state, jax.device_put(frozen), step, make_batch, checkpointer, metrics, record=record)
    finally:
        metrics.close()
        checkpointer.close()
    return jax.device_get(state.params)
