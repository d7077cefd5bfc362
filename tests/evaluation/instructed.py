"""A method of the tests that reads the instruction: every kind of module, from its masked mean, and the memory."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models.conditioning import Adapter, Conditioning, LowRank, Prefix, Stack, Sublayer

P, R = 2, 3


@dataclasses.dataclass(frozen=True)
class Instructed(Method):
    """Prefix, adapter, LoRA, scale, bias and prompt; `shared`, a bias of all tasks; with `fusion`, memory."""

    fusion: bool = True
    reads_instructions = True

    def condition(self, params, batch, backbone):
        c, tokens = backbone.config, batch["instruction_tokens"]
        encoded = backbone.encode(tokens)
        weight = encoded.mask[..., None].astype(encoded.hidden.dtype)
        mean_GD = (encoded.hidden * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        D, H, K = c.emb_dim, c.num_heads, c.head_dim

        def make(name, L, *shape):
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            w = params["scale"] * jnp.asarray(rng.normal(size=(D, L * int(np.prod(shape)))) / np.sqrt(D), jnp.float32)
            return jnp.moveaxis((mean_GD @ w.astype(mean_GD.dtype)).reshape(-1, L, *shape), 0, 1)

        L = c.num_decoder_layers
        cross = Sublayer(
            prefix=Prefix(make("key", L, P, H, K), make("value", L, P, H, K)),
            lora={n: LowRank(make("a" + n, L, D, R), make("b" + n, L, R, H * K)) for n in ("key", "value", "query")},
            scale={"key": 1 + make("scale", L, H * K)},
            bias={"value": make("bias", L, H * K), "key": params["shared"]},
        )
        adapter = Adapter(make("down", c.num_encoder_layers, D, R), make("up", c.num_encoder_layers, R, D))
        made = Conditioning(
            Stack(prompt=make("prompt", 1, P, D)[0], mlp=Sublayer(adapter=adapter)), Stack(cross_attention=cross)
        )
        return made.replace(memory=encoded.hidden, memory_mask=encoded.mask) if self.fusion else made


def params(config, scale: float = 0.5) -> dict:
    shape = (config.num_decoder_layers, 1, config.num_heads * config.head_dim)
    return {"scale": np.float32([scale]), "shared": np.asarray(jax.random.normal(jax.random.key(3), shape))}


def instructions(rows: int, length: int, vocab: int = 32, seed: int = 0) -> np.ndarray:
    """Instructions of different lengths, right-padded."""
    rng = np.random.default_rng(seed)
    out = rng.integers(2, vocab, (rows, length)).astype(np.int32)
    for row in range(rows):
        out[row, max(length - 2 * row, 3) :] = 0
    return out
