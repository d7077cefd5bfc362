"""Our T5 with a method as the module of T5X's `models.EncoderDecoderModel`, so that `python -m t5x.train` trains it.

T5X (github.com/google-research/t5x) is not imported here. The backbone's parameters lie where those of its own network
do, with unscanned layers, so that published checkpoints restore into them; the method's lie beside them, under `method`.
"""

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
    method: one that conditions all rows alike, by slices that tasks share: T5X's batches tell neither tasks nor
      instructions, and its loss reads logits alone. T5X restores a checkpoint after everything was initialised, so an
      initialiser that reads token embeddings reads random ones.

    Raises UserError for a method that needs more than this.
    """

    config: T5Config
    method: Method = Full()

    # That layers come first in the cache, which is all that T5X asks this for.
    scan_layers = True

    def setup(self):
        method, name = self.method, type(self.method).__name__
        if method.per_task or method.reads_instructions:
            what = "instructions" if method.reads_instructions else "the rows' tasks (per_task)"
            raise UserError(f"The method {name} reads {what}, which T5X's batches do not tell; train it with zeroprompt.")
        if method.reads_hidden or method.targets_in != Method.targets_in:
            raise UserError(f"The method {name} has a loss of its own, and T5X's reads logits alone.")
        if self.is_initializing():
            self._init()

    def _init(self) -> None:
        keys = jax.random.split(self.make_rng("params"))
        made = dict(t5.init(self.config, keys[0]))
        if own := self.method.init(keys[1], Setting(self.config, backbone=made)):
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
        own = params.pop("method", {})
        rngs = {"dropout": self.make_rng("dropout")} if enable_dropout else None
        return Backbone(self.config, params, rngs), own

    def _conditioning(self, own: Mapping[str, Any], backbone: Backbone) -> Conditioning:
        return self.method.condition(own, {}, backbone)

    def encode(self, encoder_input_tokens: Array, encoder_segment_ids: Array | None = None, enable_dropout: bool = True):
        """[B, T] -> [B, P + T, D]."""
        backbone, own = self._bound(enable_dropout)
        tokens = encoder_input_tokens.astype(jnp.int32)
        return backbone.encode(tokens, self._conditioning(own, backbone), encoder_segment_ids).hidden

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
    ) -> Array:
        """[B, S, V] logits. decode: of the next token, by the collection `cache`; where that is empty it is only made, for
        as many tokens as are given."""
        del decoder_target_tokens, decoder_positions, max_decode_length  # no mask or position needs them
        backbone, own = self._bound(enable_dropout)
        conditioning = self._conditioning(own, backbone)
        tokens = decoder_input_tokens.astype(jnp.int32)
        seq = masks.sequence(conditioning.encoder, encoder_input_tokens > 0, encoder_segment_ids)
        encoded = Encoded(encoded, seq.valid, seq.segments)
        if not decode:
            return backbone.decode(tokens, encoded, conditioning, decoder_segment_ids)
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
    ) -> Array:
        """[B, S, V] logits of [B, T] and [B, S] tokens, 0 being padding."""
        del encoder_positions
        return self.decode(
            self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout),
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout,
            decode,
        )


_CACHE = ("cached_key", "cached_value", "cache_index", "cached_cross")
