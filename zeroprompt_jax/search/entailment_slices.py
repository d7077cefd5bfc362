"""Slices of one bank that train side by side: a task, a split of its examples, and a learning rate each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zeroprompt_jax.data import entailment
from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary
from zeroprompt_jax.data.entailment import Rows, RowStream
from zeroprompt_jax.data.entailment_suite import Suite
from zeroprompt_jax.data.masking import masked
from zeroprompt_jax.data.mixture import name_keys
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.entailment import outputs, probabilities
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.initialisers import Tokens
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.state import Flat
from zeroprompt_jax.training.step import Loss, make_train_step

_HEADS = ("mlm_head", "pooled_head")  # no part of the encoder that shares are of


@dataclasses.dataclass(frozen=True)
class EntailmentArm:
    """One way to train tasks.

    Attributes:
      method: how; its number of slots, above 0, and what they begin as follow from the tasks.
      start: the stage whose encoder is taken; None is the one that the study begins with.
      optimizer: its schedule's peak is multiplied by each of `rates`.
      rates: which dev examples select from, per task and split.
      steps, rows: updates, and each slice's rows in a batch.
      eval_every: after how many steps dev examples are asked whether to keep what was reached.
    """

    method: Entailment = Entailment()
    start: str | None = None
    optimizer: Optimizer = Optimizer("adamw", Schedule(1.0, "linear"), clip_norm=1.0)
    rates: tuple[float, ...] = (3e-4, 1e-3)
    steps: int = 250
    rows: int = 8
    eval_every: int = 25

    def __post_init__(self):
        object.__setattr__(self, "rates", tuple(self.rates))
        if not self.rates or min(self.steps, self.rows, self.eval_every) < 1:
            raise UserError("EntailmentArm needs a rate at least, and steps, rows and eval_every of at least 1.")


class Split(NamedTuple):
    """A task's examples: of which split, and rows to train on and to select on. whole: those trained on with every
    description, as the test has them."""

    task: str
    seed: int
    digest: str
    train: Rows
    dev: Rows
    whole: Rows

    @property
    def name(self) -> str:
        return f"{self.task}.{self.seed}"


class Slots(NamedTuple):
    """Of every slice of a bank: words [N][W], what each vector begins as; like [N], the token that bounds what is drawn; rows
    [N, S], the vector that each place in a text reads, so that tied words share one."""

    words: tuple[tuple[int | None, ...], ...]
    like: tuple[int, ...]
    rows: np.ndarray


def slots_of(suite: Suite, tasks: Sequence[str]) -> Slots:
    """Those of some tasks, by name, with places in the text for the widest of the whole suite."""
    v, words, like, rows = suite.vocabulary, [], [], []
    most = max(len(put.words(v)) for put in suite.tasks.values())
    for name in tasks:
        put = suite.tasks[name]
        own, ties = put.words(v), put.ties(v)
        kept = sorted(set(ties))
        words.append(tuple(own[place] for place in kept))
        rows.append([kept.index(place) for place in ties] + [0] * (most - len(ties)))
        # A pair has no label's word; what stands at its extra tokens is the mask.
        like.append(v.encode(f" {put.labels[put.described[0]]}")[0] if put.describes else v.mask_id)
    return Slots(tuple(words), tuple(like), np.array(rows, np.int32).reshape(len(tasks), most))


def columns(batch: Mapping[str, np.ndarray], slots: Slots, most: int) -> dict[str, np.ndarray]:
    """A batch whose task ids are of `slots`, as a method with `most` slots reads it: positions for the task that has most,
    here or not, so that nothing compiles twice."""
    if not most:
        return {name: column for name, column in batch.items() if name != "slot_positions"}
    missing = slots.rows.shape[1] - batch["slot_positions"].shape[1]
    positions = np.pad(batch["slot_positions"], ((0, 0), (0, missing)), constant_values=-1)
    return {**batch, "slot_positions": positions, "slot_rows": slots.rows[batch["task_ids"]]}


@dataclasses.dataclass
class Fitted:
    """Slices as dev examples would have them. right, lost, steps: [N], each one's accuracy on these, its mean loss, and the
    step that it is kept from; -1, infinity and 0 of one that diverged before it was asked. params: what trains, by path,
    as kept. ask: (rows, slice) -> probabilities. facts: of each slice's parameters."""

    right: np.ndarray
    lost: np.ndarray
    steps: np.ndarray
    params: Flat
    ask: Callable[[Rows, int], np.ndarray]
    facts: Sequence[Mapping[str, Any]]

    def key(self, n: int) -> tuple[float, float]:
        """The larger, the better."""
        return float(self.right[n]), -float(self.lost[n])


def fit(
    model: RobertaConfig,
    vocabulary: EncoderVocabulary,
    arm: EntailmentArm,
    method: Entailment,
    base: Flat,
    splits: Sequence[Split],
    slots: Slots,
    rates_N: np.ndarray,
    batch_size: int = 64,
    seed: int = 0,
    tell: Callable[[], Any] = lambda: None,
) -> Fitted:
    """Trains slices side by side, each at its own rate, and keeps each as it was when it did best on its dev examples.

    Args:
      method: with the slots that the widest task has, and `per_task`, but where it trains the encoder: that is one slice.
      base: the encoder's parameters by path.
      splits, slots, rates_N: what each slice trains on, what its slots begin as, and its peak rate.
      batch_size: rows at a time when slices are asked.
      tell: called when a step is done.
    """
    N = len(splits)
    numbered = lambda rows, n: dataclasses.replace(rows, task_ids=np.full(len(rows), n, np.int32))
    joined = lambda part: entailment.join([numbered(getattr(split, part), n) for n, split in enumerate(splits)])

    base = jax.device_put(base)
    begin, step = _step(model, method, arm.optimizer, arm.steps, seed)
    trained, frozen = states.split(base | _begun(model, method, base, splits, slots, seed), method.trainable)
    state = begin(trained, rates_N)

    def ask(answer, params, batch):
        return answer(model, states.unflatten(params, frozen), method, columns(batch, slots, method.slots), batch_size)

    train, dev = RowStream(joined("train"), arm.rows, seed), joined("dev")
    asked = dev.batch(np.arange(len(dev)))
    right, lost, steps = np.full(N, -1.0), np.full(N, np.inf), np.zeros(N, int)
    best = jax.device_get(state.params)
    for number in range(1, arm.steps + 1):
        batch = train.batch(number - 1)
        batch = masked(batch, vocabulary, seed, number) if method.fluency else batch
        state, told = step(state, frozen, columns(batch, slots, method.slots))
        jax.block_until_ready(told)
        tell()
        if number % arm.eval_every and number < arm.steps:
            continue
        now_right, now_lost = _scores(dev, ask(outputs, state.params, asked), N)
        better = (now_right > right) | ((now_right == right) & (now_lost < lost))
        right, lost = np.where(better, now_right, right), np.where(better, now_lost, lost)
        steps = np.where(better, number, steps)
        best = jax.tree.map(functools.partial(_kept, better), jax.device_get(state.params), best)
    size = lambda prefix: sum(leaf.size for path, leaf in best.items() if path.startswith(prefix)) // N
    encoder = sum(leaf.size for path, leaf in base.items() if path.split("/")[1] not in _HEADS)
    kept = functools.cache(lambda: jax.device_put(best))
    test = lambda rows, n: ask(probabilities, kept(), numbered(rows, n).batch(np.arange(len(rows))))
    unused_N = [model.emb_dim * max(method.slots - len(words), 0) for words in slots.words]  # the widest task's slots
    sizes_N = [size("") - unused for unused in unused_N]
    facts = [{"trained": trained, "head": size("method/head/"), "share": trained / encoder} for trained in sizes_N]
    return Fitted(right, lost, steps, best, test, facts)


def _begun(
    model: RobertaConfig, method: Entailment, base: Flat, splits: Sequence[Split], slots: Slots, seed: int
) -> Flat:
    """What each slice begins as, drawn for its task and split, so that dev examples do not choose among draws: the same
    at every rate, in every arm, and whatever is beside it."""
    backbone, made = states.unflatten(base)["backbone"], {}
    for split, words, like in zip(splits, slots.words, slots.like):
        if split.name not in made:
            own = dataclasses.replace(method, initialiser=Tokens((words,), (like,))) if method.slots else method
            key = jax.random.fold_in(jax.random.key(seed), np.uint32(name_keys([split.name])[0] >> np.uint64(32)))
            made[split.name] = states.flatten({"method": own.init(key, Setting(model, (split.task,), backbone))})
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(made[split.name] for split in splits))


def _kept(better_N: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The new values of the slices that are better; one slice may come with what is no bank."""
    return np.where(better_N.reshape(-1, *[1] * (new.ndim - 1)) if len(better_N) > 1 else better_N[0], new, old)


def _scores(rows: Rows, entails_R: np.ndarray, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Each slice's accuracy and its rows' mean loss, [N]; -1 and infinity where some output is not a number."""
    slice_E = np.zeros(len(rows.gold), int)
    slice_E[rows.example] = rows.task_ids
    right_E = entailment.predictions(rows, entails_R) == rows.gold
    chosen_R = np.where(rows.labels == 1, entails_R, 1 - entails_R)
    mean = lambda ids, values: np.bincount(ids, values, N) / np.maximum(np.bincount(ids, minlength=N), 1)
    lost_N = mean(rows.task_ids, -np.log(np.maximum(chosen_R, 1e-12)))
    return np.where(np.isnan(lost_N), -1.0, mean(slice_E, right_E)), np.where(np.isnan(lost_N), np.inf, lost_N)


@functools.lru_cache(maxsize=2)
def _step(model: RobertaConfig, method: Entailment, optimizer: Optimizer, steps: int, seed: int):
    """(compiled (parameters, rates [N]) -> state, compiled step), kept for the next slices."""
    tx = _at_rates(optimizer.build(steps, method.banked), method.banked)

    def begin(params: Flat, rates_N: jax.Array) -> states.State:
        state = states.create(params, tx)
        return dataclasses.replace(state, opt_state=(state.opt_state[0], rates_N))

    made = make_train_step(model, method, tx, optimizer.schedule.build(steps), Loss(z_loss=0.0), seed=seed)
    return jax.jit(begin), jax.jit(made, donate_argnums=0)


def _at_rates(
    tx: optax.GradientTransformationExtraArgs, banked: Callable[[str], bool]
) -> optax.GradientTransformationExtraArgs:
    """Multiplies every slice's updates by its own rate, [N] beside the optimizer's state; what is no bank, which then is
    trained with one slice, by that one's."""

    def init(params):
        return tx.init(params), jnp.ones(1)

    def update(updates, state, params=None, **extra):
        inner, rates_N = state
        moved, inner = tx.update(updates, inner, params, **extra)
        of = lambda path, leaf: rates_N.reshape(-1, *[1] * (leaf.ndim - 1)) if banked(path) else rates_N[0]
        return {path: of(path, leaf) * leaf for path, leaf in moved.items()}, (inner, rates_N)

    return optax.GradientTransformationExtraArgs(init, update)
