"""Prompt recycling (Lester et al. 2022, arXiv 2208.05577): a prompt of one model for another with the same vocabulary.

Row t of both models' token embeddings means the same token, so a map from one table to the other is learned from these
pairs alone, without data of any task, and then applied to a prompt's vectors. `fit` learns a map, `apply` uses it.

The paper's v2v-lin and lin-comb are one map. S [T, D] and Y [T, E] being the rows, S⁺ the pseudo-inverse and P a prompt,
the former is P (S⁺ Y) and the latter (P S⁺) Y, for more rows than the width and for fewer. Both are kept as a check of each
other. Both use the singular values of S, never normal equations, which are not finite where rows repeat.
"""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from zeroprompt_jax.errors import UserError

Array = jax.Array
Arrays = dict[str, Array]
_TINY = 1e-30
_highest = jax.default_matmul_precision("highest")  # accelerators would multiply in bfloat16


@dataclasses.dataclass(frozen=True)
class Recycler(abc.ABC):
    """Base of all kinds of maps. The paper uses none of these options.

    Attributes:
      centre: fit to both tables less their means, so that an offset that all embeddings share does not shape the map.
      bias: map the offset too, p -> r(p - mean of S) + mean of Y, r being fitted as under `centre`; for least squares
        this is the fit with an intercept.
      match_norms: give every mapped vector the norm of the source vector times the ratio of the tables' mean norms.
    """

    centre: bool = dataclasses.field(default=False, kw_only=True)
    bias: bool = dataclasses.field(default=False, kw_only=True)
    match_norms: bool = dataclasses.field(default=False, kw_only=True)

    @abc.abstractmethod
    def learn(self, source_TD: Array, target_TE: Array) -> Arrays:
        """What `transform` needs. Jit-able."""

    @abc.abstractmethod
    def transform(self, arrays: Arrays, prompt_PD: Array) -> Array:
        """[P, D] -> [P, E]. Jit-able."""


@dataclasses.dataclass(frozen=True)
class _LeastSquares(Recycler):
    """cutoff: singular values of S up to this share of the largest count as zero; None is max(T, D) times float32's
    epsilon, as in LAPACK. ridge: penalty on ‖W‖², in units of the mean squared singular value of S."""

    cutoff: float | None = None
    ridge: float = 0.0

    def __post_init__(self):
        name = type(self).__name__
        if self.cutoff is not None and not 0 <= self.cutoff < 1:
            raise UserError(f"{name}.cutoff is {self.cutoff}; it is a share of the largest singular value, from 0 to 1.")
        if self.ridge < 0:
            raise UserError(f"{name}.ridge is {self.ridge}; it cannot be negative.")


def _svd(source_TD: Array, cutoff: float | None, ridge: float) -> tuple[Array, Array, Array]:
    """U [T, K], the inverted singular values [K] and V [D, K] of S; V diag U' is the (regularised) pseudo-inverse."""
    u, s, vt = jnp.linalg.svd(source_TD, full_matrices=False)
    least = max(source_TD.shape) * jnp.finfo(jnp.float32).eps if cutoff is None else cutoff
    penalty = ridge * jnp.mean(s**2)
    kept = s > least * s[0]
    return u, jnp.where(kept, s / jnp.where(kept, s**2 + penalty, 1.0), 0.0), vt.T


@dataclasses.dataclass(frozen=True)
class Linear(_LeastSquares):
    """v2v-lin: the matrix W [D, E] with the least ‖S W - Y‖², of several the smallest; a prompt becomes P W.

    cutoff: share of the largest singular value of S that counts as zero; by default LAPACK's. ridge: penalty on ‖W‖².
    """

    def learn(self, source_TD, target_TE):
        u, inverse, v = _svd(source_TD, self.cutoff, self.ridge)
        return {"kernel": v @ (inverse[:, None] * (u.T @ target_TE))}

    def transform(self, arrays, prompt_PD):
        return prompt_PD @ arrays["kernel"]


@dataclasses.dataclass(frozen=True)
class Combination(_LeastSquares):
    """lin-comb: each prompt vector is written as the combination of source embeddings with the smallest coefficients, and
    becomes the same combination of target embeddings. The same map as `Linear`; options as there."""

    def learn(self, source_TD, target_TE):
        u, inverse, v = _svd(source_TD, self.cutoff, self.ridge)
        return {"inverse": (v * inverse) @ u.T, "target": target_TE}

    def transform(self, arrays, prompt_PD):
        coefficients_PT = prompt_PD @ arrays["inverse"]
        return coefficients_PT @ arrays["target"]


@dataclasses.dataclass(frozen=True)
class Procrustes(Recycler):
    """c Q with Q of orthonormal rows (columns, where the target is narrower) and the least ‖c S Q - Y‖: angles and
    relative lengths are kept (orthogonal Procrustes, Schönemann 1966). scaled: whether c is fitted, or is 1."""

    scaled: bool = True

    def learn(self, source_TD, target_TE):
        u, s, vt = jnp.linalg.svd(source_TD.T @ target_TE, full_matrices=False)
        kernel = u @ vt
        if self.scaled:
            # Where the target is narrower, part of S is projected away, and only the rest can be scaled.
            kernel = kernel * (jnp.sum(s) / jnp.maximum(jnp.sum((source_TD @ kernel) ** 2), _TINY))
        return {"kernel": kernel}

    def transform(self, arrays, prompt_PD):
        return prompt_PD @ arrays["kernel"]


@dataclasses.dataclass(frozen=True)
class Anchors(_LeastSquares):
    """Anchor-relative transfer, after the idea of Wu et al. 2023 (arXiv 2310.01691): a vector is described by its cosines
    with the anchors, which are the rows of S, and becomes the vector whose cosines with the rows of Y are most like
    these.

    The best such direction has a closed form, found here instead of searched for: the pseudo-inverse of the normalised
    anchors, times the description. Cosines say nothing of norms, so these are matched. Exact where Y is S turned and
    scaled; unlike `Linear`, not where Y = S A for other A. cutoff: as in `Linear`, of Y.
    """

    match_norms: bool = dataclasses.field(default=True, kw_only=True)

    def learn(self, source_TD, target_TE):
        source_TD, target_TE = (x / jnp.maximum(_norms(x), _TINY) for x in (source_TD, target_TE))
        u, inverse, v = _svd(target_TE, self.cutoff, self.ridge)
        return {"kernel": (source_TD.T @ u) @ (inverse[:, None] * v.T)}

    def transform(self, arrays, prompt_PD):
        return prompt_PD @ arrays["kernel"]


@dataclasses.dataclass(frozen=True)
class Network(Recycler):
    """v2v-nn: two dense layers with biases, the first with a ReLU, trained by Adam on half the mean squared error.

    The defaults are the paper's on 4,000 rows: 25 epochs in batches of 50 are 2,000 updates. Of fewer rows the epochs
    become more and the updates stay.

    Attributes:
      hidden: width of the hidden layer, in units of E.
      updates, batch: how long it is trained, and rows of a batch; rows are shuffled anew for every epoch.
      learning_rate: constant.
      seed: of the first parameters and the order of the rows.
    """

    hidden: int = 4
    updates: int = 2000
    batch: int = 50
    learning_rate: float = 3e-4
    seed: int = 0

    def __post_init__(self):
        for name in ("hidden", "updates", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"Network.{name} is {getattr(self, name)}; it must be at least 1.")

    def learn(self, source_TD, target_TE):
        (T, D), E = source_TD.shape, target_TE.shape[1]
        keys = jax.random.split(jax.random.key(self.seed), 3)
        init = jax.nn.initializers.lecun_normal()
        widths = ((D, self.hidden * E), (self.hidden * E, E))
        params = {f"kernel_{i}": init(key, shape) for i, (key, shape) in enumerate(zip(keys, widths))}
        params |= {f"bias_{i}": jnp.zeros(shape[1]) for i, shape in enumerate(widths)}
        batch = min(self.batch, T)
        epochs = -(-self.updates // (T // batch))
        order = jax.vmap(lambda key: jax.random.permutation(key, T))(jax.random.split(keys[2], epochs))
        batches = order[:, : T // batch * batch].reshape(-1, batch)[: self.updates]
        adam = optax.adam(self.learning_rate)
        # Trained as [out, in]: XLA's CPU product of few rows with a transposed kernel takes about half the time.
        flip = lambda arrays: jax.tree.map(jnp.transpose, arrays)
        params = flip(params)

        def loss(params, rows):
            return jnp.mean(optax.l2_loss(self.transform(flip(params), source_TD[rows]), target_TE[rows]))

        def update(carry, rows):
            params, state = carry
            changes, state = adam.update(jax.grad(loss)(params, rows), state)
            return (optax.apply_updates(params, changes), state), None

        return flip(jax.lax.scan(update, (params, adam.init(params)), batches)[0][0])

    def transform(self, arrays, prompt_PD):
        hidden = jax.nn.relu(prompt_PD @ arrays["kernel_0"] + arrays["bias_0"])
        return hidden @ arrays["kernel_1"] + arrays["bias_1"]


KINDS = {kind.__name__: kind for kind in (Linear, Combination, Procrustes, Anchors, Network)}


@struct.dataclass
class Map:
    """A fitted map. arrays: what its recycler learned. source_mean [D], target_mean [E]: zero unless `bias`. norm_ratio:
    of the tables' mean norms, target to source."""

    recycler: Recycler = struct.field(pytree_node=False)
    arrays: Arrays
    source_mean: Array
    target_mean: Array
    norm_ratio: Array


def fit(source_TD: Array, target_TE: Array, recycler: Recycler = Linear()) -> Map:
    """Learns a map from rows of the source's to the same rows of the target's embeddings, float32.

    Raises UserError for tables that are no matrices, have different numbers of rows, fewer than two, or values that are
    not finite. Under jit only shapes are checked.
    """
    for name, table in (("source", source_TD), ("target", target_TE)):
        if jnp.ndim(table) != 2:
            raise UserError(f"The {name}'s embeddings have shape {list(jnp.shape(table))}; they must be rows × width.")
    T, other = len(source_TD), len(target_TE)
    if T != other:
        raise UserError(f"The source has {T:,} rows of embeddings and the target {other:,}; a map is fitted to pairs.")
    if T < 2:
        raise UserError(f"There are too few rows to fit a map to: {T}.")
    for name, table in (("source's embeddings", source_TD), ("target's embeddings", target_TE)):
        _check_finite(name, table)
    return _fit(recycler, source_TD, target_TE)


def apply(map: Map, prompt_PD: Array) -> Array:
    """Maps vectors [..., D] to [..., E]. UserError for another width, and for values that are not finite."""
    D = map.source_mean.shape[0]
    if jnp.ndim(prompt_PD) < 1 or prompt_PD.shape[-1] != D:
        raise UserError(
            f"The prompt has shape {list(jnp.shape(prompt_PD))}, and the source's embeddings have width {D}."
        )
    _check_finite("prompt", prompt_PD)
    return _apply(map, prompt_PD)


def explained(map: Map, source_TD: Array, target_TE: Array) -> float:
    """The share of the target rows' variance that the map explains: 1 is all, 0 no more than their mean. On rows that
    it was not fitted to, this tells a map that found something from one between tables that do not belong together."""
    error = jnp.sum((apply(map, source_TD) - target_TE) ** 2)
    return float(1 - error / jnp.sum((target_TE - jnp.mean(target_TE, 0)) ** 2))


@functools.partial(jax.jit, static_argnums=0)
@_highest
def _fit(recycler: Recycler, source_TD: Array, target_TE: Array) -> Map:
    source, target = (jnp.asarray(x, jnp.float32) for x in (source_TD, target_TE))
    ratio = jnp.mean(_norms(target)) / jnp.maximum(jnp.mean(_norms(source)), _TINY)
    means = source.mean(0), target.mean(0)
    if recycler.centre or recycler.bias:
        source, target = source - means[0], target - means[1]
    if not recycler.bias:
        means = tuple(jnp.zeros_like(mean) for mean in means)
    return Map(recycler, recycler.learn(source, target), *means, ratio)


@jax.jit
@_highest
def _apply(map: Map, prompt: Array) -> Array:
    prompt = jnp.asarray(prompt, jnp.float32)
    flat = prompt.reshape(-1, prompt.shape[-1])
    out = map.recycler.transform(map.arrays, flat - map.source_mean) + map.target_mean
    if map.recycler.match_norms:
        out = out * (map.norm_ratio * _norms(flat) / jnp.maximum(_norms(out), _TINY))
    return out.reshape(*prompt.shape[:-1], out.shape[-1])


def _norms(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _check_finite(where: str, array: Array) -> None:
    if not isinstance(array, jax.core.Tracer) and (count := int(np.sum(~np.isfinite(np.asarray(array, np.float32))))):
        raise UserError(f"There are {count:,} values that are NaN or infinite in the {where}.")
