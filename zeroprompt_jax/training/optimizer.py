"""Optimizers and schedules: optax, with T5's settings as defaults."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from zeroprompt_jax.errors import UserError, unknown

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
OPTIMIZERS = ("adafactor", "adamw", "sgd")


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

    def build(self, total_steps: int) -> Callable[[jax.Array], jax.Array]:
        if self.kind in ("linear", "cosine") and total_steps <= self.warmup_steps:
            raise UserError(f"Schedule.warmup_steps is {self.warmup_steps}, but training has only {total_steps} steps.")

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
    factored second moments), adamw or sgd. clip_norm: of the whole gradient, before the optimizer; None is off."""

    name: str = "adafactor"
    schedule: Schedule = Schedule()
    weight_decay: float = 0.0
    clip_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    decay_rate: float = 0.8
    decay_offset: int = 0
    momentum: float | None = None

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The optax transformation over a flat dict of parameters named by path."""
        rate = self.schedule.build(total_steps)
        if self.name == "adamw":
            tx = optax.adamw(rate, self.b1, self.b2, weight_decay=self.weight_decay)
        elif self.name == "sgd":
            tx = optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, self.momentum))
        else:
            adafactor = optax.adafactor(
                rate,
                decay_rate=self.decay_rate,
                decay_offset=self.decay_offset,
                momentum=self.momentum,
                weight_decay_rate=self.weight_decay or None,
            )
            # A scanned stack must train as its layers would one by one: Adafactor's factors, clipping and parameter
            # scale are statistics of a whole leaf, so each layer's slice gets its own.
            each = over_leading_axis(adafactor)
            tx = optax.partition({"encoder": each, "decoder": each, "rest": adafactor}, _stacks)
        return tx if self.clip_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_norm), tx)


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
