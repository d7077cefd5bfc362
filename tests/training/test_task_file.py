"""Task files: what was saved is read, another backbone is refused, many files make one bank."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.backbone import unstack_layers
from zeroprompt_jax.models.conditioning import Conditioning, Stack
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.fingerprint import SAMPLE, fingerprint
from zeroprompt_jax.training.task_file import TaskFile, assemble, check, read, save, slice_of

CONFIG = t5.T5Config(
    vocab_size=2048, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=1
)


def backbone(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


HOME = fingerprint(backbone())


@dataclasses.dataclass(frozen=True)
class Shared(Bank):
    """A shared factor beside a bank, as MPT has."""

    length: int = 3

    def logical_axes(self, path):
        return {"shared": ("prompt", "prompt_embed"), "u": ("task", "prompt", "rank")}[path]

    def fold(self, params):
        return Prompt(length=self.length), {"prompt": params["shared"] * params["u"]}

    def build(self, groups):
        return Conditioning(encoder=Stack(prompt=groups["shared"] * groups["u"]))


def tasks(N=3, P=3, seed=1):
    """A bank of prompts, and each task's file."""
    bank = {"prompt": np.random.default_rng(seed).normal(size=(N, P, 8)).astype(np.float32)}
    method = Prompt(length=P, per_task=True)
    return bank, [made(f"pool/task-{i}", *slice_of(method, bank, i)) for i in range(N)]


def made(name, method, params, **changes):
    card = {"name": name, "type": "copy", "instructions": ["Say it: “ä”."], "options": []}
    vocabulary = {"spec": "bytes", "fingerprint": "bytes:125"}
    return TaskFile(card, method, params, HOME, vocabulary, {"inputs": 16, "targets": 4}, **changes)


def test_what_is_saved_is_read(tmp_path):
    bank, files = tasks()
    for i, file in enumerate(files):
        path = tmp_path / file.task / "prompt.safetensors"
        save(file, path)
        found = read(path)
        np.testing.assert_array_equal(found.params["prompt"], bank["prompt"][i : i + 1])
        assert dataclasses.replace(found, params={}) == dataclasses.replace(file, params={})
        assert path.stat().st_size < 2000 and os.listdir(path.parent) == ["prompt.safetensors"]
    first = path.read_bytes()
    save(read(path), path)
    assert path.read_bytes() == first
    # Anyone's reader reads it.
    assert safetensors.numpy.load_file(path)["prompt"].shape == (3, 8)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    _, (file, *_) = tasks()
    path = tmp_path / "a.safetensors"
    save(file, path)
    before = path.read_bytes()

    def half(tensors, where, metadata):
        where.write_bytes(before[:50])
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save(file, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_files_that_are_no_task_files_are_told_in_one_sentence(tmp_path):
    _, (file, *_) = tasks()
    path = tmp_path / "task.safetensors"
    save(file, path)
    whole = path.read_bytes()
    for cut in (0, 5, 60, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cut.safetensors' cannot be read: it is cut short, or no safetensors file"):
            read(tmp_path / "cut.safetensors")
    safetensors.numpy.save_file({"prompt": np.ones(3)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="foreign.safetensors' is a safetensors file, but no task file"):
        read(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no task file '.*tsak.safetensors'. Did you mean 'task.safetensors'"):
        read(tmp_path / "tsak.safetensors")
    with pytest.raises(UserError, match="name ends in .safetensors; 'a.npy' does not"):
        save(file, tmp_path / "a.npy")

    def altered(change):
        with safetensors.safe_open(path, "np") as f:
            record = json.loads(f.metadata()["zeroprompt_jax"])
        change(record)
        prompt = {"prompt": file.params["prompt"][0]}
        safetensors.numpy.save_file(prompt, tmp_path / "x.safetensors", {"zeroprompt_jax": json.dumps(record)})
        return tmp_path / "x.safetensors"

    assert read(altered(lambda record: None)).task == file.task
    for change, match in (
        (lambda r: r.update(format=2), "has format 2, .* reads up to 1"),
        (lambda r: r["shapes"].update(prompt=[4, 8]), "is damaged"),
        (lambda r: r["method"].update({"class": "os:system"}), "needs os:system: import its module first"),
        (lambda r: r["method"].update({"class": "zeroprompt_jax.methods.nil:Nil"}), "needs zeroprompt_jax.methods.nil:Nil"),
        (lambda r: r["method"].update(width=3), "sets Prompt.width, which this version does not have"),
    ):
        with pytest.raises(UserError, match=match):
            read(altered(change))


def test_a_method_without_banks_has_no_task_file():
    with pytest.raises(UserError, match="Full keeps nothing per task"):
        slice_of(Full(), {}, 0)
    bank, _ = tasks()
    with pytest.raises(UserError, match="no task 3"):
        slice_of(Prompt(length=3, per_task=True), bank, 3)


def test_fingerprint_tells_backbones_apart():
    params = backbone()
    assert HOME.size == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert fingerprint(jax.tree.map(jax.numpy.asarray, params)) == HOME
    assert fingerprint(unstack_layers(params)) == HOME  # scanned or not, it is one model
    assert HOME.unlike(HOME) is None
    wide = backbone(dataclasses.replace(CONFIG, mlp_dim=16))
    assert HOME.unlike(fingerprint(wide)).startswith("of another shape (")
    assert HOME.unlike(fingerprint(backbone(seed=2))) == "of the same shape, but with other weights"
    rounded = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), params)
    assert "rounded to bfloat16" in HOME.unlike(fingerprint(rounded))
    again = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    assert fingerprint(again) == fingerprint(rounded)

    # Every leaf of every layer is read; a large one at so many places.
    for path in ("token_embedder/embedding", "encoder/layers/mlp/wo/kernel"):
        changed = jax.tree.map(np.copy, params)
        leaf = changed
        for name in path.split("/"):
            leaf = leaf[name]
        leaf.reshape(-1)[0 if "token" in path else leaf.size // 2] += 1
        assert HOME.unlike(fingerprint(changed)) == "of the same shape, but with other weights"
    assert params["token_embedder"]["embedding"].size > SAMPLE


def test_another_backbone_and_another_vocabulary_are_refused():
    _, (file, *_) = tasks()
    check(file, HOME, "bytes:125")
    with pytest.raises(UserError, match="Task 'pool/task-0' was trained on another backbone than runs/x: of the same shape"):
        check(file, fingerprint(backbone(seed=2)), "bytes:125", "runs/x")
    with pytest.raises(UserError, match="trained with the vocabulary 'bytes', and this one has another"):
        check(file, HOME, "abc:100")


def test_files_assemble_into_the_bank_they_came_from(tmp_path):
    bank, files = tasks(N=4)
    for file in files:
        save(file, tmp_path / f"{file.task[-1]}.safetensors")
    method, params, names = assemble([tmp_path / f"{i}.safetensors" for i in (2, 0, 3)])
    assert names == ("pool/task-2", "pool/task-0", "pool/task-3") and method == Prompt(length=3, per_task=True)
    np.testing.assert_array_equal(params["prompt"], bank["prompt"][[2, 0, 3]])
    _, params, names = assemble(files, capacity=6)
    np.testing.assert_array_equal(params["prompt"][:4], bank["prompt"])
    assert len(names) == 4 and np.isnan(params["prompt"][4:]).all()


def test_a_task_is_added_within_the_capacity_without_compiling():
    _, files = tasks(N=3)

    @jax.jit
    def serve(params, ids):
        return method.condition(params, {"task_ids": ids}, None).encoder.prompt

    ids = np.array([1, 0], np.int32)
    for count in (2, 3):
        method, params, _ = assemble(files[:count], capacity=3)
        assert serve(params, ids).shape == (2, 3, 8) and serve._cache_size() == 1
    assemble(files, capacity=4)
    serve(assemble(files, capacity=4).params, ids)
    assert serve._cache_size() == 2


def test_the_odd_file_is_named():
    _, (a, b, c) = tasks()
    _, (d, *_) = tasks(P=4)
    longer = made("longer", d.method, d.params)
    for files, match in (
        ([], "at least one"),
        ([a, b, a], "'pool/task-0' is given twice"),
        ([a, b, longer], "'longer' cannot share a bank with 'pool/task-0': its method is"),
        ([a, made("odd", a.method, d.params)], r"'odd' cannot .* its prompt is \[1, 4, 8\], not \[1, 3, 8\]"),
        ([a, made("odd", a.method, {})], "'odd' cannot .* it has no prompt"),
        ([a, dataclasses.replace(c, backbone=fingerprint(backbone(seed=2)))], "its backbone is another one, of the same shape"),
    ):
        with pytest.raises(UserError, match=match):
            assemble(files)
    with pytest.raises(UserError, match="capacity 2 has no room for 3 tasks"):
        assemble([a, b, c], capacity=2)


def test_shared_factors_are_folded_or_kept_whole(tmp_path):
    rng = np.random.default_rng(0)
    params = {"shared": rng.normal(size=(3, 8)).astype(np.float32), "u": rng.normal(size=(2, 3, 1)).astype(np.float32)}
    method = Shared(per_task=True)
    whole = [made(f"whole-{i}", *slice_of(method, params, i)) for i in range(2)]
    assert whole[0].params["shared"].shape == (3, 8) and whole[0].params["u"].shape == (1, 3, 1)
    for file in whole:
        save(file, tmp_path / f"{file.task}.safetensors")
    method, bank, _ = assemble([tmp_path / "whole-0.safetensors", tmp_path / "whole-1.safetensors"])
    jax.tree.map(np.testing.assert_array_equal, bank, params)

    folded = [made(f"folded-{i}", *file.method.fold(file.params)) for i, file in enumerate(whole)]
    assert task_file.assemble(folded).method == Prompt(length=3, per_task=True)
    np.testing.assert_array_equal(assemble(folded).params["prompt"], params["shared"] * params["u"])
    other = made("other", whole[1].method, {**whole[1].params, "shared": whole[1].params["shared"] + 1})
    with pytest.raises(UserError, match="'other' cannot .* shared, which all tasks of a bank share, differs; export tasks folded"):
        assemble([whole[0], other])
