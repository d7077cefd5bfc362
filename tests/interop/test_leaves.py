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
    deep = leaves.of(np.arange(2 * 3 * 25, dtype=np.float32).reshape(2, 3, 25))
    assert [block.shape for block in deep.blocks()] == [(1, 1, 10), (1, 1, 10), (1, 1, 5)] * 6
    np.testing.assert_array_equal(np.concatenate([block.reshape(-1) for block in deep.blocks()]), np.arange(150))
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


def test_a_block_of_all_layers_opens_one_and_a_layer_of_them_reads_its_own(small_blocks):
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    opened, read = [], []

    class Rows:
        def __getitem__(self, place):
            read.append(place)
            return x[place]

    def layer(i):
        return leaves.Leaf(x.shape[1:], x.dtype, lambda: opened.append(i) or x[i])

    stacked = leaves.stack({f"encoder/layers_{i}/scale": layer(i) for i in range(3)})["encoder/layers/scale"]
    np.testing.assert_array_equal(stacked.read(), x)
    assert opened == [0, 1, 2]
    parts = leaves.unstack({"encoder/layers/scale": leaves.Leaf(x.shape, x.dtype, Rows)})
    np.testing.assert_array_equal(parts["encoder/layers_1/scale"].read(), x[1])
    assert [place[0] for place in read] == [slice(1, 2)] * 2


def test_a_matrix_turned_twice_is_the_first_and_turned_ones_are_compared_as_they_lie(small_blocks):
    x = np.arange(35, dtype=np.float32).reshape(7, 5)
    read = []

    class Rows:
        def __getitem__(self, place):
            read.append(x[place].size)
            return x[place]

    leaf = leaves.Leaf(x.shape, x.dtype, Rows)
    assert leaf.turned().turned() is leaf
    assert leaf.turned().equals(leaves.of(x.copy()).turned()) and not leaf.turned().equals(leaves.of(x + 1).turned())
    assert leaf.turned().equals(leaves.of(x.T))
    assert max(read) * 4 <= 40


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
