"""T5X checkpoints: what T5X itself wrote, what is written here, and both of Orbax's layouts."""

import dataclasses
import json
import tarfile

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
import tiny_t5

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import leaves, t5x
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import checkpoint

TINY = t5.T5Config(
    vocab_size=32128,
    emb_dim=4,
    num_heads=2,
    head_dim=2,
    mlp_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relpos_num_buckets=4,
)


@pytest.fixture(scope="module")
def theirs(shared_data, tmp_path_factory):
    """A T5 1.1 that T5X itself wrote, at step 3, with its optimizer's state."""
    archive = shared_data / "t5x-tiny-checkpoint.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no checkpoint of T5X's own: {archive} is missing")
    folder = tmp_path_factory.mktemp("t5x")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "test_t5_1_1_tiny"


def tree():
    """Arrays of a small model as T5X names them, with some optimizer state."""
    flat = flax.traverse_util.flatten_dict(tiny_t5.params(tiny_t5.config(scan_layers=False)), sep="/")
    out = {f"target/{path}": leaves.of(x) for path, x in flat.items()}
    out |= {f"state/param_states/{path}/v": leaves.of(np.abs(x)) for path, x in flat.items()}
    return {**out, "state/step": leaves.of(np.int32(7))}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        assert got[path].equals(leaf), path


def test_what_t5x_wrote_is_read_whole_by_regex_and_without_the_optimizer(theirs):
    whole = t5x.read(theirs)
    assert len(whole) == 261 and whole["state/step"].read() == 3
    target = t5x.read(theirs / "checkpoint_3", "target/.*")
    assert len(target) == 52 and all(whole[path].equals(leaf) for path, leaf in target.items())
    assert list(t5x.read(theirs, "target/encoder/encoder_norm/.*")) == ["target/encoder/encoder_norm/scale"]
    with pytest.raises(UserError, match="'params/.*' matches none of the 261 arrays"):
        t5x.read(theirs, "params/.*")
    params = t5x.read_t5(theirs)
    assert leaves.config({path: leaf.shape for path, leaf in params.items()}) == TINY
    # The bits that the index holds, and what a zarr chunk does.
    np.testing.assert_array_equal(
        params["encoder/encoder_norm/scale"].read().view(np.uint32), [0x3F6EC188, 0x3F83C0C2, 0x3F7B53C8, 0x3F7CC420]
    )
    embedding = params["token_embedder/embedding"].read()
    chunk = ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{theirs}/checkpoint_3/target.token_embedder.embedding/"},
        }
    ).result()
    np.testing.assert_array_equal(embedding[4000:4200], chunk[4000:4200].read().result())
    assert 0.5 < embedding.std() < 2


def test_what_is_written_has_the_structure_that_t5x_wrote(theirs, tmp_path):
    original, copy = theirs / "checkpoint_3", tmp_path / "checkpoint_3"
    whole = t5x.read(theirs)
    t5x.write(copy, whole)
    assert_same(t5x.read(copy), whole)
    assert {p.name for p in copy.iterdir()} == {p.name for p in original.iterdir()}
    index, own = (flax.serialization.msgpack_restore((p / "checkpoint").read_bytes()) for p in (original, copy))
    assert own["version"] == index["version"]
    is_spec = lambda _, x: isinstance(x, dict) and "driver" in x
    flat, mine = (flax.traverse_util.flatten_dict(x["optimizer"], is_leaf=is_spec, sep="/") for x in (index, own))
    assert mine.keys() == flat.keys()
    for path, value in flat.items():
        if isinstance(value, dict):
            # Google's own file system is no driver of the public TensorStore; chunks may be of any size.
            assert mine[path]["kvstore"] == {**value["kvstore"], "driver": "file"}
            same = lambda spec: {k: v for k, v in spec["metadata"].items() if k != "chunks"}
            assert same(mine[path]) == same(value) and set(mine[path]["metadata"]) == set(value["metadata"])
            ts.Spec(mine[path])
        else:
            np.testing.assert_array_equal(mine[path], value, strict=True)
    for folder in original.glob("target.*"):
        a, b = (json.loads((p / folder.name / ".zarray").read_text()) for p in (original, copy))
        assert {k: v for k, v in b.items() if k in a and k != "chunks"} == {k: v for k, v in a.items() if k != "chunks"}


def test_a_run_starts_from_what_t5x_wrote(theirs):
    shapes = jax.eval_shape(lambda: {"backbone": t5.init(TINY, jax.random.key(0))})
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    loaded = checkpoint.load_params(str(theirs), {**wanted, "method/prompt": jax.ShapeDtypeStruct((3, 4), np.float32)})
    assert loaded.keys() == wanted.keys()
    params = t5x.read_t5(theirs)
    for i in range(2):
        path = "mlp/wi_1/kernel"
        np.testing.assert_array_equal(
            loaded[f"backbone/decoder/layers/{path}"][i], params[f"decoder/layers_{i}/{path}"].read()
        )
    other = jax.eval_shape(lambda: {"backbone": t5.init(dataclasses.replace(TINY, mlp_dim=9), jax.random.key(0))})
    with pytest.raises(UserError, match="tiny does not fit this model: differently shaped: backbone/.*mlp"):
        checkpoint.load_params(str(theirs), flax.traverse_util.flatten_dict(other, sep="/"))


def test_round_trip_is_bit_equal_in_every_dtype(tmp_path):
    for name in ("float32", "bfloat16", "float16"):
        arrays = {path: leaf.cast(jnp.dtype(name)) for path, leaf in tree().items() if path.startswith("target/")}
        t5x.write(tmp_path / name / "checkpoint_7", arrays)
        got = t5x.read(tmp_path / name)
        assert_same(got, arrays)
        assert got["target/token_embedder/embedding"].dtype == name


@pytest.mark.parametrize("ocdbt", [False, True], ids=["zarr", "ocdbt"])
def test_orbax_layout(tmp_path, ocdbt):
    arrays = tree()
    nested = flax.traverse_util.unflatten_dict({path: leaf.read() for path, leaf in arrays.items()}, sep="/")
    nested["state"]["param_states"]["empty"] = {}
    folder = tmp_path / "checkpoint_7" / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(nested))
    got = t5x.read(tmp_path)
    assert_same(got, arrays)
    assert t5x.read_t5(tmp_path).keys() == {p.removeprefix("target/") for p in arrays if p.startswith("target/")}


def test_earlier_orbax_kept_an_index_with_placeholders(tmp_path):
    arrays = tree()
    t5x.write(tmp_path / "legacy", arrays)
    state = tmp_path / "checkpoint_7" / "state"
    (tmp_path / "legacy").rename(tmp_path / "moved")
    state.parent.mkdir()
    (tmp_path / "moved").rename(state)
    tree_of = flax.serialization.msgpack_restore((state / "checkpoint").read_bytes())["optimizer"]
    is_spec = lambda x: isinstance(x, dict) and "driver" in x
    placed = jax.tree.map(
        lambda x: f"PLACEHOLDER://{x['kvstore']['path']}" if is_spec(x) else x, tree_of, is_leaf=is_spec
    )
    (state / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(placed))
    assert_same(t5x.read(tmp_path), arrays)


def scanned_tree(shared=True):
    """The same model's parameters as T5X's scalable_t5 names and shapes them."""
    config = tiny_t5.config()
    heads, size = config.num_heads, config.head_dim
    out = {}
    for path, x in flax.traverse_util.flatten_dict(tiny_t5.params(config), sep="/").items():
        side, _, rest = path.partition("/")
        if rest.startswith("relpos_bias"):
            layers = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
            x, rest = np.stack([x + (0 if shared else i) for i in range(layers)]), f"layers/{rest}"
        elif rest.endswith(("query/kernel", "key/kernel", "value/kernel")):
            x = x.reshape(*x.shape[:2], heads, size)
        elif rest.endswith("out/kernel"):
            x = x.reshape(x.shape[0], heads, size, x.shape[2])
        if rest.startswith("layers/"):
            path, x = f"{side}/{side}/{rest.removeprefix('layers/')}", np.moveaxis(x, 0, 1)
        out[path] = x
    return {f"target/{path}": leaves.of(np.ascontiguousarray(x)) for path, x in out.items()}


def test_scanned_layout_both_ways(tmp_path):
    t5x.write(tmp_path / "theirs" / "checkpoint_7", scanned_tree())
    params = {p.removeprefix("target/"): leaf for p, leaf in tree().items() if p.startswith("target/")}
    assert_same(t5x.read_t5(tmp_path / "theirs"), params)
    t5x.write_t5(tmp_path / "checkpoint_7", params, 7, scanned=True)
    assert_same(t5x.read(tmp_path, "target/.*"), scanned_tree())
    assert_same(t5x.read_t5(tmp_path), params)
    assert t5x.read(tmp_path)["target/decoder/decoder/self_attention/out/kernel"].shape == (2, 3, 4, 16)


def test_layers_with_biases_of_their_own_are_refused(tmp_path):
    t5x.write(tmp_path / "checkpoint_7", scanned_tree(shared=False))
    with pytest.raises(UserError, match=r"different relative position biases \((encoder|decoder)/relpos_bias"):
        t5x.read_t5(tmp_path)


def test_the_newest_of_several_and_what_is_none(tmp_path):
    one = {"target/a/scale": leaves.of(np.float32([1])), "state/step": leaves.of(np.int32(1))}
    for step in (9, 10):
        t5x.write(tmp_path / f"checkpoint_{step}", one)
    (tmp_path / "checkpoint_11").mkdir()  # not finished
    assert t5x.find(tmp_path) == str(tmp_path / "checkpoint_10")
    assert t5x.find(tmp_path / "checkpoint_9") == str(tmp_path / "checkpoint_9")
    assert t5x.step_of("gs://bucket/model/checkpoint_1000/") == 1000 and t5x.step_of("model") is None
    assert t5x.find(tmp_path / "checkpoint_11") is None and t5x.find(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match="checkpoint_11' is no T5X checkpoint"):
        t5x.read(tmp_path / "checkpoint_11")


def test_damage_is_told_in_one_sentence(tmp_path):
    folder = tmp_path / "checkpoint_1"
    t5x.write(folder, tree())
    (folder / "target.token_embedder.embedding" / ".zarray").unlink()
    with pytest.raises(UserError, match=r"target\.token_embedder\.embedding/ cannot be read"):
        t5x.read_t5(folder)
    index = (folder / "checkpoint").read_bytes()
    for raw, match in ((index[: len(index) // 2], "msgpack"), (b"model_checkpoint_path: x", "TensorFlow checkpoint")):
        (folder / "checkpoint").write_bytes(raw)
        with pytest.raises(UserError, match=match):
            t5x.read(folder)
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize({"params": {}}))
    with pytest.raises(UserError, match="no part 'optimizer'"):
        t5x.read(folder)
    with pytest.raises(UserError, match="'nothing://bucket/x' is no address"):
        t5x.read("nothing://bucket/x")


def test_our_own_checkpoints_are_not_taken_for_t5x(tmp_path):
    arrays = {p.removeprefix("target/"): leaf for p, leaf in tree().items() if p.startswith("target/")}
    checkpoint.write_backbone(tmp_path / "own", arrays)
    assert t5x.find(tmp_path / "own") is None and checkpoint.pretrained_leaves(str(tmp_path / "own")) is None
    assert_same(checkpoint.backbone_leaves(str(tmp_path / "own")), arrays)
    for scan in (True, False):
        params = tiny_t5.params(tiny_t5.config(scan_layers=scan))
        wanted = flax.traverse_util.flatten_dict({"backbone": params}, sep="/")
        loaded = checkpoint.load_params(str(tmp_path / "own"), wanted)
        assert all(np.array_equal(loaded[path], x) for path, x in wanted.items()) and loaded.keys() == wanted.keys()
    embedding = checkpoint.load_params(str(tmp_path / "own"), wanted, "backbone/token_embedder/.*")
    assert list(embedding) == ["backbone/token_embedder/embedding"]
