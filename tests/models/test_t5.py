"""The plain T5: equal to the published model, row by row, in every form it can be compiled in."""

import dataclasses
import functools
import tarfile

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_t5
import tiny_t5
from tiny_t5 import TOLERANCE

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.backbone import REMAT_POLICIES, logical_axes, stack_layers, unstack_layers
from zeroprompt_jax.models.conditioning import Conditioning, Prefix, Stack, Sublayer

T5_1_0 = dict(mlp_activations=("relu",))
T5_1_1 = dict(mlp_activations=("gelu", "linear"))


def reference_logits(config, encoder, decoder, **changes):
    given = dict(
        num_heads=config.num_heads,
        activations=config.mlp_activations,
        tied=config.logits_via_embedding,
        num_buckets=config.relpos_num_buckets,
        max_distance=config.relpos_max_distance,
    )
    rows = [reference_t5.logits(tiny_t5.params(config), e, d, **{**given, **changes}) for e, d in zip(encoder, decoder)]
    return np.stack(rows)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("variant", [T5_1_0, T5_1_1], ids=["1.0", "1.1"])
def test_empty_conditioning_is_the_published_model(variant, tied, scan):
    config = tiny_t5.config(**variant, logits_via_embedding=tied, scan_layers=scan)
    encoder, decoder = tiny_t5.tokens()
    want = reference_logits(config, encoder, decoder)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(tiny_t5.logits(config, encoder, decoder), want, atol=TOLERANCE)
    for wrong in (dict(num_buckets=6), dict(max_distance=30)):  # the rows are long enough to show far buckets
        assert np.abs(reference_logits(config, encoder, decoder, **wrong) - want).max() > 1e-3, wrong


@functools.cache
def encoder_loss(config):
    """Value and gradient through the encoder alone, which compiles fast; one function runs both stacks."""
    encoder, _ = tiny_t5.tokens()
    return jax.value_and_grad(lambda params: jnp.square(t5.Backbone(config, params).encode(encoder).hidden).mean())


@functools.cache
def compiled_encoder_loss(config):
    return tiny_t5.jit(encoder_loss(config))


@pytest.mark.parametrize("policy", [policy for policy in REMAT_POLICIES if policy != "none"])
def test_remat_changes_neither_values_nor_gradients(policy):
    plain, remat = (tiny_t5.config(remat_policy=name) for name in ("none", policy))
    params = tiny_t5.params(plain)
    want, got = (compiled_encoder_loss(config)(params) for config in (plain, remat))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]["encoder"]))
    # The gate of the MLP is always recomputed; a policy recomputes whole layers besides.
    found = [str(jax.make_jaxpr(encoder_loss(config))(params)).count("remat") for config in (plain, remat)]
    assert 0 < found[0] < found[1]


def test_bfloat16_keeps_norms_softmax_and_logits_in_float32():
    config = tiny_t5.config(dtype="bfloat16")
    encoder, decoder = tiny_t5.tokens()
    params = tiny_t5.params(config)
    run = lambda params: t5.Backbone(config, params)(encoder, decoder).logits
    found = tiny_t5.dtypes(run, params)
    assert found["exp"] == found["rsqrt"] == found["reduce_max"] == {"float32"}
    assert "bfloat16" in found["dot_general"] and "bfloat16" in found["tanh"]  # while products and activations are not
    logits = tiny_t5.logits(config, encoder, decoder)
    exact = tiny_t5.logits(tiny_t5.config(), encoder, decoder)
    assert logits.dtype == np.float32
    assert 1e-4 < np.abs(logits - exact).max() < 0.3


@pytest.mark.parametrize("conditioned", [False, True], ids=["plain", "conditioned"])
def test_a_row_depends_on_that_row_alone(conditioned):
    config = tiny_t5.config()
    encoder, decoder = tiny_t5.tokens()
    own = tiny_t5.everything(config, groups=4) if conditioned else Conditioning()
    same = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)
    want = tiny_t5.logits(config, encoder, decoder, own)

    order = np.array([2, 0, 3, 1])
    same(tiny_t5.logits(config, encoder[order], decoder[order], tiny_t5.take(own, order)), want[order])

    others = tiny_t5.tokens(seed=1)
    strange = tiny_t5.everything(config, groups=4, seed=1) if conditioned else own
    mixed = [np.concatenate([ours[:2], theirs[2:]]) for ours, theirs in zip((encoder, decoder), others)]
    merged = jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.concatenate(
            [np.take(a, [0, 1], tiny_t5.row_axis(path)), np.take(b, [2, 3], tiny_t5.row_axis(path))],
            tiny_t5.row_axis(path),
        ),
        own,
        strange,
    )
    got = tiny_t5.logits(config, *mixed, merged)
    same(got[:2], want[:2])
    assert np.abs(got[2:] - want[2:]).max() > 0.1

    same(tiny_t5.logits(config, encoder[1:3], decoder[1:3], tiny_t5.take(own, [1, 2])), want[1:3])

    padded = np.pad(encoder, [(0, 0), (0, 3)]), np.pad(decoder, [(0, 0), (0, 2)])
    same(tiny_t5.logits(config, *padded, own)[:, :6], want)


def pack(rows):
    """Two examples a row, without padding between them: tokens and segment ids."""
    out, segments = np.zeros((2, 16), np.int32), np.zeros((2, 16), np.int32)
    for i, row in enumerate(rows):
        start = np.count_nonzero(segments[i // 2])
        out[i // 2, start : start + len(row)] = row
        segments[i // 2, start : start + len(row)] = 1 + i % 2
    return out, segments


def test_packed_examples_equal_examples_alone():
    config = tiny_t5.config()
    encoder, decoder = tiny_t5.tokens()
    shared = tiny_t5.everything(config, groups=1, positions=False)
    lengths = [6, 4, 5, 6]
    packed_encoder, encoder_segments = pack([row[row > 0] for row in encoder])
    packed_decoder, decoder_segments = pack([row[:n] for row, n in zip(decoder, lengths)])
    for conditioning in (Conditioning(), shared):
        want = tiny_t5.logits(config, encoder, decoder, conditioning)
        segments = encoder_segments, decoder_segments
        got = tiny_t5.logits(config, packed_encoder, packed_decoder, conditioning, *segments)
        for i, n in enumerate(lengths):
            here = got[i // 2][decoder_segments[i // 2] == 1 + i % 2]
            np.testing.assert_allclose(here, want[i, :n], atol=TOLERANCE)
    joined = np.minimum(encoder_segments, 1), np.minimum(decoder_segments, 1)
    blurred = tiny_t5.logits(config, packed_encoder, packed_decoder, shared, *joined)
    assert np.abs(blurred - got)[decoder_segments > 0].max() > 0.1  # the segments are what keeps them apart


def test_packed_rows_refuse_what_is_one_examples_own():
    config = tiny_t5.config()
    rows = np.ones((2, 8), np.int32)
    everything = tiny_t5.everything(config, groups=1)

    def run(conditioning, segments=(rows, rows)):
        jax.eval_shape(lambda: t5.Backbone(config, tiny_t5.params(config))(rows, rows, conditioning, *segments).logits)

    for name in ("prompt", "slots", "layer_prompt"):
        for side in ("encoder", "decoder"):
            stack = Stack(**{name: getattr(getattr(everything, side), name)})
            if name == "slots":
                stack = stack.replace(slot_positions=np.zeros((1, 2), np.int32))
            with pytest.raises(UserError, match=rf"Packed .* {side}\.{name}"):
                run(Conditioning(**{side: stack}))
    with pytest.raises(UserError, match="Packed .* memory"):
        run(Conditioning(memory=everything.memory))
    own = np.zeros((2, 2, 1, config.num_heads, config.head_dim), np.float32)
    with pytest.raises(UserError, match=r"Packed .* encoder\.self_attention\.prefix\.key has 2 groups"):
        run(Conditioning(encoder=Stack(self_attention=Sublayer(prefix=Prefix(own, own)))))
    for segments in ((rows,), (None, rows)):
        with pytest.raises(UserError, match="segments"):
            run(Conditioning(), segments)
    with pytest.raises(UserError, match="3 decoder rows cannot share 2 encoder rows"):
        jax.eval_shape(lambda: t5.Backbone(config, tiny_t5.params(config))(rows, np.ones((3, 4), np.int32)).logits)


def test_no_gradient_flows_from_later_positions():
    """Exactly zero, also through prompts, prefixes and every other kind. Slots make the embeddings differentiable."""
    config = tiny_t5.config()
    encoder, decoder = tiny_t5.tokens(rows=2)
    S, params = decoder.shape[1], tiny_t5.params(config)
    everything = tiny_t5.everything(config, groups=2)
    embeddings = params["token_embedder"]["embedding"][decoder]

    def position_logits(slots):
        positions = np.tile(np.arange(S, dtype=np.int32), (2, 1))
        decoder_stack = everything.decoder.replace(slots=slots, slot_positions=positions)
        logits = t5.Backbone(config, params)(encoder, decoder, everything.replace(decoder=decoder_stack)).logits
        return jnp.square(logits).sum((0, 2))

    influence = np.abs(tiny_t5.jit(jax.jacrev(position_logits))(embeddings)).max((1, 3))  # [logits at, embedding at]
    assert (influence[np.triu_indices(S, 1)] == 0).all()
    assert (influence[np.tril_indices(S)] > 1e-3).all()


def test_dropout_needs_an_rng_and_differs_between_rows():
    config = tiny_t5.config(dropout_rate=0.3)
    encoder, decoder = (np.repeat(tokens[:1], 2, axis=0) for tokens in tiny_t5.tokens())

    @tiny_t5.jit
    def dropped(key):
        return t5.Backbone(config, tiny_t5.params(config), {"dropout": key})(encoder, decoder).logits

    plain = tiny_t5.logits(config, encoder, decoder)
    np.testing.assert_array_equal(plain, tiny_t5.logits(tiny_t5.config(), encoder, decoder))
    np.testing.assert_array_equal(plain[0], plain[1])
    one, two = (np.asarray(dropped(jax.random.key(seed))) for seed in (0, 1))
    np.testing.assert_array_equal(one, dropped(jax.random.key(0)))
    for a, b in ((one[0], one[1]), (one, two), (one, plain)):
        assert np.abs(a - b).max() > 0.05


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("variant", [dict(**T5_1_0, logits_via_embedding=True), T5_1_1], ids=["1.0", "1.1"])
def test_logical_axes_cover_every_parameter(variant, scan):
    config = tiny_t5.config(**variant, scan_layers=scan)
    flat = flax.traverse_util.flatten_dict(tiny_t5.params(config), sep="/")
    sizes = {}
    for path, leaf in flat.items():
        axes = logical_axes(path)
        assert len(axes) == leaf.ndim, path
        assert (axes[0] == "layers") == ("/layers/" in path), path
        for axis, size in zip(axes, leaf.shape):
            stack = path.split("/")[0] if axis == "layers" else ""
            sizes.setdefault((axis, stack), set()).add(size)
    assert all(len(found) == 1 for found in sizes.values()), sizes  # an axis has one size, whichever leaf carries it
    assert sizes["embed", ""] == {16} and sizes["mlp", ""] == {24} and sizes["vocab", ""] == {32}
    with pytest.raises(KeyError, match="encoder/layers/new/kernel"):
        logical_axes("encoder/layers/new/kernel")


def test_initialised_models_stack_and_unstack():
    scanned, unscanned = (tiny_t5.config(scan_layers=scan) for scan in (True, False))
    params = tiny_t5.jit(lambda key: t5.init(scanned, key))(jax.random.key(0))
    unstacked = unstack_layers(params)
    shapes = jax.eval_shape(lambda: t5.init(unscanned, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, unstacked) == jax.tree.map(jnp.shape, dict(shapes))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unstacked), dict(params))
    encoder, decoder = tiny_t5.tokens()
    want = tiny_t5.logits(unscanned, encoder, decoder, weights=unstacked)
    np.testing.assert_allclose(tiny_t5.logits(scanned, encoder, decoder, weights=params), want, atol=TOLERANCE)

    # T5's initialisation: the query is narrower by the root of the head width; layers are drawn apart.
    layers, std = params["decoder"]["layers"], functools.partial(pytest.approx, rel=0.15)
    for name, want in (("query", 1 / 8), ("key", 1 / 4), ("value", 1 / 4), ("out", 1 / np.sqrt(8))):
        assert np.std(layers["self_attention"][name]["kernel"]) == std(want), name
    assert np.std(params["token_embedder"]["embedding"]) == std(1)
    assert np.abs(layers["mlp"]["wi_0"]["kernel"][0] - layers["mlp"]["wi_0"]["kernel"][1]).max() > 0.1
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    assert all((leaf == 1).all() for path, leaf in flat.items() if path.endswith("scale"))


def test_names_and_shapes_are_those_t5x_writes(shared_data, tmp_path):
    """A T5 1.1 checkpoint written by T5X: small arrays lie in its index, large ones in zarr folders."""
    with tarfile.open(shared_data / "t5x-tiny-checkpoint.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (index,) = tmp_path.rglob("checkpoint")
    written = {}
    for path, leaf in flax.traverse_util.flatten_dict(
        flax.serialization.msgpack_restore(index.read_bytes())["optimizer"]["target"],
        is_leaf=lambda _, x: "kvstore" in x,
    ).items():
        shape = leaf["metadata"]["shape"] if isinstance(leaf, dict) else leaf.shape
        written["/".join(path)] = tuple(shape)
        assert not isinstance(leaf, dict) or (index.parent / f"target.{'.'.join(path)}" / ".zarray").is_file()
    config = t5.T5Config(
        emb_dim=4,
        num_heads=2,
        head_dim=2,
        mlp_dim=8,
        num_encoder_layers=2,
        num_decoder_layers=2,
        relpos_num_buckets=4,
        scan_layers=False,
    )
    ours = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(ours, sep="/").items()} == written
    assert len(written) == 52


def test_config_names_what_is_wrong():
    with pytest.raises(UserError, match="remat_policy 'minimum'.*'minimal'"):
        t5.T5Config(remat_policy="minimum")
    with pytest.raises(UserError, match="dtype 'bfloat'.*'bfloat16'"):
        t5.T5Config(dtype="bfloat")
    for rate in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"T5Config.dropout_rate is {rate}; it must be at least 0 and below 1"):
            t5.T5Config(dropout_rate=rate)
    with pytest.raises(UserError, match="activation 'gleu'.*'gelu'"):
        t5.T5Config(mlp_activations=("gleu", "linear"))
    assert hash(t5.T5Config(mlp_activations=["gelu", "linear"])) == hash(t5.T5Config())
    assert dataclasses.replace(t5.T5Config(), dtype="float32").dtype == "float32"
