"""Conditioning in the backbone: every kind does what it says, and nothing where it is empty, masked or zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5
from tiny_t5 import TOLERANCE

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import conditioning as cond
from zeroprompt_jax.models import layers, t5
from zeroprompt_jax.models.attention import Keys, attend
from zeroprompt_jax.models.conditioning import Adapter, Conditioning, LowRank, Prefix, Stack, Sublayer

CONFIG = tiny_t5.config()
D, F, H, K = CONFIG.emb_dim, CONFIG.mlp_dim, CONFIG.num_heads, CONFIG.head_dim
ENCODER, DECODER = tiny_t5.tokens()
EVERYTHING = tiny_t5.everything(CONFIG, groups=4)
KINDS = tiny_t5.kinds(EVERYTHING)
same = functools.partial(np.testing.assert_allclose, atol=TOLERANCE)


def logits(conditioning=Conditioning(), encoder=ENCODER, decoder=DECODER, **kwargs):
    return tiny_t5.logits(CONFIG, encoder, decoder, conditioning, **kwargs)


def embedded(tokens):
    return tiny_t5.params(CONFIG)["token_embedder"]["embedding"][tokens]


def test_every_kind_is_covered():
    kinds = [f"{side}.{name}" for side in ("encoder", "decoder") for name in ("prompt", "slots", "layer_prompt")]
    for place in ("encoder.self_attention", "decoder.self_attention", "decoder.cross_attention"):
        kinds += [f"{place}.{name}" for name in ("prefix", "adapter", "lora", "scale", "bias")]
    for place in ("encoder.mlp", "decoder.mlp"):
        kinds += [f"{place}.{name}" for name in ("adapter", "lora", "scale", "bias")]
    assert sorted(KINDS) == sorted([*kinds, "memory"])


def test_switched_off_by_value_everything_is_the_plain_model():
    """Masked prompts, prefixes and memory, unplaced slots, zero adapters (parallel and series), zero LoRA and biases,
    scales of one: all in one structure, so that a single kind that is no identity shows."""
    same(logits(tiny_t5.only(EVERYTHING)), logits())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_changes_the_logits_of_its_own_row(kind):
    alone = tiny_t5.only(EVERYTHING, kind)
    assert jax.tree.structure(alone) == jax.tree.structure(EVERYTHING)
    changed = np.abs(logits(alone) - logits(tiny_t5.only(EVERYTHING)))
    assert (changed.max((1, 2)) > 1e-3).all()


def test_empty_shapes_are_the_plain_model():
    """P = 0 prompts, layer prompts and prefixes, no slots, rank 0, a memory of length 0."""

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    def sublayer(L):
        mask = np.zeros((L, 2, 0), bool)
        low_rank = {name: LowRank(zeros(L, 2, D, 0), zeros(L, 2, 0, H * K)) for name in ("query", "key", "value")}
        prefix = Prefix(zeros(L, 1, 0, H, K), zeros(L, 1, 0, H, K), mask if L == 2 else None)
        return Sublayer(prefix, Adapter(zeros(L, 1, D, 0), zeros(L, 1, 0, D)), low_rank)

    def stack(L, cross):
        return Stack(
            prompt=zeros(2, 0, D),
            prompt_mask=np.zeros((4, 0), bool) if cross else None,
            slots=zeros(1, 0, D),
            slot_positions=np.zeros((1, 0), np.int32),
            layer_prompt=zeros(L, 1, 0, D),
            self_attention=sublayer(L),
            cross_attention=sublayer(L) if cross else Sublayer(),
        )

    empty = Conditioning(stack(2, False), stack(3, True), zeros(1, 0, D), np.zeros((1, 0), bool))
    same(logits(empty), logits())


def test_a_prompt_of_token_embeddings_is_those_tokens():
    prompt = np.array([[7, 8, 9]] * 2 + [[10, 11, 12]] * 2)
    written = np.concatenate([prompt, ENCODER], axis=1)
    shorter = np.concatenate([prompt[:, :2], np.full((4, 1), 0), ENCODER], axis=1)
    want = logits(encoder=written)
    groups = embedded(prompt[[0, 2]])
    same(logits(Conditioning(encoder=Stack(prompt=groups))), want)
    masked = Conditioning(encoder=Stack(prompt=groups, prompt_mask=np.ones((1, 3), bool)))
    same(logits(masked), want)
    # With its last position masked, the prompt is the two tokens, and the input stands right behind them.
    masked.encoder.prompt_mask[:, 2] = False
    same(logits(masked), logits(encoder=np.concatenate([prompt[:, :2], ENCODER], axis=1)))
    assert np.abs(logits(masked) - logits(encoder=shorter)).max() > 1e-3  # a hole would move the positions

    leading = embedded(DECODER[:, :2])
    got = logits(Conditioning(decoder=Stack(prompt=leading)), decoder=DECODER[:, 2:])
    same(got, logits()[:, 2:])


def test_slots_of_token_embeddings_are_those_tokens():
    slots = Stack(slots=embedded(np.array([[20, 21, 3]])), slot_positions=np.array([[2, 0, -1]], np.int32))
    encoder, decoder = ENCODER.copy(), DECODER.copy()
    encoder[:, [2, 0]] = decoder[:, [2, 0]] = 20, 21
    same(logits(Conditioning(encoder=slots, decoder=slots)), logits(encoder=encoder, decoder=decoder))
    identity = Stack(slots=embedded(ENCODER[:, :3]), slot_positions=np.arange(3, dtype=np.int32)[None])
    same(logits(Conditioning(encoder=identity)), logits())


@tiny_t5.jit
def encoder_states(stack):
    """The encoder's output and the input of its every layer, under the encoder's conditioning."""
    encoded, states = t5.Backbone(CONFIG, tiny_t5.params(CONFIG)).encode(ENCODER, Conditioning(stack), hidden=True)
    return encoded.hidden, states


def test_layer_prompts_replace_or_are_added():
    given, P = EVERYTHING.encoder, 3
    prompt = Stack(prompt=given.prompt)
    plain_hidden, plain = encoder_states(prompt)
    assert plain.shape == (3, 4, P + 9, D)

    adding = prompt.replace(layer_prompt=given.layer_prompt, layer_prompt_mode="add")
    _, states = encoder_states(adding)
    same(states[0, :, :P], plain[0, :, :P] + given.layer_prompt[0])
    np.testing.assert_array_equal(states[0, :, P:], plain[0, :, P:])
    hidden, states = encoder_states(adding.replace(layer_prompt=np.zeros_like(given.layer_prompt)))
    same(hidden, plain_hidden)
    same(states, plain)

    replacing = prompt.replace(layer_prompt=given.layer_prompt)
    hidden, states = encoder_states(replacing)
    np.testing.assert_array_equal(states[:2, :, :P], given.layer_prompt)
    assert np.abs(hidden - plain_hidden).max() > 0.1
    # What is replaced does not matter, and without a prompt the layer prompt brings its own positions.
    same(encoder_states(replacing.replace(prompt=None))[0], hidden)


def test_masked_positions_have_exactly_no_influence():
    want = logits(EVERYTHING)

    def strange(path, leaf):
        """Other content wherever a mask is false or a slot is not placed."""
        name = tiny_t5.path_of(path)
        side = EVERYTHING.encoder if name.startswith("encoder") else EVERYTHING.decoder
        if name.endswith((".prompt", ".layer_prompt")):
            return np.where(side.prompt_mask[..., None], leaf, 50.0)
        if name.endswith((".prefix.key", ".prefix.value")):
            mask = getattr(side, name.split(".")[1]).prefix.mask
            return np.where(mask[..., None, None], leaf, 50.0)
        return np.where(EVERYTHING.memory_mask[..., None], leaf, 50.0) if name == "memory" else leaf

    changed = jax.tree_util.tree_map_with_path(strange, EVERYTHING)
    differing = jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), changed, EVERYTHING))
    assert sum(differing) == 2 * 2 + 3 * 2 + 1
    np.testing.assert_array_equal(logits(changed), want)


def test_masked_tails_equal_shorter_ones():
    def cut(length):
        def shorter(path, leaf):
            name = tiny_t5.path_of(path)
            axis = {"key": 2, "value": 2, "mask": 2}.get(name.split(".")[-1]) if "prefix" in name else None
            if "prompt" in name or name.startswith("memory"):
                axis = tiny_t5.row_axis(path) + 1
            return leaf if axis is None else np.take(leaf, range(length), axis=axis)

        return jax.tree_util.tree_map_with_path(shorter, EVERYTHING)

    def mask(path, leaf):
        keep = tiny_t5.path_of(path).split(".")[-1].removeprefix("prompt_").removeprefix("memory_") == "mask"
        return np.arange(leaf.shape[-1]) < np.ones(leaf.shape[:-1] + (1,)) if keep else leaf

    masked, short = jax.tree_util.tree_map_with_path(mask, EVERYTHING), jax.tree_util.tree_map_with_path(mask, cut(1))
    same(logits(masked), logits(short))


def merged_params():
    """Conditioning of LoRA and scales alone, shared by all rows, and parameters with both multiplied in."""
    one = tiny_t5.take(EVERYTHING, [0])

    def stack(s):
        kept = (Sublayer(lora=sub.lora, scale=sub.scale) for sub in (s.self_attention, s.cross_attention, s.mlp))
        return Stack(**dict(zip(("self_attention", "cross_attention", "mlp"), kept)))

    conditioning = Conditioning(stack(one.encoder), stack(one.decoder))
    params = jax.tree.map(np.copy, tiny_t5.params(CONFIG))
    names = dict(attention="self_attention", encoder_decoder_attention="cross_attention")
    for side in ("encoder", "decoder"):
        for module, projections in params[side]["layers"].items():
            if module.endswith("layer_norm"):
                continue
            given = getattr(getattr(conditioning, side), names.get(module, module))
            for name, leaf in projections.items():
                product = given.lora[name].a[:, 0] @ given.lora[name].b[:, 0]
                leaf["kernel"] = (leaf["kernel"] + product) * given.scale[name][:, 0, None]
                if name == "wo":
                    leaf["kernel"] *= given.scale["hidden"][:, 0, :, None]
    return params, conditioning


def test_lora_and_scales_equal_changed_kernels():
    params, conditioning = merged_params()
    got = logits(conditioning)
    same(got, logits(weights=params))
    assert np.abs(got - logits()).max() > 0.1


def test_memory_is_more_encoder_output_and_equals_its_prefix():
    """Memory may be fused as further encoder states, or lowered once to a prefix of cross-attention."""
    params = tiny_t5.params(CONFIG)
    memory, mask = EVERYTHING.memory[:2], EVERYTHING.memory_mask[:2]
    kernels = params["decoder"]["layers"]["encoder_decoder_attention"]
    key, value = (
        np.einsum("gmd,ldk->lgmk", memory, kernels[name]["kernel"]).reshape(3, 2, 3, H, K) for name in ("key", "value")
    )
    prefix = Prefix(key, value, np.broadcast_to(mask, (3, 2, 3)))
    want = logits(Conditioning(memory=memory, memory_mask=mask))
    same(logits(Conditioning(decoder=Stack(cross_attention=Sublayer(prefix=prefix)))), want)

    @tiny_t5.jit
    def joined(memory, mask):
        backbone = t5.Backbone(CONFIG, params)
        encoded = backbone.encode(ENCODER)
        hidden = jnp.concatenate([encoded.hidden, jnp.repeat(memory, 2, axis=0)], axis=1)
        return backbone.decode(
            DECODER, t5.Encoded(hidden, jnp.concatenate([encoded.mask, jnp.repeat(mask, 2, axis=0)], axis=1))
        )

    same(joined(memory, mask), want)
    assert np.abs(want - logits()).max() > 0.1


@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_is_what_tiling_would_be(groups):
    few = tiny_t5.everything(CONFIG, groups, seed=2)
    got = logits(few)
    same(got, logits(tiny_t5.tile(few, 4)))
    backwards = logits(tiny_t5.take(tiny_t5.tile(few, 4), [3, 2, 1, 0]))
    if groups == 1:
        same(got, backwards)
    else:
        assert np.abs(got - backwards).max() > 0.1


def test_decoder_rows_share_encoder_rows_without_tiling():
    """8 decoder rows (beams, options) on 4 encoder rows, with conditioning in 2, 4 and 8 groups and shared."""
    few, own = tiny_t5.everything(CONFIG, 2, seed=3), tiny_t5.everything(CONFIG, 8, seed=4)
    shared = tiny_t5.everything(CONFIG, 1, seed=5)
    mixed = few.replace(
        decoder=few.decoder.replace(
            self_attention=own.decoder.self_attention,
            cross_attention=own.decoder.cross_attention.replace(prefix=EVERYTHING.decoder.cross_attention.prefix),
            slots=shared.decoder.slots,
        ),
        memory=EVERYTHING.memory,
        memory_mask=shared.memory_mask,
    )
    decoder = tiny_t5.tokens(rows=8, seed=6)[1]
    got = logits(mixed, decoder=decoder)
    same(got, logits(tiny_t5.tile(mixed, 8), encoder=np.repeat(ENCODER, 2, axis=0), decoder=decoder))
    same(logits(decoder=decoder), logits(encoder=np.repeat(ENCODER, 2, axis=0), decoder=decoder))


def test_pieces_by_hand():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    down, up, down_bias, up_bias = draw(2, 5, 2), draw(2, 2, 5), draw(2, 2), draw(1, 5)
    relu = lambda z: np.maximum(z, 0)
    for placement, source in (("parallel", x), ("series", y)):
        adapter = Adapter(down, up, down_bias, up_bias, placement, "relu")
        got = cond.adapt(y, x, Sublayer(adapter=adapter))
        for row in range(4):
            g = row // 2
            want = y[row] + relu(source[row] @ down[g] + down_bias[g]) @ up[g] + up_bias[0]
            same(got[row], want)
    a, b, scale, bias = draw(4, 5, 2), draw(4, 2, 7), draw(2, 7), draw(1, 7)
    kernel = draw(5, 7)
    everything = Sublayer(lora={"wo": LowRank(a, b)}, scale={"wo": scale}, bias={"wo": bias})
    got = cond.project(x @ kernel, x, "wo", everything)
    for row in range(4):
        same(got[row], x[row] @ (kernel + a[row] @ b[row]) * scale[row // 2] + bias[0], rtol=1e-5)
    same(cond.project(x @ kernel, x, "wi", everything), x @ kernel)

    # One softmax over prefix and keys together; only the keys carry the bias.
    query, key, value = draw(4, 3, 2, 6), draw(4, 5, 2, 6), draw(4, 5, 2, 6)
    prefix = Prefix(draw(2, 2, 2, 6), draw(2, 2, 2, 6), np.array([[True, False], [True, True]]))
    bias, mask = draw(1, 2, 3, 5), rng.random((4, 1, 3, 5)) < 0.7
    got = attend(query, [*layers.prefix_keys(prefix, 4), Keys(key, value, mask, bias)])
    for row in range(4):
        kept = prefix.mask[row // 2]
        for head in range(2):
            keys = np.concatenate([prefix.key[row // 2, kept, head], key[row, :, head]])
            values = np.concatenate([prefix.value[row // 2, kept, head], value[row, :, head]])
            for q in range(3):
                scores = keys @ query[row, q, head] + np.concatenate([np.zeros(kept.sum()), bias[0, head, q]])
                weights = np.exp(scores) * np.concatenate([np.ones(kept.sum()), mask[row, 0, q]])
                same(got[row, q, head], weights @ values / weights.sum())


def fails(path, conditioning, match):
    """check() names the path, for whole models as for shapes alone."""
    with pytest.raises(UserError, match=match) as error:
        for side in ("encoder", "decoder"):
            cond.check(conditioning, CONFIG, side, rows=4)
    assert path in str(error.value)


def with_leaf(path, change):
    """EVERYTHING with one leaf changed."""
    found = []

    def edit(here, leaf):
        if tiny_t5.path_of(here) != path:
            return leaf
        found.append(path)
        return change(leaf)

    out = jax.tree_util.tree_map_with_path(edit, EVERYTHING)
    assert found == [path]
    return out


@pytest.mark.parametrize("path", [name for name, _ in cond.describe(EVERYTHING)])
def test_check_names_a_wrong_leaf(path):
    axis = 1 if path.count(".") > 1 or path.endswith("layer_prompt") else 0
    groups = functools.partial(np.take, indices=[0, 1, 2], axis=axis)
    fails(path, with_leaf(path, groups), "has 3 groups, which do not divide 4 rows")
    fails(path, with_leaf(path, lambda leaf: leaf[0]), "has shape")
    if not path.endswith((".a", ".down")):  # whose last axis is the rank, which the other factor must follow
        fails(path, with_leaf(path, lambda leaf: np.concatenate([leaf, leaf], axis=-1)), "has shape")
    if axis:
        fails(path, with_leaf(path, lambda leaf: leaf[:1]), "has shape")  # one layer, where there are more


def test_check_names_what_is_not_there():
    vector = np.ones((2, 1, H * K), np.float32)
    wide = np.ones((2, 1, F), np.float32)
    adapter = Adapter(np.ones((2, 1, D, 2)), np.ones((2, 1, 2, D)))
    prefix = Prefix(np.ones((2, 1, 3, H, K)), np.ones((2, 1, 3, H, K)))
    cases = (
        (
            "encoder.self_attention.scale",
            Stack(self_attention=Sublayer(scale={"keys": vector})),
            "'keys'; there is query",
        ),
        ("encoder.self_attention.bias", Stack(self_attention=Sublayer(bias={"wo": vector})), "'wo'"),
        ("encoder.mlp.bias", Stack(mlp=Sublayer(bias={"hidden": wide})), "'hidden'; there is wi_0, wi_1, wo"),
        ("encoder.mlp.scale", Stack(mlp=Sublayer(scale={"wi": wide})), "'wi'; there is wi_0, wi_1, wo, hidden"),
        ("encoder.mlp.lora", Stack(mlp=Sublayer(lora={"out": LowRank(vector, vector)})), "'out'"),
        ("encoder.mlp.prefix", Stack(mlp=Sublayer(prefix=prefix)), "attends to nothing"),
        ("encoder.cross_attention", Stack(cross_attention=Sublayer(prefix=prefix)), "no cross-attention"),
        ("encoder.mlp.adapter", Stack(mlp=Sublayer(adapter=adapter.replace(placement="before"))), "parallel or series"),
        ("encoder.mlp.adapter", Stack(mlp=Sublayer(adapter=adapter.replace(activation="sine"))), "gelu, relu"),
        ("encoder.layer_prompt_mode", Stack(layer_prompt_mode="insert"), "replace or add"),
        ("encoder.prompt_mask", Stack(prompt_mask=np.ones((1, 3), bool)), "has shape"),
        ("encoder.slots", Stack(slots=np.ones((1, 2, D))), "together"),
        ("encoder.slots", Stack(slot_positions=np.ones((1, 2), np.int32)), "together"),
        ("encoder.prompt", Stack(prompt=np.ones((0, 3, D))), "0 groups"),
    )
    for path, stack, match in cases:
        fails(path, Conditioning(encoder=stack), match)
    fails("memory_mask", Conditioning(memory_mask=np.ones((1, 3), bool)), "has shape")
    with pytest.raises(UserError, match="decoder.prompt has 3 groups"):  # check runs wherever the backbone does
        stack = Stack(prompt=np.ones((3, 2, D), np.float32))
        jax.eval_shape(
            lambda: t5.Backbone(CONFIG, tiny_t5.params(CONFIG))(ENCODER, DECODER, Conditioning(decoder=stack)).logits
        )


def gradients(config):
    """Of a loss by every parameter and by every float leaf of EVERYTHING, through the whole model."""
    real = jax.tree.map(lambda leaf: leaf.dtype == np.float32, EVERYTHING)

    def loss(params, floats):
        conditioning = jax.tree.map(lambda keep, ours, given: ours if keep else given, real, floats, EVERYTHING)
        return jnp.square(t5.Backbone(config, params)(ENCODER, DECODER, conditioning).logits).mean()

    floats = jax.tree.map(lambda keep, leaf: leaf if keep else np.zeros((), np.float32), real, EVERYTHING)
    return tiny_t5.jit(jax.grad(loss, argnums=(0, 1)))(tiny_t5.params(CONFIG), floats)


def test_every_leaf_is_trained_and_only_where_it_is_read():
    """Gradients reach every parameter and every leaf of conditioning, and nothing that is masked or replaced; the same
    with rematerialised layers."""
    of_params, of_leaves = gradients(CONFIG)
    rematerialised = gradients(tiny_t5.config(remat_policy="full"))
    jax.tree.map(functools.partial(same, rtol=1e-4), rematerialised, (of_params, of_leaves))
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.abs(leaf).max() > 0, tiny_t5.path_of(path)
    got = {tiny_t5.path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(of_leaves)}
    given = {tiny_t5.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(EVERYTHING)}
    for name, leaf in got.items():
        if given[name].dtype == np.float32:
            # Layer prompts replace the decoder's prompt before anything reads it.
            assert (np.abs(leaf).max() > 0) == (name != "decoder.prompt"), name
    for name in ("encoder.prompt", "memory"):
        mask = given[name + "_mask"]
        assert (got[name][~mask] == 0).all() and (np.abs(got[name][mask]).max(-1) > 0).all()
    for place in ("encoder.self_attention", "decoder.self_attention", "decoder.cross_attention"):
        mask = given[f"{place}.prefix.mask"]
        for name in ("key", "value"):
            leaf = got[f"{place}.prefix.{name}"]
            assert (leaf[~mask] == 0).all() and (np.abs(leaf[mask]).max((-1, -2)) > 0).all()


def test_describe_lists_what_is_set():
    assert list(cond.describe(Conditioning())) == []
    prompt = Conditioning(encoder=Stack(prompt=np.ones((1, 3, D))), memory=np.ones((2, 5, D)))
    assert list(cond.describe(prompt)) == [("encoder.prompt", (1, 3, D)), ("memory", (2, 5, D))]
