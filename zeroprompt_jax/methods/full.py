"""Full training: no conditioning, every backbone leaf trains. The only methods that touch the backbone alone."""

import dataclasses

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Trains the backbone itself, as in multitask prompted training (ZeroPrompt, T0) or ordinary fine-tuning."""

    trainable = (r"backbone/.*",)


@dataclasses.dataclass(frozen=True)
class Classification(Full):
    """Trains an encoder and its own classifier, whose classes `RobertaConfig.labels` names, as intermediate training on
    natural language inference does. Batches hold `labels` and `row_weights`, [B], and no `decoder_…` column."""

    trainable = (r"backbone/(?!mlm_head/).*",)
    targets_in = "labels"
    weights_in = "row_weights"

    def forward(self, params, batch, backbone):
        if not getattr(backbone.config, "labels", ()):
            raise UserError(
                "Classification trains an encoder's classifier, and this backbone has none: set RobertaConfig.labels."
            )
        outputs = backbone(batch["encoder_input_tokens"], token_types=batch.get("token_types"))
        return outputs.class_logits, outputs


@dataclasses.dataclass(frozen=True)
class MaskedLM(Full):
    """Trains an encoder to tell masked tokens. Batches hold `mlm_targets` and `mlm_weights`, [B, T], the weights being 0
    where nothing is to be told."""

    trainable = (r"backbone/(?!pooled_head/).*",)
    targets_in = "mlm_targets"
    weights_in = "mlm_weights"

    def forward(self, params, batch, backbone):
        if not getattr(backbone.config, "mlm_head", False):
            raise UserError(
                "MaskedLM trains a masked-language-model head, and this backbone has none: set RobertaConfig.mlm_head."
            )
        outputs = backbone(batch["encoder_input_tokens"], token_types=batch.get("token_types"))
        return outputs.logits, outputs
