"""Full training: no conditioning, every backbone leaf trains. The only method that touches the backbone."""

import dataclasses

from zeroprompt_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Trains the backbone itself, as in multitask prompted training (ZeroPrompt, T0) or ordinary fine-tuning."""

    trainable = (r"backbone/.*",)
