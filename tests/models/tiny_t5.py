"""Tiny T5s for tests: configurations, random parameters, rows of tokens, and conditioning of every kind at once."""

import dataclasses
import functools
import zlib

import jax
import numpy as np

from zeroprompt_jax.models import t5
from zeroprompt_jax.models.backbone import unstack_layers
from zeroprompt_jax.models.conditioning import Adapter, Conditioning, LowRank, Prefix, Stack, Sublayer

TOLERANCE = 1e-5


@functools.cache
def fast_options() -> dict:
    """XLA options under which a tiny model compiles some ten times faster, and runs slower; those this XLA knows.
    Compiling is nearly all of the time that tests of tiny models take."""
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    known = {}
    for name, value in wanted.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def jit(function, **kwargs):
    """jax.jit for tests: compiles fast."""
    return jax.jit(function, compiler_options=fast_options(), **kwargs)


def config(**changes) -> t5.T5Config:
    """T5 1.1 whose every size differs, deeper in the decoder, with relative buckets that short rows already leave."""
    sizes = dict(
        vocab_size=32, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=3
    )
    numerics = dict(dtype="float32", dropout_rate=0.0, relpos_num_buckets=8, relpos_max_distance=10)
    return t5.T5Config(**{**sizes, **numerics, **changes})


@functools.cache
def params(config: t5.T5Config):
    """Random parameters: no norm scale is one, no two layers are alike. The same for scanned and unscanned."""
    if not config.scan_layers:
        return unstack_layers(params(dataclasses.replace(config, scan_layers=True)))

    shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(functools.partial(draw, query=config.head_dim**-0.5), shapes)


def draw(path, leaf, query: float = 1.0) -> np.ndarray:
    """A random parameter for its place in the tree. query: what the query's kernels are multiplied by."""
    name = jax.tree_util.keystr(path)
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
    if "scale" in name:
        x = 1 + 0.3 * x
    elif "kernel" in name:
        x = x / np.sqrt(leaf.shape[-2]) * (query if "query" in name else 1)
    return x.astype(np.float32)


def tokens(rows=4, T=9, S=6, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Encoder rows of different lengths, right-padded (the first is full), and decoder rows beginning with 0."""
    rng = np.random.default_rng(seed)
    encoder = rng.integers(2, 32, (rows, T)).astype(np.int32)
    for row in range(rows):
        encoder[row, T - (2 * row) % 5 :] = 0
    decoder = rng.integers(2, 32, (rows, S)).astype(np.int32)
    decoder[:, 0] = 0
    return encoder, decoder


@functools.cache
def _teacher_forced(config):
    def run(params, *args):
        return t5.Backbone(config, params)(*args).logits

    return jit(run)


def logits(config, encoder, decoder, conditioning=Conditioning(), *segments, weights=None) -> np.ndarray:
    """Teacher-forced logits, compiled once per configuration and structure of the arguments. weights: `params(config)`
    unless given."""
    weights = params(config) if weights is None else weights
    return np.asarray(_teacher_forced(config)(weights, encoder, decoder, conditioning, *segments))


def everything(config: t5.T5Config, groups: int, seed: int = 0, positions: bool = True) -> Conditioning:
    """Conditioning of every kind at every place, random, per group, partly masked.

    positions: also what adds or replaces positions (prompts, slots, memory). In the encoder adapters are parallel and
    layer prompts added; in the decoder, series and replacing.
    """
    rng = np.random.default_rng(seed)
    D, F, H, K = config.emb_dim, config.mlp_dim, config.num_heads, config.head_dim

    def draw(*shape, scale=0.5):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    def mask(*shape):
        """Some of the last axis, never none of it and never all."""
        out = rng.random(shape) < 0.5
        out[..., 0], out[..., -1] = True, False
        return rng.permuted(out, axis=-1)

    def sublayer(L, sizes, side, hidden=None, prefix=0):
        outs = {name: out for name, (_, out) in sizes.items()}
        scaled = {**outs, "hidden": hidden} if hidden else outs
        return Sublayer(
            prefix=Prefix(draw(L, groups, prefix, H, K), draw(L, groups, prefix, H, K), mask(L, groups, prefix))
            if prefix
            else None,
            adapter=Adapter(
                down=draw(L, groups, D, 3),
                up=draw(L, groups, 3, D),
                down_bias=draw(L, groups, 3),
                up_bias=draw(L, groups, D),
                placement="parallel" if side == "encoder" else "series",
                activation="gelu" if side == "encoder" else "relu",
            ),
            lora={n: LowRank(draw(L, groups, i, 2, scale=0.2), draw(L, groups, 2, o)) for n, (i, o) in sizes.items()},
            scale={name: 1 + draw(L, groups, out, scale=0.3) for name, out in scaled.items()},
            bias={name: draw(L, groups, out, scale=0.3) for name, out in outs.items()},
        )

    attention = {"query": (D, H * K), "key": (D, H * K), "value": (D, H * K), "out": (H * K, D)}
    wis = ("wi",) if len(config.mlp_activations) == 1 else ("wi_0", "wi_1")
    mlp = {**{wi: (D, F) for wi in wis}, "wo": (F, D)}

    def stack(side, L, P):
        placed = {}
        if positions:
            placed = dict(
                prompt=draw(groups, P, D, scale=1.0),
                prompt_mask=mask(groups, P),
                layer_prompt=draw(L, groups, P, D, scale=1.0),
                slots=draw(groups, 2, D, scale=1.0),
                slot_positions=np.stack([rng.permutation(4)[:2] for _ in range(groups)]).astype(np.int32),
                layer_prompt_mode="add" if side == "encoder" else "replace",
            )
        return Stack(
            self_attention=sublayer(L, attention, side, prefix=3 if side == "encoder" else 2),
            cross_attention=Sublayer() if side == "encoder" else sublayer(L, attention, side, prefix=2),
            mlp=sublayer(L, mlp, side, hidden=F),
            **placed,
        )

    memory = dict(memory=draw(groups, 3, D, scale=1.0), memory_mask=mask(groups, 3)) if positions else {}
    return Conditioning(
        stack("encoder", config.num_encoder_layers, 3), stack("decoder", config.num_decoder_layers, 2), **memory
    )


def path_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def kinds(conditioning: Conditioning) -> list[str]:
    """The kinds that are set, such as 'encoder.prompt', 'decoder.mlp.lora' or 'memory': prefixes of leaf paths."""
    found = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(conditioning):
        parts = path_of(path).split(".")
        length = 3 if parts[1:] and parts[1] in ("self_attention", "cross_attention", "mlp") else 2
        kind = ".".join(parts[:length]).removesuffix("_mask").replace("slot_positions", "slots")
        found[kind] = None
    return list(found)


def only(conditioning: Conditioning, *kept: str) -> Conditioning:
    """The same structure with all kinds but `kept` switched off by value: masked, unplaced, zeroed or one."""
    kept = [k.replace("slots", "slot") for k in kept]
    # A layer prompt stands on the prompt's positions.
    kept += [k.replace("layer_prompt", "prompt") for k in kept if "layer_prompt" in k]

    def switch(path, leaf):
        name = path_of(path)
        if any(name.startswith(k) for k in kept):
            return leaf
        end = name.split(".")[-1]
        if end == "slot_positions":
            return np.full_like(leaf, -1)
        if "mask" in end or end in ("up", "up_bias", "b") or ".bias." in name or "layer_prompt" in end:
            return np.zeros_like(leaf)
        return np.ones_like(leaf) if ".scale." in name else leaf

    return jax.tree_util.tree_map_with_path(switch, conditioning)


def row_axis(path) -> int:
    """Where a leaf carries G: axis 0, or 1 behind the layers."""
    parts = path_of(path).split(".")
    return 1 if len(parts) > 2 or parts[-1] == "layer_prompt" else 0


def tile(conditioning: Conditioning, rows: int) -> Conditioning:
    """Every leaf with a copy of its own for every row."""

    def copy(path, leaf):
        axis = row_axis(path)
        return np.repeat(leaf, rows // leaf.shape[axis], axis=axis)

    return jax.tree_util.tree_map_with_path(copy, conditioning)


def take(conditioning: Conditioning, groups) -> Conditioning:
    """The given groups of every leaf, in this order."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: np.take(leaf, groups, axis=row_axis(path)), conditioning)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def dtypes(function, *args) -> dict[str, set[str]]:
    """The dtypes that each primitive of a function reads and writes."""
    found = {}
    for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr):
        kinds = {str(v.aval.dtype) for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "dtype")}
        found.setdefault(equation.primitive.name, set()).update(kinds)
    return found
