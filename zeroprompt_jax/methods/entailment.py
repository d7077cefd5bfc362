"""Differentiable entailment: tasks as entailment, with trained template and label tokens and a head per task (Kim et al.
2023, arXiv 2301.13345).

A row is a text and a description of a class, and its label is whether the text entails it. What is trained of a task is a few
rows of token embeddings, in a table of their own, and a head on the first token's last state, so that one pass of a frozen
encoder serves rows of any tasks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.methods.base import Batch, Setting
from zeroprompt_jax.methods.initialisers import Initialiser, SampledVocabulary
from zeroprompt_jax.models.conditioning import Conditioning, matmul
from zeroprompt_jax.models.objectives import cross_entropy
from zeroprompt_jax.models.roberta import Backbone, RobertaConfig

Array = jax.Array
HEADS = ("fresh", "copied", "shared")


def place_of_entailment(labels: Sequence[str]) -> int:
    """The place of 'entailment' among a classifier's labels, in upper or lower case. UserError where it is not there."""
    found = [place for place, label in enumerate(labels) if label.lower() == "entailment"]
    if len(found) != 1:
        have = f"its labels are {', '.join(labels)}" if labels else "it has no labels"
        raise UserError(
            f"The backbone's classifier does not tell entailment: {have}. Name them in RobertaConfig.labels."
        )
    return found[0]


def collapse(logits_BC: Array, place: int) -> Array:
    """Logits of (not entailed, entailed), [B, 2], float32, with the probability of entailment that C classes gave: the
    others' logits become one by logsumexp."""
    logits = logits_BC.astype(jnp.float32)
    return jnp.stack([jax.nn.logsumexp(jnp.delete(logits, place, axis=-1), axis=-1), logits[:, place]], axis=-1)


@dataclasses.dataclass(frozen=True)
class Entailment(Bank):
    """A bank of slots, [N, S, D], which stand for tokens inside the text, and of heads.

    Batches hold, beside `encoder_input_tokens` [B, T]: `slot_positions` [B, S], where the row's task's slots stand, -1
    being unused; `labels` [B], 1 where the text entails the description and 0 where not; `row_weights` [B], 0 for a row
    that only fills; and perhaps `token_types` [B, T] and `slot_rows` [B, S'], for tokens that share a slot: the token at
    `slot_positions[b, i]`, then [B, S'], is slot `slot_rows[b, i]`.

    The paper's ways to train are: the encoder as well (`train_backbone`), with one task; slots and heads, which is its
    strict parameter efficiency and the default; and here too the head alone (`train_slots` off: slots stay the words that
    they began as) or the slots alone (the head is `shared`).

    Attributes:
      slots: S of the task that has most; 0 leaves texts as they are.
      head: `fresh`, two classes behind a tanh layer, drawn as the backbone's own heads are; `copied`, from the backbone's
        tanh layer and its classifier, whose classes other than entailment count as one; `shared`, the backbone's own,
        which then is frozen unless the backbone trains.
      train_slots, train_backbone: whether these train.
      beside: another bank that conditions the encoder and trains too, such as LoRA, for comparison: one of which every
        parameter trains, each task's from its own rows, without losses of its own.
      fluency: weight of the masked-language-model loss of rows with `mlm_targets` and `mlm_weights`, [B, T], the mean over
        a row's masked tokens. The paper has none; its code may use 0.05.
      initialiser: of the slots; `Tokens` begins with the words that they stand for.
    Parameters: `slots`, [N, S, D]; `head/dense/{kernel, bias}`, [N, D, D] and [N, D]; `head/classifier/{kernel, bias}`,
    [N, D, C] and [N, C], with C = 2, or of a copied head the classifier's; `beside/…`.
    """

    slots: int = 9
    head: str = "fresh"
    train_slots: bool = True
    train_backbone: bool = False
    beside: Bank | None = None
    fluency: float = 0.0
    initialiser: Initialiser = SampledVocabulary()

    targets_in = "labels"
    weights_in = "row_weights"

    def __post_init__(self):
        if self.slots < 0:
            raise UserError(f"Entailment.slots is {self.slots}; it must be at least 0.")
        if self.head not in HEADS:
            raise unknown("Entailment.head", self.head, HEADS)
        if self.fluency < 0:
            raise UserError(f"Entailment.fluency is {self.fluency}; it cannot be negative.")
        if self.beside is not None:
            kind = type(self.beside)
            plain = isinstance(self.beside, Bank) and self.beside.trainable == Bank.trainable
            if not plain or (kind.condition, kind.losses) != (Bank.condition, Bank.losses):
                raise UserError(f"Entailment.beside is {kind.__name__}; use a bank of which all trains, such as LoRA.")
            object.__setattr__(self, "beside", dataclasses.replace(self.beside, per_task=self.per_task))

    @property
    def trainable(self):
        unread = "|".join(["mlm_head/"] * (not self.fluency) + ["pooled_head/"] * (self.head != "shared"))
        return (
            *[rf"backbone/(?!{unread}).*" if unread else r"backbone/.*"] * self.train_backbone,
            *[r"method/slots"] * (self.train_slots and self.slots > 0),
            *[r"method/head/.*"] * (self.head != "shared"),
            *[r"method/beside/.*"] * (self.beside is not None),
        )

    def init(self, rng, setting):
        if not isinstance(setting.config, RobertaConfig):
            raise UserError(
                f"Entailment reads an encoder's first token, and this backbone is a {type(setting.config).__name__}."
            )
        if self.head != "fresh":
            place_of_entailment(setting.config.labels)
        if self.fluency and not setting.config.mlm_head:
            raise UserError("Entailment.fluency needs the masked-language-model head: set RobertaConfig.mlm_head.")
        keys, N = jax.random.split(rng, 3), self.slices(setting)
        params = {}
        if self.slots:
            params["slots"] = self.initialiser.make(keys[0], setting, (N, self.slots, setting.config.emb_dim))
        if self.head != "shared":
            params["head"] = (_copied if self.head == "copied" else _fresh)(keys[1], setting, N)
        if self.beside is not None:
            params["beside"] = self.beside.init(keys[2], setting)
        return params

    def logical_axes(self, path):
        match path.split("/"):
            case ["slots"]:
                return ("task", "prompt", "prompt_embed")
            case ["head", "dense" | "classifier", "kernel"]:
                return ("task", None, None)
            case ["head", "dense" | "classifier", "bias"]:
                return ("task", None)
            case ["beside", *rest] if self.beside is not None:
                return self.beside.logical_axes("/".join(rest))
        return super().logical_axes(path)

    def embedded(self, path):
        return path == "slots"

    def build(self, groups):
        """What stands beside the slots; these have places in the text, which only a batch tells."""
        return Conditioning() if self.beside is None else self.beside.build(groups["beside"])

    def condition(self, params, batch, backbone):
        taken = self.groups({name: leaf for name, leaf in params.items() if name != "head"}, batch)
        made = self.build(taken)
        if not self.slots:
            return made
        if "slot_positions" not in batch:
            raise UserError("Entailment reads where slots stand from 'slot_positions', which the batch does not have.")
        slots_GSD = taken["slots"]
        if "slot_rows" in batch:
            slots_GSD = jnp.take_along_axis(slots_GSD, batch["slot_rows"][..., None], axis=1)
        stack = dataclasses.replace(made.encoder, slots=slots_GSD, slot_positions=batch["slot_positions"])
        return dataclasses.replace(made, encoder=stack)

    def forward(self, params, batch, backbone):
        """Logits of (not entailed, entailed), [B, 2], float32, and the encoder's outputs."""
        made = self.condition(params, batch, backbone)
        outputs = backbone(batch["encoder_input_tokens"], made, batch.get("token_types"))
        return self._logits(params, batch, outputs, made, backbone.config), outputs

    def _logits(self, params, batch, outputs, made: Conditioning, config: RobertaConfig) -> Array:
        if self.head == "shared":
            return collapse(outputs.class_logits, place_of_entailment(config.labels))
        head = self.groups({"head": params["head"]}, batch)["head"]
        first_B1D = outputs.encoded.hidden[:, made.encoder.prompt_length, None]
        pooled = jnp.tanh(_dense(head["dense"], first_B1D))
        logits = _dense(head["classifier"], pooled.astype(jnp.float32))[:, 0]
        return logits if self.head == "fresh" else collapse(logits, place_of_entailment(config.labels))

    def probability(self, params: Mapping[str, Any], batch: Batch, backbone: Backbone) -> Array:
        """The probability that each row's text entails its description, [B]."""
        return jax.nn.softmax(self.forward(params, batch, backbone)[0])[:, 1]

    def losses(self, params, batch, outputs, backbone):
        if not self.fluency:
            return {}
        if "mlm_weights" not in batch:
            raise UserError(
                f"Entailment.fluency is {self.fluency}, and the batch has no 'mlm_targets' and 'mlm_weights'."
            )
        weights_BT = batch["mlm_weights"]
        share_B = batch["row_weights"] / jnp.maximum(weights_BT.sum(-1), 1.0)
        told = cross_entropy(outputs.logits, batch["mlm_targets"], weights_BT * share_B[:, None])
        return {"fluency": self.fluency * told.loss}


def _dense(layer: Mapping[str, Array], x_BTI: Array) -> Array:
    return matmul(x_BTI, layer["kernel"]) + layer["bias"][:, None].astype(x_BTI.dtype)


def _fresh(rng: Array, setting: Setting, N: int) -> dict[str, Any]:
    D, keys = setting.config.emb_dim, jax.random.split(rng)
    draw = lambda key, shape: setting.config.init_std * jax.random.normal(key, shape)
    return {
        "dense": {"kernel": draw(keys[0], (N, D, D)), "bias": jnp.zeros((N, D))},
        "classifier": {"kernel": draw(keys[1], (N, D, 2)), "bias": jnp.zeros((N, 2))},
    }


def _copied(rng: Array, setting: Setting, N: int) -> dict[str, Any]:
    del rng
    if setting.backbone is None:
        raise UserError("A copied head is the backbone's classifier, and there is no backbone here.")
    own = {name: setting.backbone["pooled_head"][name] for name in ("dense", "classifier")}
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, jnp.float32), (N, *leaf.shape)), own)
