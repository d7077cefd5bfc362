"""What a method is: its parameters, the conditioning they make, and what of backbone and method trains."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import roberta, t5
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.roberta import RobertaConfig
from zeroprompt_jax.models.t5 import T5Config

Array = jax.Array
Batch = Mapping[str, Array]
Config = T5Config | RobertaConfig
Backbone = t5.Backbone | roberta.Backbone
Output = t5.Output | roberta.Output
_FAMILIES = {T5Config: t5, RobertaConfig: roberta}


def bind(config: Config, params: Mapping[str, Any], rngs: Mapping[str, Array] | None = None) -> Backbone:
    """The backbone of a config with its parameters bound. rngs: {'dropout': key} switches dropout on."""
    return _FAMILIES[type(config)].Backbone(config, params, rngs)


class Run(NamedTuple):
    """What a run has trained. params: the method's parameters by path; tasks: names, in the order of its banks."""

    params: Mapping[str, Any]
    tasks: Sequence[str]


def _no_run(path: str) -> Run:
    raise UserError(f"The run '{path}' cannot be read here: nothing says how (Setting.run).")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method's first parameters may be made from.

    Attributes:
      config: of the backbone.
      tasks: names of the tasks that get parameters of their own, in the order of their ids.
      backbone: the backbone's parameters, loaded; None where only shapes are wanted.
      encode: text to token ids, without EOS.
      labels: task name to its answer options.
      facts: task name to what is known of it: `type`, `domain`, `family` and `labels` (its options as one text, in any
        order the same); also of tasks that are not trained.
      run: reads what the run at a MODEL_DIR trained; by default it refuses to.
    """

    config: Config
    tasks: Sequence[str] = ("task",)
    backbone: Mapping[str, Any] | None = None
    encode: Callable[[str], list[int]] | None = None
    labels: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    run: Callable[[str], Run] = _no_run

    @property
    def embedding(self) -> Array:
        """The token embeddings, [V, D]."""
        if self.backbone is None:
            raise UserError("This initialiser reads the backbone's token embeddings, and there is no backbone here.")
        return jnp.asarray(self.backbone["token_embedder"]["embedding"])  # on the host, it could not be indexed in a trace


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods: adds nothing, trains nothing. A method is configuration; its parameters are passed in.

    All variables live in one tree {'backbone': …, 'method': …}. trainable: regexes, matched against whole paths such as
    'backbone/encoder/layers/mlp/wo/kernel' or 'method/prompt', of what is trained; everything else stays as it is.

    A parameter whose first logical axis is 'task' is a *bank*: one slice per task, [N, …]. Its slices train
    independently of each other, and a task that is absent from a batch does not move.
    """

    trainable = ()
    per_task = False  # whether rows read their own task's slice, by `task_ids`; otherwise banks have one slice for all
    reads_instructions = False  # whether `condition` reads `instruction_tokens`, and nothing else of a batch
    reads_hidden = False  # whether `losses` reads hidden states
    # The batch's columns of what is to be predicted, [B] or [B, S], and of how much each target counts.
    targets_in = "decoder_target_tokens"
    weights_in = "decoder_loss_weights"

    def init(self, rng: Array, setting: Setting) -> dict[str, Any]:
        """The method's own parameters, float32."""
        del rng, setting
        return {}

    def logical_axes(self, path: str) -> tuple[str | None, ...]:
        """Logical axis names of the method's parameter at `path` (without the leading 'method/')."""
        raise KeyError(f"{type(self).__name__} has no parameter {path}.")

    def banked(self, path: str) -> bool:
        """Whether the variable at this whole path is a bank."""
        kind, _, rest = path.partition("/")
        return kind == "method" and self.logical_axes(rest)[:1] == ("task",)

    def embedded(self, path: str) -> bool:
        """Whether the parameter at `path` (without the leading 'method/') holds vectors of the token embeddings' space,
        [..., D], which a map between two models' embeddings carries over."""
        del path
        return False

    def places(self, setting: Setting) -> Mapping[str, Any]:
        """What `task_ids` says of a task, by name: its place in the banks, or several. Tasks that the method cannot
        condition are left out."""
        return {task: place for place, task in enumerate(setting.tasks)}

    def extend(self, params: Mapping[str, Any], setting: Setting) -> Mapping[str, Any]:
        """The parameters that answer: those that were trained, and what is made of them for tasks that were not."""
        del setting
        return params

    def draw(self, batch: Batch, rng: Array) -> Batch:
        """A training batch with what the method leaves to chance, such as which rows do not tell their task."""
        del rng
        return batch

    def condition(self, params: Mapping[str, Any], batch: Batch, backbone: Backbone) -> Conditioning:
        """Turns the method's parameters and the batch (task ids, instruction tokens) into conditioning."""
        del params, batch, backbone
        return Conditioning()

    def forward(self, params: Mapping[str, Any], batch: Batch, backbone: Backbone) -> tuple[Array, Output]:
        """Logits of the batch's targets, their shape and classes behind it, and all that the conditioned backbone puts out:
        here a text-to-text model's, of every target token."""
        outputs = backbone(
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            self.condition(params, batch, backbone),
            batch.get("encoder_segment_ids"),
            batch.get("decoder_segment_ids"),
            hidden=self.reads_hidden,
        )
        return outputs.logits, outputs

    def losses(self, params: Mapping[str, Any], batch: Batch, outputs: Output, backbone: Backbone) -> dict[str, Array]:
        """Further losses by name, each already weighted; added to the cross-entropy. The batch's target weights sum
        to 1 over its micro-batches (where only banks train, to 1 for every task), so a sum over targets times these is
        normalised as the cross-entropy is."""
        del params, batch, outputs, backbone
        return {}

    def fold(self, params: Mapping[str, Any]) -> tuple["Method", Mapping[str, Any]]:
        """The plainest method that conditions as this one does with `params`, and its parameters: what a trained task is
        handed on as. Where tasks share a factor, it is multiplied in."""
        return self, params
