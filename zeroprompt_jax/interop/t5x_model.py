"""T5X's encoder-decoder model for every method: its rows tell their tasks and instructions, its loss is the method's too.

The only file that imports T5X (github.com/google-research/t5x), which must be installed for it.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import jax
from flax.core import freeze
from t5x import losses, models
from t5x.metrics import AveragePerStep

from zeroprompt_jax.data import cards, seqio_bridge
from zeroprompt_jax.data.seqio_converter import FeatureConverter
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop.t5x_module import Transformer
from zeroprompt_jax.methods.base import Run, Setting
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import T5Config

Array = jax.Array
Batch = Mapping[str, Array]


def setting(config: T5Config, mixture: str, run: Callable[[str], Run] = Setting.run) -> Setting:
    """What a method's parameters are made from, with the tasks of a SeqIO mixture (or of one SeqIO task) that
    `seqio_bridge` made: for `Transformer.setting`. They are numbered in SeqIO's order, by name.

    It is asked once T5X has imported the module that registers them. run: reads what another run trained, for methods that
    begin with that: `experiment.trained`. Raises UserError as `seqio_bridge.card_names`."""
    tasks = seqio_bridge.card_names(mixture)
    return Setting(
        config,
        tasks,
        encode=seqio_bridge.encoder(mixture),
        labels={task: cards.card(task).options for task in tasks},
        facts={task: seqio_bridge.facts(task) for task in dict.fromkeys((*tasks, *cards.task_names()))},
        run=run,
    )


class EncoderDecoderModel(models.EncoderDecoderModel):
    """T5X's model with our module. What it adds: rows are conditioned by their own tasks and instructions when they train,
    are scored and are decoded, the method's further losses count, and what it leaves to chance is drawn.

    The loss is T5X's, of all target tokens and normalised as it is told. `zeroprompt train` divides by their number, and
    where only banks train by that of each task's own; an optimizer that keeps slices apart and forgives a factor, as
    Adafactor does, does not tell them apart.

    Raises UserError as `Transformer` and `FeatureConverter` do.
    """

    def __init__(self, module: Transformer, *args, **kwargs):
        super().__init__(module, *args, **kwargs)
        if self.FEATURE_CONVERTER_CLS is not models.EncoderDecoderModel.FEATURE_CONVERTER_CLS:
            raise UserError("This model makes the feature converter that its method needs; leave feature_converter_cls out.")
        self.FEATURE_CONVERTER_CLS = self._converter

    def _converter(self, **kwargs) -> FeatureConverter:
        method, setting = self.module.method, self.module.setting(self.module.config)
        return FeatureConverter(method.places(setting) if method.per_task else None, method.reads_instructions, **kwargs)

    def get_initial_variables(self, rng, input_shapes=None, input_types=None):
        """As T5X's. No variable's shape depends on a batch's, of which T5X does not tell all."""
        del input_shapes, input_types
        return freeze(self.module.init(rng, method=self.module.make))

    def _forward(self, params, batch: Batch, dropout_rng=None, mutable=False, other_variables=None):
        rngs = None if dropout_rng is None else {"dropout": dropout_rng}
        args = {"params": params, **(other_variables or {})}, batch, rngs is not None
        return self.module.apply(*args, rngs=rngs, mutable=mutable, method=self.module.forward)

    def _compute_logits(self, params, batch, dropout_rng=None, mutable=False, other_variables=None):
        made = self._forward(params, batch, dropout_rng, mutable, other_variables)
        return (made[0][0], made[1]) if mutable else made[0]

    def loss_fn(self, params, batch, dropout_rng):
        """As T5X's, with the method's further losses; each is a metric `loss/{its name}` too."""
        if dropout_rng is not None:
            batch = self.module.method.draw(batch, jax.random.fold_in(dropout_rng, 0))
        factor, weights = losses.get_loss_normalizing_factor_and_weights(self._loss_normalizing_factor, batch)
        batch = {**batch, "decoder_loss_weights": weights}
        logits, further = self._forward(params, batch, dropout_rng)
        loss, z_loss, _ = losses.compute_weighted_cross_entropy(
            logits,
            targets=batch["decoder_target_tokens"],
            weights=weights,
            label_smoothing=self._label_smoothing,
            z_loss=self._z_loss,
            loss_normalizing_factor=factor,
        )
        further = {name: x / (1.0 if factor is None else factor) for name, x in further.items()}
        loss = loss + sum(further.values())
        segments = {name: batch[name] != 0 for name in ("encoder_input_tokens", "decoder_target_tokens")}
        packed = {name.removesuffix("_segment_ids"): x for name, x in batch.items() if name.endswith("_segment_ids")}
        metrics = self._compute_metrics(
            logits=logits,
            targets=batch["decoder_target_tokens"],
            mask=weights,
            loss=loss,
            z_loss=z_loss,
            segment_ids=packed or segments,
        )
        return loss, {**metrics, **{f"loss/{name}": AveragePerStep(total=x) for name, x in further.items()}}

    def predict_batch_with_aux(self, params, batch, rng=None, **kwargs):
        """As T5X's. What conditions the rows is made once, before the first token."""
        conditioning = self.module.apply({"params": params}, batch, method=self.module.condition)
        model = copy.copy(self)
        model.module = _Conditioned(self.module, conditioning)
        return models.EncoderDecoderModel.predict_batch_with_aux(model, params, batch, rng, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Conditioned:
    """The module, which is told in every call what conditions the rows."""

    module: Transformer
    conditioning: Conditioning

    def apply(self, *args, **kwargs):
        return self.module.apply(*args, **kwargs, conditioning=self.conditioning)

    def __getattr__(self, name: str):
        return getattr(self.module, name)
