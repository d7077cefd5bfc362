"""Soft prompts for multitask pretraining: a task's prompt is composed of slices for its factors.

A factor is what tasks share or differ in: `shared` (all tasks), `task` (the task itself) and the facts of its card, `type`,
`domain`, `family` and `labels` (its set of answer options). Every value of a factor that a training task has owns a slice
of one bank, and each factor owns one slice more for values that training does not have: the prompt of the "unknown task",
which is trained by leaving out task ids at random. `shared` has that slice alone. An unseen task reads the slices of the
values that it shares with training tasks, so that its prompt is composed of trained parts.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.bank import take
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.initialisers import Initialiser, SampledVocabulary, Uniform
from zeroprompt_jax.models.conditioning import Conditioning, Stack

Array = jax.Array
FACTORS = ("shared", "task", "type", "domain", "family", "labels")
UNSEEN = ("unknown", "mean")

# How the slices of F factors become prompts. The four ways are those of the multitask prompts of the public prompt-tuning
# repository (google-research/prompt-tuning), for any number of factors.


def prepend(slices_BFPD: Array) -> Array:
    """One factor's vectors after the other's, [B, F P, D]."""
    B, F, P, D = slices_BFPD.shape
    return slices_BFPD.reshape(B, F * P, D)


def add(slices_BFPD: Array) -> Array:
    """The sum, [B, P, D]."""
    return slices_BFPD.sum(1)


def concatenate(slices_BFPE: Array) -> Array:
    """Each factor gives E of the features, in order: [B, P, F E]."""
    B, F, P, E = slices_BFPE.shape
    return jnp.swapaxes(slices_BFPE, 1, 2).reshape(B, P, F * E)


def project(slices_BFWD: Array, base_PW: Array) -> Array:
    """What all tasks share, mapped by the sum of the factors' affine maps, of which the last row is the bias: [B, P, D].
    base: [P, W - 1]."""
    map_BWD = slices_BFWD.sum(1)
    return base_PW @ map_BWD[:, :-1] + map_BWD[:, -1:]


COMBINE = {"prepend": prepend, "add": add, "concatenate": concatenate, "project": project}


@dataclasses.dataclass(frozen=True)
class SoftPrompt(Method):
    """A soft prompt before the encoder's input, composed of factors, and the backbone, trained together.

    Whether it stands alone or beside the hard prompt is the data's choice (`Data.instruct_inputs`).

    Attributes:
      length: P, vectors of a prompt; with `prepend` of every factor's.
      factors: of `FACTORS`; none is no soft prompt.
      combine: prepend, add, concatenate (by feature) or project.
      unseen: what stands in for a value that no training task has: the factor's `unknown` slice, which needs dropout
        to be trained, or the `mean` of what the training tasks of its type read for this factor, of all training tasks
        where its type is new too. It may be changed after training.
      dropout: share of the rows and factors of a training batch that read the unknown slice instead of their own, drawn
        independently.
      width: of the shared vectors that `project` maps to the width of the model.
      initialiser: of all parameters.
      train_backbone: whether the backbone trains too, or the soft prompts alone.
    Parameters: `parts`, the bank [N, P, D] ([N, P, D / F] to concatenate, [N, width + 1, D] to project): first the unknown
    slices in the order of the factors, then each factor's values, sorted. `base`, [P, width], to project.
    """

    length: int = 20
    factors: tuple[str, ...] = ("shared", "task")
    combine: str = "add"
    unseen: str = "unknown"
    dropout: float = 0.1
    width: int = 16
    initialiser: Initialiser = Uniform()
    train_backbone: bool = True

    def __post_init__(self):
        factors = (self.factors,) if isinstance(self.factors, str) else tuple(self.factors)
        object.__setattr__(self, "factors", factors)
        for factor in factors:
            if factor not in FACTORS:
                raise unknown("factor in SoftPrompt.factors", factor, FACTORS)
        if len(set(factors)) < len(factors):
            raise UserError(f"SoftPrompt.factors repeats a factor: {', '.join(factors)}.")
        if not factors and not self.train_backbone:
            raise UserError("SoftPrompt without factors and without train_backbone has nothing to train.")
        if self.combine not in COMBINE:
            raise unknown("SoftPrompt.combine", self.combine, COMBINE)
        if self.unseen not in UNSEEN:
            raise unknown("SoftPrompt.unseen", self.unseen, UNSEEN)
        if self.length < 1 or self.width < 1:
            raise UserError(f"SoftPrompt needs length and width of at least 1, not {self.length} and {self.width}.")
        if not isinstance(self.initialiser, (Uniform, SampledVocabulary)):
            raise UserError(
                f"SoftPrompt cannot start from {type(self.initialiser).__name__}, as its vectors belong to factors and not "
                f"to tasks; use Uniform or SampledVocabulary."
            )
        if not 0 <= self.dropout <= 1:
            raise UserError(f"SoftPrompt.dropout is {self.dropout}; it must be from 0 to 1.")

    @property
    def per_task(self):
        return any(factor != "shared" for factor in self.factors)

    @property
    def trainable(self):
        return (*[r"backbone/.*"] * self.train_backbone, *[r"method/.*"] * bool(self.factors))

    def init(self, rng, setting):
        if not self.factors:
            return {}
        N = len(self.factors) + sum(map(len, self._slices(setting)))
        P, D, F = self.length, setting.config.emb_dim, len(self.factors)
        if self.combine == "concatenate" and D % F:
            raise UserError(
                f"SoftPrompt cannot concatenate {F} factors to vectors of {D} features: {F} must divide {D}."
            )
        shape = {"concatenate": (N, P, D // F), "project": (N, self.width + 1, D)}.get(self.combine, (N, P, D))
        keys = jax.random.split(rng)
        params = {"parts": self._draw(keys[0], setting, shape)}
        if self.combine == "project":
            params["base"] = self._draw(keys[1], setting, (1, P, self.width))[0]
        return params

    def _draw(self, rng: Array, setting: Setting, shape: tuple[int, int, int]) -> Array:
        made = self.initialiser.make(rng, setting, shape)
        if made.shape != shape:
            name = type(self.initialiser).__name__
            raise UserError(
                f"SoftPrompt.initialiser {name} makes vectors of {made.shape[-1]} features; to {self.combine}, they need "
                f"{shape[-1]}: use Uniform."
            )
        return made

    def logical_axes(self, path):
        return {"parts": ("task", "prompt", "prompt_embed"), "base": ("prompt", "prompt_embed")}[path]

    def _slices(self, setting: Setting) -> list[dict[str, int]]:
        """For each factor: value to its place in the bank. It depends on which tasks train, not on their order."""
        out, start = [], len(self.factors)
        for factor in self.factors:
            values = sorted({_value(setting, task, factor) for task in setting.tasks} - {None})
            out.append({value: start + i for i, value in enumerate(values)})
            start += len(values)
        return out

    def places(self, setting):
        slices, kinds, F = self._slices(setting), _kinds(setting), len(self.factors)
        N = F + sum(map(len, slices))
        trained = set(setting.tasks)

        def place(task: str) -> tuple[int, ...]:
            kind = kinds.get(_value(setting, task, "type"), len(kinds))
            first = N + F * kind if self.unseen == "mean" and task not in trained else 0
            own = [found.get(_value(setting, task, factor)) for factor, found in zip(self.factors, slices)]
            missing = [f if factor == "shared" else first + f for f, factor in enumerate(self.factors)]
            return tuple(m if slot is None else slot for slot, m in zip(own, missing))

        return {task: place(task) for task in dict.fromkeys((*setting.tasks, *setting.facts))}

    def extend(self, params, setting):
        if self.unseen != "mean" or not self.per_task:
            return params
        places, kinds = self.places(setting), _kinds(setting)
        table_NF = np.array([places[task] for task in setting.tasks], np.int32)
        kind_N = np.array([kinds.get(_value(setting, task, "type"), len(kinds)) for task in setting.tasks])
        rows = [*(np.flatnonzero(kind_N == kind) for kind in kinds.values()), np.arange(len(kind_N))]
        means = [take(params["parts"], table_NF[own]).mean(0) for own in rows]
        return {**params, "parts": jnp.concatenate([params["parts"], *means])}

    def draw(self, batch, rng):
        if not self.per_task or not self.dropout:
            return batch
        ids_BF = batch["task_ids"]
        dropped_BF = jax.random.bernoulli(rng, self.dropout, ids_BF.shape)
        return {**batch, "task_ids": jnp.where(dropped_BF, jnp.arange(ids_BF.shape[1]), ids_BF)}

    def condition(self, params, batch, backbone):
        if not self.factors:
            return Conditioning()
        parts, F = params["parts"], len(self.factors)
        if self.per_task and "task_ids" in batch:
            slices = take(parts, batch["task_ids"])
        else:  # a text of no task is one of an unseen task of a new type
            slices = (parts[-F:] if self.unseen == "mean" else parts[:F])[None]
        shared = [params["base"]] if self.combine == "project" else []
        return Conditioning(encoder=Stack(prompt=COMBINE[self.combine](slices, *shared)))


def _value(setting: Setting, task: str, factor: str) -> str | None:
    """A task's value of a factor; None where it has none, as of `shared`."""
    return task if factor == "task" else setting.facts.get(task, {}).get(factor)


def _kinds(setting: Setting) -> Mapping[str, int]:
    """The types of the training tasks, numbered."""
    found = sorted({_value(setting, task, "type") for task in setting.tasks} - {None})
    return {kind: n for n, kind in enumerate(found)}
