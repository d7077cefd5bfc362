import flax.traverse_util
import numpy as np
import pytest
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import leaves
from zeroprompt_jax.models import t5


def flat_of(params):
    return {path: leaves.of(x) for path, x in flax.traverse_util.flatten_dict(params, sep="/").items()}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 40 bytes: rows of every array here are read in several."""
    monkeypatch.setattr(leaves, "BLOCK", 40)


def test_blocks_are_the_rows_in_order(small_blocks):
    x = np.arange(35, dtype=np.float32).reshape(7, 5)
    for array, leaf in ((x, leaves.of(x)), (x.T, leaves.of(x).turned()), (x.astype("f8"), leaves.of(x).cast("f8"))):
        blocks = list(leaf.blocks())
        assert len(blocks) > 1 and all(block.nbytes <= 40 and block.flags.c_contiguous for block in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), array, strict=True)
        np.testing.assert_array_equal(leaf.read(), array, strict=True)
        assert leaf.shape == array.shape and leaf.size == array.nbytes
        assert all(not np.shares_memory(block, x) for block in blocks)
    wide = leaves.of(np.ones((2, 100), np.float32))
    assert [block.shape for block in wide.blocks()] == [(1, 100)] * 2
    assert leaves.of(np.int32(3)).read() == 3 and leaves.of(np.zeros((0, 4))).read().shape == (0, 4)


def test_equality_is_of_every_value(small_blocks):
    x = np.arange(35, dtype=np.float32).reshape(7, 5)
    y = x.copy()
    y[6, 4] += 1
    assert leaves.of(x).equals(leaves.of(x).turned().turned())
    assert not leaves.of(x).equals(leaves.of(y)) and not leaves.of(x).equals(leaves.of(x.T))
    assert not leaves.of(x).equals(leaves.of(x).cast("f8"))
    nan, zeros = np.full(3, np.nan, np.float32), np.zeros(3, np.float32)
    assert leaves.of(nan).equals(leaves.of(nan)) and not leaves.of(zeros).equals(leaves.of(-zeros))


def test_stacking_is_that_of_the_models_and_back(small_blocks):
    scanned, unscanned = (flat_of(tiny_t5.params(tiny_t5.config(scan_layers=scan))) for scan in (True, False))
    for got, want in ((leaves.stack(unscanned), scanned), (leaves.unstack(scanned), unscanned)):
        assert got.keys() == want.keys()
        assert all(got[path].shape == leaf.shape and got[path].equals(leaf) for path, leaf in want.items())
    lost = {path: leaf for path, leaf in unscanned.items() if "decoder/layers_1/" not in path}
    with pytest.raises(UserError, match=r"decoder/layers/.* cannot be stacked: it has the layers \[0, 2\]"):
        leaves.stack(lost)


@pytest.mark.parametrize("changes", [{}, {"mlp_activations": ("relu",), "logits_via_embedding": True}])
def test_shapes_say_what_the_model_is(changes):
    config = tiny_t5.config(**changes)
    shapes = {path: leaf.shape for path, leaf in leaves.unstack(flat_of(tiny_t5.params(config))).items()}
    said = leaves.config(shapes)
    names = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers", "num_decoder_layers")
    names += ("mlp_activations", "logits_via_embedding", "relpos_num_buckets")
    assert {n: getattr(said, n) for n in names} == {n: getattr(config, n) for n in names}
    assert said.relpos_max_distance == t5.T5Config().relpos_max_distance == 128
    with pytest.raises(UserError, match="no parameters of a T5: missing token_embedder/embedding"):
        leaves.config({"encoder/encoder_norm/scale": (4,)})
