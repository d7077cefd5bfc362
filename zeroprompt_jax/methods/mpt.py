"""Multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861): one shared prompt, a low-rank update for each task.

The prompt of task k is P* ∘ (U_k V_k): the shared P* [P, D] times, element by element, a matrix of rank R. For R = 1 this
is a gain for each position times a gain for each feature.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods import distillation
from zeroprompt_jax.methods.bank import Bank, take
from zeroprompt_jax.methods.base import Run, Setting
from zeroprompt_jax.methods.distillation import Distillation
from zeroprompt_jax.methods.initialisers import Initialiser, SampledVocabulary
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models.conditioning import Conditioning, Stack

Array = jax.Array
Factors = tuple[Array, Array]


def prompts(shared: Array, u: Array, v: Array) -> Array:
    """P_k = P* ∘ (U_k V_k) for every task (§3.1), [N, P, D], from shared [P, D] or [N, P, D], u [N, P, R], v [N, R, D]."""
    return shared * (u @ v)


def near_one(rng: Array, N: int, P: int, D: int, R: int) -> Factors:
    """Factors whose product is one, give or take 2 %: every task starts from the shared prompt."""
    keys = jax.random.split(rng)
    u = (1 + 0.02 * jax.random.normal(keys[0], (N, P, R))) / R
    return u, 1 + 0.02 * jax.random.normal(keys[1], (N, R, D))


def near_zero(rng: Array, N: int, P: int, D: int, R: int) -> Factors:
    """PEFT's factors, N(0, 0.02²): the product is about 4e-4, so that a task starts with hardly any prompt."""
    keys = jax.random.split(rng)
    return 0.02 * jax.random.normal(keys[0], (N, P, R)), 0.02 * jax.random.normal(keys[1], (N, R, D))


def ones(rng: Array | None, N: int, P: int, D: int, R: int) -> Factors:
    """Factors whose product is exactly one: every task's prompt is the shared one."""
    del rng
    return jnp.full((N, P, R), 1.0 / R), jnp.ones((N, R, D))


FACTORS = {"near_one": near_one, "near_zero": near_zero, "ones": ones}

# Where a target task's factors start from the source tasks' (stage 2, §3.3). Each takes (u [K, P, R], v [K, R, D]).


def mean_of_factors(u_KPR: Array, v_KRD: Array) -> Factors:
    """The mean of the factors, as published. It depends on signs and scales that no source prompt depends on: (u, v) and
    (-u, -v) are one update, and their mean is none."""
    return u_KPR.mean(0), v_KRD.mean(0)


def gauge_fixed_mean(u_KPR: Array, v_KRD: Array) -> Factors:
    """The mean of the factors after each pair is written in one way: equal norms of u and v, and a positive mean of u
    (of v, where u's is zero)."""
    norm = lambda x, axis: jnp.sqrt(jnp.sum(x**2, axis, keepdims=True))
    u_norm, v_norm = norm(u_KPR, 1), jnp.swapaxes(norm(v_KRD, 2), 1, 2)  # [K, 1, R]
    balance = jnp.sqrt(v_norm / jnp.maximum(u_norm, 1e-30))
    totals = u_KPR.sum(1, keepdims=True), jnp.swapaxes(v_KRD.sum(2, keepdims=True), 1, 2)
    sign = jnp.where(jnp.where(totals[0] == 0, totals[1], totals[0]) < 0, -1.0, 1.0)
    gauge = sign * balance
    return (u_KPR * gauge).mean(0), (v_KRD / jnp.swapaxes(gauge, 1, 2)).mean(0)


def svd_of_mean(u_KPR: Array, v_KRD: Array) -> Factors:
    """The best rank-R factors of the mean update, mean_k U_k V_k, which depends on no sign or scale."""
    R = u_KPR.shape[-1]
    left, values, right = jnp.linalg.svd((u_KPR @ v_KRD).mean(0), full_matrices=False)
    root = jnp.sqrt(values[:R])
    return left[:, :R] * root, root[:, None] * right[:R]


STARTS = {"mean": mean_of_factors, "gauge_fixed": gauge_fixed_mean, "svd": svd_of_mean}
_OTHERS = ("ones", "random", "task:NAME")


@dataclasses.dataclass(frozen=True)
class MPT(Bank):
    """Multitask prompt tuning, both stages.

    Stage 1, source training: give `teachers`, a run that trained one prompt for each of the same tasks, and their prompts
    are distilled (`distillation`). Stage 2, a target: give `source`, a run of stage 1, and `start`.

    Attributes:
      length: P.
      rank: R.
      initialiser: of the shared prompt, where there is no source.
      factors: `near_one`, PEFT's `near_zero`, or exactly `ones`; where there is no source.
      source: MODEL_DIR of the run whose shared prompt and factors a target starts from.
      start: of the factors: gauge_fixed, mean (as published), svd, ones, random (as `factors`), or task:NAME, one
        source task's.
      train_shared: whether the shared prompt trains (as in the paper, for a target too), or the factors alone.
      copies: each task trains a copy of the shared prompt for itself, as targets do one by one; otherwise all tasks of
        the run share it, as sources and multi-target adaptation do.
      teachers: MODEL_DIR of a prompt-tuning run with per_task parameters for the same tasks.
      distillation: what of the teachers is imitated, and how much it weighs.
    """

    per_task: bool = dataclasses.field(default=True, kw_only=True)
    length: int = 100
    rank: int = 1
    initialiser: Initialiser = SampledVocabulary()
    factors: str = "near_one"
    source: str | None = None
    start: str = "gauge_fixed"
    train_shared: bool = True
    copies: bool = False
    teachers: str | None = None
    distillation: Distillation = Distillation()

    def __post_init__(self):
        if self.length < 1 or self.rank < 1:
            raise UserError(f"MPT needs length and rank of at least 1, not {self.length} and {self.rank}.")
        if self.factors not in FACTORS:
            raise unknown("MPT.factors", self.factors, FACTORS)
        if self.start not in (*STARTS, "ones", "random") and not self.start.startswith("task:"):
            raise unknown("MPT.start", self.start, (*STARTS, *_OTHERS))

    @property
    def trainable(self):
        return (r"method/[uv]", *([r"method/shared"] if self.train_shared else []))

    @property
    def reads_hidden(self):
        return self.teachers is not None and self.distillation.hidden > 0

    def init(self, rng, setting):
        shared_rng, factor_rng = jax.random.split(rng)
        N, P, D, R = self.slices(setting), self.length, setting.config.emb_dim, self.rank
        u, v = FACTORS[self.factors](factor_rng, N, P, D, R)
        if self.source is None:
            shared = self.initialiser.make(shared_rng, setting, (1, P, D))[0]
        else:
            shared, (u, v) = self._from_source(setting, (u, v))
        shared = jnp.tile(shared[None], (N, 1, 1)) if self.copies else shared
        params = {"shared": shared, "u": u, "v": v}
        if self.teachers is not None:
            params["teacher"] = self._teachers(setting)
        return params

    def _from_source(self, setting: Setting, random: Factors) -> tuple[Array, Factors]:
        found = _run(setting, "source", self.source, "mpt_source")
        P, D, R = self.length, setting.config.emb_dim, self.rank
        wanted = {"shared": (P, D), "u": ("K", P, R), "v": ("K", R, D)}
        _check(found.params, wanted, f"MPT.source '{self.source}'")
        shared, u, v = (jnp.asarray(found.params[name]) for name in wanted)
        N = random[0].shape[0]
        if self.start == "random":
            return shared, random
        if self.start == "ones":
            one = tuple(x[0] for x in ones(None, 1, P, D, R))
        elif self.start.startswith("task:"):
            name = self.start.removeprefix("task:")
            if name not in found.tasks:
                raise unknown("source task in MPT.start", name, found.tasks)
            one = u[found.tasks.index(name)], v[found.tasks.index(name)]
        else:
            one = STARTS[self.start](u, v)
        return shared, tuple(jnp.tile(x[None], (N, 1, 1)) for x in one)

    def _teachers(self, setting: Setting) -> Array:
        found = _run(setting, "teachers", self.teachers, "mpt_teachers")
        _check(found.params, {"prompt": ("K", "P", setting.config.emb_dim)}, f"MPT.teachers '{self.teachers}'")
        for task in setting.tasks:
            if task not in found.tasks:
                raise unknown("task among MPT.teachers", task, found.tasks)
        return jnp.stack([jnp.asarray(found.params["prompt"][found.tasks.index(task)]) for task in setting.tasks])

    def logical_axes(self, path):
        return {
            "shared": (*["task"] * self.copies, "prompt", "prompt_embed"),
            "u": ("task", "prompt", "rank"),
            "v": ("task", "rank", "prompt_embed"),
            "teacher": ("task", "prompt", "prompt_embed"),
        }[path]

    def build(self, groups):
        return Conditioning(encoder=Stack(prompt=prompts(groups["shared"], groups["u"], groups["v"])))

    def losses(self, params, batch, outputs, backbone):
        if self.teachers is None:
            return {}
        teacher = take(params["teacher"], batch["task_ids"]) if self.per_task else params["teacher"]
        taught = Conditioning(encoder=Stack(prompt=teacher))
        return distillation.losses(self.distillation, batch, outputs, taught, backbone)


    def fold(self, params):
        """The ordinary prompts that the shared one and the factors make, which infer as fast as prompt tuning."""
        made = prompts(params["shared"], params["u"], params["v"])
        return Prompt(length=self.length, per_task=self.per_task), {"prompt": made}


def _run(setting: Setting, option: str, path: str, example: str) -> Run:
    """What the run trained that this stage begins with; `example` is an experiment that trains such a run."""
    try:
        return setting.run(path)
    except UserError as e:
        raise UserError(f"MPT.{option} '{path}' must be trained first, as experiments/{example}.gin trains one: {e}") from None


def _check(params: Mapping[str, Any], wanted: Mapping[str, Sequence[Any]], what: str) -> None:
    for name, shape in wanted.items():
        if name not in params:
            raise UserError(f"{what} has no parameter '{name}'; it has {', '.join(sorted(params))}.")
        found = params[name].shape
        if len(found) != len(shape) or any(isinstance(w, int) and w != s for w, s in zip(shape, found)):
            shown = ", ".join(map(str, shape))
            raise UserError(f"{what}: its '{name}' has shape {list(found)}, and this method needs [{shown}].")
