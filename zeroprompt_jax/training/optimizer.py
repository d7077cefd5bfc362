"""Optimizers and schedules: optax, with T5's settings as defaults."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from zeroprompt_jax.errors import UserError, check_range, unknown

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
OPTIMIZERS = ("adafactor", "adamw", "muon", "sgd")
# What only some of them read.
_READERS = {
    "b1": ("adamw", "muon"),
    "b2": ("adamw", "muon"),
    "momentum": ("adafactor", "sgd"),
    "decay_rate": ("adafactor",),
    "decay_offset": ("adafactor",),
    "decay_offsets": ("adafactor",),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over steps: linear warm-up to `peak`, then constant, linear or cosine decay to zero at the last
    step, or T5 pretraining's rsqrt: peak * sqrt(max(warmup, 1) / step)."""

    peak: float = 1e-3
    kind: str = "constant"
    warmup_steps: int = 0

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise unknown("schedule", self.kind, SCHEDULES)
        check_range(self, "peak", above=0)
        check_range(self, "warmup_steps", 0)

    def build(self, total_steps: int) -> Callable[[jax.Array], jax.Array]:
        if self.kind in ("linear", "cosine") and total_steps <= self.warmup_steps:
            raise UserError(
                f"Schedule.warmup_steps is {self.warmup_steps}, but training has only {total_steps} steps: set "
                f"Schedule.warmup_steps to {total_steps // 10}, for instance."
            )

        def rate(step):
            step = jnp.asarray(step, jnp.float32)
            warm = jnp.minimum(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            left = jnp.clip((total_steps - step) / max(total_steps - self.warmup_steps, 1), 0.0, 1.0)
            decay = {
                "constant": lambda: 1.0,
                "linear": lambda: left,
                "cosine": lambda: 0.5 * (1 - jnp.cos(jnp.pi * left)),
                "rsqrt": lambda: jnp.sqrt(max(self.warmup_steps, 1) / jnp.maximum(step + 1, max(self.warmup_steps, 1))),
            }[self.kind]()
            return self.peak * warm * decay

        return rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """adafactor (default, T5's settings: decay 0.8, update clipping 1.0, steps relative to the parameter's scale,
    factored second moments), adamw, muon or sgd.

    muon (Jordan et al. 2024) orthogonalises the update of every kernel of a layer, here with three Newton-Schulz steps;
    what is not such a matrix (embeddings, position biases, scales) trains by adamw with Nesterov momentum.

    b1, b2: of adamw and of muon's adamw. momentum: of adafactor and sgd; None is off. decay_rate: of adafactor.

    clip_norm: of the whole gradient (in a bank of each task's), before the optimizer; None is off. multipliers: path
    regex -> factor of the learning rate for the parameters it fully matches; the first match counts.

    decay_offset, of adafactor: the second moments decay at step n as at step n - decay_offset of a fresh run; so -N goes
    on where training of N steps ended. decay_offsets: path regex -> another offset, such as {'method/.*': 0} for a fresh
    hypernetwork on a backbone of 1,100,000 steps (HINT; T5X counts on from the checkpoint's step, so there it is the
    hypernetwork that has an offset). A checkpoint brings parameters, not moments: those begin at zero whatever the offset.
    """

    name: str = "adafactor"
    schedule: Schedule = Schedule()
    weight_decay: float = 0.0
    clip_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    decay_rate: float = 0.8
    decay_offset: int = 0
    decay_offsets: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    momentum: float | None = None
    multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)
        for regex, factor in self.multipliers.items():
            if factor < 0:
                raise UserError(f"Optimizer.multipliers['{regex}'] is {factor}; a learning rate cannot be negative.")
        check_range(self, "clip_norm", above=0)
        check_range(self, "weight_decay decay_rate", 0)
        check_range(self, "b1 b2 momentum", 0, below=1)
        for field, readers in _READERS.items():
            if self.name not in readers and getattr(self, field) != getattr(Optimizer, field, {}):
                of = " and ".join(readers)
                raise UserError(f"Optimizer.{field} is of {of}; the optimizer {self.name} would ignore it. Leave it out.")
        for offset in (self.decay_offset, *self.decay_offsets.values()):
            if offset > 0:
                raise UserError(
                    f"Optimizer.decay_offset is {offset}; a run counts its steps from 0, so it is 0 or, to go on after N "
                    f"steps, -N."
                )

    def build(
        self, total_steps: int, banked: Callable[[str], bool] = lambda path: False
    ) -> optax.GradientTransformationExtraArgs:
        """The optax transformation over a flat dict of parameters named by path.

        The slices of what is `banked`, [N, …], train each as if it were alone, clipping included, and `update` takes
        `present`, [N] bool: what is absent does not move, state included. The rest trains, and is clipped, together.
        """
        rate = self.schedule.build(total_steps)

        def kinds(params):
            _check_regexes("decay_offsets", self.decay_offsets, params)
            return {path: "bank" if banked(path) else "rest" for path in params}

        return optax.partition({"bank": _per_task(self._build, rate), "rest": self._build(rate)}, kinds)

    def _build(self, rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
        multiplied = [_scaled_by_path(self.multipliers)] * bool(self.multipliers)
        if self.name == "adamw":
            tx = optax.adamw(rate, self.b1, self.b2, weight_decay=self.weight_decay)
        elif self.name == "muon":
            tx = optax.contrib.muon(
                rate,
                ns_steps=3,
                weight_decay=self.weight_decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_weight_decay=self.weight_decay,
                adam_learning_rate=rate,
                muon_weight_dimension_numbers=_matrices,
            )
        elif self.name == "sgd":
            tx = optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, self.momentum))
        else:
            tx, multiplied = self._adafactor(rate, self.decay_offset), []  # which multiplies on its own
            if self.decay_offsets:
                offset = lambda path: str(_first_match(self.decay_offsets, path, self.decay_offset))
                every = {self.decay_offset, *self.decay_offsets.values()}
                tx = optax.partition(
                    {str(n): self._adafactor(rate, n) for n in every}, lambda params: {path: offset(path) for path in params}
                )
        clipped = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clipped, tx, *multiplied) if clipped or multiplied else tx

    def _adafactor(self, rate: Callable[[jax.Array], jax.Array], decay_offset: int) -> optax.GradientTransformation:
        # As optax.adafactor chains it, but for the parameters' scale.
        adafactor = _scaled_by_parameters(
            optax.chain(
                optax.scale_by_factored_rms(decay_rate=self.decay_rate, step_offset=decay_offset),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_learning_rate(rate, flip_sign=False),
            ),
            optax.chain(
                *[optax.ema(self.momentum, debias=False, accumulator_dtype=jnp.float32)] * (self.momentum is not None),
                *[optax.add_decayed_weights(self.weight_decay)] * bool(self.weight_decay),
                optax.scale(-1),
                *[_scaled_by_path(self.multipliers)] * bool(self.multipliers),
            ),
        )
        # A scanned stack must train as its layers would one by one: Adafactor's factors, clipping and parameter scale are
        # statistics of a whole leaf, so each layer's slice gets its own.
        each = over_leading_axis(adafactor)
        return optax.partition({"encoder": each, "decoder": each, "rest": adafactor}, _stacks)


def _first_match(by_regex: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first regex that fully matches a path."""
    return next((x for regex, x in by_regex.items() if re.fullmatch(regex, path)), default)


def _check_regexes(option: str, regexes: Iterable[str], paths: Iterable[str]) -> None:
    """Raises UserError for a regex without any path: it is never what was meant."""
    for regex in regexes:
        if not any(re.fullmatch(regex, path) for path in paths):
            raise UserError(f"Optimizer.{option}: '{regex}' matches no parameter that trains.")


def _matrices(params: dict[str, jax.Array]) -> dict[str, MuonDimensionNumbers | None]:
    """What Muon orthogonalises: the two last axes of kernels, for each layer of a scanned stack on its own."""
    matrix = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return {path: matrix if path.endswith("/kernel") else None for path in params}


def _scaled_by_path(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the first regex that fully matches their path."""

    def init(params):
        _check_regexes("multipliers", multipliers, params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        times = lambda path, tree: jax.tree.map(lambda leaf: _first_match(multipliers, path, 1.0) * leaf, tree)
        return {path: times(path, x) for path, x in updates.items()}, state  # what is masked has no leaves

    return optax.GradientTransformation(init, update)


class ScaledState(NamedTuple):
    """scales: each parameter's root mean square, at least 1e-3, as the last update left it; before, after: of what is run
    before and after updates are multiplied by it."""

    scales: Any
    before: Any
    after: Any


def _scaled_by_parameters(
    before: optax.GradientTransformation, after: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Multiplies updates by their parameter's root mean square, as optax.scale_by_param_block_rms.

    That one reads every parameter again, by XLA's estimate for TPUs a fifth of Adafactor's cycles. Here an update leaves
    the scale for the next, while the new parameter is at hand, so that nothing else may change parameters in between."""

    def scales(params):
        return jax.tree.map(lambda leaf: jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(leaf))), 1e-3), params)

    def init(params):
        return ScaledState(scales(params), before.init(params), after.init(params))

    def update(updates, state, params=None):
        moved, first = before.update(updates, state.before, params)
        moved, last = after.update(jax.tree.map(jnp.multiply, moved, state.scales), state.after, params)
        return moved, ScaledState(scales(optax.apply_updates(params, moved)), first, last)

    return optax.GradientTransformation(init, update)


def _stacks(params: dict[str, jax.Array]) -> dict[str, str]:
    """Which stack's scanned layers a parameter belongs to: stacks may differ in their number of layers."""
    found = {path: re.search(r"(encoder|decoder)/layers/", path) for path in params}
    return {path: match[1] if match else "rest" for path, match in found.items()}


def over_leading_axis(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `tx` independently on every slice of the leaves' shared leading axis (layers of a stack, tasks of a bank)."""

    def init(params):
        # With no leaf there is no axis to map over, and nothing to remember.
        return jax.vmap(tx.init)(params) if jax.tree.leaves(params) else optax.EmptyState()

    def update(updates, state, params=None):
        if not jax.tree.leaves(updates):
            return updates, state
        return jax.vmap(tx.update)(updates, state, params)

    return optax.GradientTransformation(init, update)


class PerTaskState(NamedTuple):
    """count: int32 scalar, all updates; inner: each task's own state, [N, …], which counts that task's updates only."""

    count: jax.Array
    inner: Any


def _per_task(
    make: Callable[[Callable], optax.GradientTransformation], rate: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Runs `make(rate)` independently on every task's slice of a bank; absent tasks stay as they are, to the bit.

    The learning rate follows the whole run's step, as a task that is drawn now and then would never see it decay.
    """

    def init(params):
        return PerTaskState(jnp.zeros((), jnp.int32), over_leading_axis(make(rate)).init(params))

    def update(updates, state, params=None, *, present=None, **extra):
        del extra
        now = over_leading_axis(make(lambda _: rate(state.count)))
        moved, inner = now.update(updates, state.inner, params)
        if present is not None:
            own = lambda leaf: present.reshape(-1, *[1] * (leaf.ndim - 1))
            # Adding -0.0 changes no float, while adding 0.0 would change -0.0.
            moved = jax.tree.map(lambda x: jnp.where(own(x), x, -0.0), moved)
            inner = jax.tree.map(lambda new, old: jnp.where(own(new), new, old), inner, state.inner)
        return moved, PerTaskState(state.count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)
