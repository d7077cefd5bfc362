"""Our T5 with a method as the module of T5X's `models.EncoderDecoderModel`, so that `python -m t5x.train` trains it.

T5X (github.com/google-research/t5x) is not imported here; `t5x_model` gives it a model that tells the module more. The
backbone's parameters lie where those of its own network do, with unscanned layers, so that published checkpoints restore
into them; the method's lie beside them, under `method`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import masks, t5
from zeroprompt_jax.models.backbone import Encoded, logical_axes
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import Backbone, Cache, T5Config

Array = jax.Array
# What an axis of a method's parameter is called to T5X, whose rules know their own names only, and each once: slices that
# Adafactor keeps apart, and axes that are neither divided over devices nor, among these, factorised.
_SLICES = {"task": "stack", "layers": "layers"}
_WHOLE = ("relpos_buckets", "kv", "mlp_activations")


def trained(method: Method) -> Callable[[str, Any], bool]:
    """Tells of a parameter, by its path in T5X, whether the method trains it: the `filter_fn` of a `ModelParamTraversal`
    for T5X's `MultiOptimizer`, which then keeps no state of what is frozen."""
    patterns = [re.compile(pattern) for pattern in method.trainable]

    def filter_fn(path: str, _: Any) -> bool:
        path = path.strip("/")
        path = path if path.startswith("method/") else f"backbone/{path}"
        return any(pattern.fullmatch(path) for pattern in patterns)

    return filter_fn


class Transformer(nn.Module):
    """What `t5x.examples.t5.network.Transformer` is to T5X, with the same arguments.

    config: of the backbone; with scan_layers False its parameters are those of T5X's network.
    method: T5X restores a checkpoint after everything was initialised, so an initialiser that reads token embeddings
      reads random ones.
    setting: what the method's first parameters are made from, and its tasks; of the config. The backbone is added.

    T5X's own `models.EncoderDecoderModel` calls `__call__`, `encode` and `decode`, which are enough for a method that
    conditions all rows alike; `t5x_model.EncoderDecoderModel` calls `forward`, and `condition` before it decodes.

    Raises UserError for a method that needs more than it is given, and for one whose targets are no text.
    """

    config: T5Config
    method: Method = Full()
    setting: Callable[[T5Config], Setting] = Setting

    # That layers come first in the cache, which is all that T5X asks this for.
    scan_layers = True

    def setup(self):
        if self.method.targets_in != Method.targets_in:
            name = type(self.method).__name__
            raise UserError(f"The method {name} predicts '{self.method.targets_in}', and T5X's data have texts to predict.")
        if self.is_initializing():
            self._init()

    def _init(self) -> None:
        keys = jax.random.split(self.make_rng("params"))
        made = dict(t5.init(self.config, keys[0]))
        if own := self.method.init(keys[1], dataclasses.replace(self.setting(self.config), backbone=made)):
            made["method"] = own
        axes = {f"{path}_axes": AxisMetadata(self._axes(path)) for path in flatten_dict(made, sep="/")}
        for collection, tree in (("params", made), ("params_axes", unflatten_dict(axes, sep="/"))):
            for name, value in tree.items():
                self.put_variable(collection, name, value)

    def _axes(self, path: str) -> tuple[str, ...]:
        if not path.startswith("method/"):
            return logical_axes(path)
        whole = iter(_WHOLE)
        names = self.method.logical_axes(path.removeprefix("method/"))
        return tuple(_SLICES.get(name) or next(whole) for name in names)

    def _bound(self, enable_dropout: bool) -> tuple[Backbone, Mapping[str, Any]]:
        """The backbone and the method's parameters, of which what is frozen lets no gradient through."""
        trains = trained(self.method)
        flat = flatten_dict(unfreeze(self.variables["params"]), sep="/")
        flat = {path: x if trains(path, x) else jax.lax.stop_gradient(x) for path, x in flat.items()}
        params = unflatten_dict(flat, sep="/")
        own = self.method.extend(params.pop("method", {}), self.setting(self.config))
        rngs = {"dropout": self.make_rng("dropout")} if enable_dropout else None
        return Backbone(self.config, params, rngs), own

    def make(self) -> None:
        """Makes the variables, to `init` with."""

    def forward(self, batch: Mapping[str, Array], enable_dropout: bool = True) -> tuple[Array, dict[str, Array]]:
        """The logits of a batch's targets, [B, S, V], and the method's further losses by name, sums over the targets.

        batch: T5X's columns, and `task_ids` [B] and `instruction_tokens` [B, I] where the method reads them."""
        backbone, own = self._bound(enable_dropout)
        logits, outputs = self.method.forward(own, batch, backbone)
        return logits, self.method.losses(own, batch, outputs, backbone)

    def condition(self, batch: Mapping[str, Array]) -> Conditioning:
        """What conditions the batch's rows, to give to `encode` and `decode`."""
        backbone, own = self._bound(enable_dropout=False)
        return self.method.condition(own, batch, backbone)

    def _all_alike(self, own: Mapping[str, Any], backbone: Backbone) -> Conditioning:
        """What conditions all rows, where nothing is told of them."""
        self._check_rows()
        return self.method.condition(own, {}, backbone)

    def _check_rows(self) -> None:
        if self.method.per_task or self.method.reads_instructions:
            what = "instructions" if self.method.reads_instructions else "the tasks of rows (per_task)"
            raise self._refused(f"reads {what}")

    def _check_losses(self, encoder_input_tokens: Array, decoder_input_tokens: Array) -> None:
        ones = jnp.ones(decoder_input_tokens.shape, jnp.int32)
        columns = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
        batch = {name: ones for name in columns} | {"encoder_input_tokens": encoder_input_tokens.astype(jnp.int32)}
        if losses := self.forward(batch, enable_dropout=False)[1]:
            raise self._refused(f"has losses of its own ({', '.join(losses)})")

    def _refused(self, why: str) -> UserError:
        name, model = type(self.method).__name__, "models.EncoderDecoderModel"
        return UserError(f"The method {name} {why}, which T5X's {model} does not know; use t5x_model.EncoderDecoderModel.")

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_segment_ids: Array | None = None,
        enable_dropout: bool = True,
        conditioning: Conditioning | None = None,
    ) -> Array:
        """[B, T] -> [B, P + T, D]."""
        backbone, own = self._bound(enable_dropout)
        conditioning = self._all_alike(own, backbone) if conditioning is None else conditioning
        return backbone.encode(encoder_input_tokens.astype(jnp.int32), conditioning, encoder_segment_ids).hidden

    def decode(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        decoder_positions: Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        conditioning: Conditioning | None = None,
    ) -> Array:
        """[B, S, V] logits. decode: of the next token, by the collection `cache`; where that is empty it is only made, for
        as many tokens as are given. conditioning: of as many groups as `encode` had rows, or of one."""
        del decoder_target_tokens, decoder_positions, max_decode_length  # no mask or position needs them
        backbone, own = self._bound(enable_dropout)
        conditioning = self._all_alike(own, backbone) if conditioning is None else conditioning
        tokens = decoder_input_tokens.astype(jnp.int32)
        seq = masks.sequence(conditioning.encoder, encoder_input_tokens > 0, encoder_segment_ids)
        encoded = Encoded(encoded, seq.valid, seq.segments)
        if not decode:
            return backbone.decode(tokens, encoded, conditioning, decoder_segment_ids)
        if conditioning.memory is not None:  # T5X has what it caches once for every beam
            each = lambda x: jnp.repeat(x, tokens.shape[0] // x.shape[0], axis=0)
            mask = conditioning.memory_mask
            conditioning = conditioning.replace(
                memory=each(conditioning.memory), memory_mask=None if mask is None else each(mask)
            )
        if not self.has_variable("cache", "cache_index"):
            begin = lambda: backbone.start(tokens, encoded, conditioning, tokens.shape[1])
            logits, cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(begin))
        else:
            key, value, index, cross = (self.get_variable("cache", name) for name in _CACHE)
            cache, length = Cache(key, value, index, cross), key.shape[2] - conditioning.decoder.prompt_length
            # The decoder's prompt and the keys and values of the encoder's output are computed with the first token.
            logits, cache = jax.lax.cond(
                index == 0,
                lambda: backbone.start(tokens, encoded, conditioning, length),
                lambda: backbone.step(tokens, encoded, conditioning, cache),
            )
        for name, x in zip(_CACHE, (cache.key, cache.value, cache.index, cache.cross)):
            self.put_variable("cache", name, x)
        return logits

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        decoder_positions: Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        conditioning: Conditioning | None = None,
    ) -> Array:
        """[B, S, V] logits of [B, T] and [B, S] tokens, 0 being padding."""
        del encoder_positions
        if self.is_initializing():
            self._check_rows()
            self._check_losses(encoder_input_tokens, decoder_input_tokens)
        return self.decode(
            self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout, conditioning),
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout,
            decode,
            conditioning=conditioning,
        )


_CACHE = ("cached_key", "cached_value", "cache_index", "cached_cross")
