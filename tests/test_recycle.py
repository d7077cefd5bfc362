"""Recycled files: what is written for the other backbone, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors

from zeroprompt_jax import recycle
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.interop import huggingface, huggingface_roberta
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.entailment import Entailment
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import roberta, t5
from zeroprompt_jax.search import recycling, variants
from zeroprompt_jax.search.recycling import Linear, Network
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.task_file import TaskFile

SPEC = "packaged:t5_tiny"
WORDS = EnglishWords(0, 60)
CONFIG = t5.T5Config(
    vocab_size=8192, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
    logits_via_embedding=True,
)  # fmt: skip
ENCODER = roberta.RobertaConfig(
    vocab_size=8192, emb_dim=8, num_heads=2, mlp_dim=8, num_encoder_layers=1, num_positions=16, pooled_head=True,
    labels=("entailment", "neutral", "contradiction"), scan_layers=False,
)  # fmt: skip


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A backbone and its rotated copy."""
    root = tmp_path_factory.mktemp("backbones")
    shapes = jax.eval_shape(lambda: t5.init(CONFIG, jax.random.key(0)))
    params = jax.tree.map(lambda x: draw(*x.shape), shapes)
    huggingface.write_t5(root / "a", params, CONFIG, "float32")
    huggingface.write_t5(root / "b", *variants.rotate(params, CONFIG), "float32")
    return root


@pytest.fixture(scope="module")
def homes(folders):
    return {name: recycle.home(folders / name, SPEC) for name in "ab"}


def rotation(homes):
    return np.linalg.lstsq(homes["a"].embedding, homes["b"].embedding, rcond=None)[0]


def trained(home, method, params, name="pool/task"):
    card = {"name": name, "type": "copy", "instructions": ["Say it."], "options": []}
    return TaskFile(card, method, params, home.fingerprint, home.vocabulary, {"inputs": 16, "targets": 4})


@pytest.mark.parametrize("stacks", [("encoder",), ("encoder", "decoder")])
def test_a_task_file_for_the_rotated_copy(homes, tmp_path, stacks):
    names = ("prompt", "decoder_prompt")[: len(stacks)]
    params = {name: draw(1, 3, 8, seed=i) for i, name in enumerate(names)}
    file = trained(homes["a"], Prompt(length=3, stacks=stacks), params)
    task_file.save(file, tmp_path / "a.safetensors")
    paths, fitted = recycle.recycle(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", homes["b"], homes["a"], words=WORDS
    )
    made = task_file.read(*paths)
    for name in names:
        np.testing.assert_allclose(made.params[name], params[name] @ rotation(homes), atol=1e-4)
    assert (made.card, made.method, made.features) == (file.card, file.method, file.features)
    assert fitted.explained is None and len(fitted.ids) == 60  # 60 words more would be too few to tell
    task_file.check(made, homes["b"].fingerprint, load_vocabulary(SPEC).fingerprint)
    with pytest.raises(UserError, match="another backbone"):
        task_file.check(made, homes["a"].fingerprint, load_vocabulary(SPEC).fingerprint)


def test_mpt_is_folded_first(homes):
    method = MPT(length=3, per_task=False)
    params = {"shared": draw(3, 8), "u": 1 + draw(1, 3, 1, seed=1), "v": 1 + draw(1, 1, 8, seed=2)}
    fitted = recycle.fit(homes["a"], homes["b"], words=WORDS)
    made = recycle.recycle_task(trained(homes["a"], method, params), fitted, homes["b"])
    plain = (params["shared"] * (params["u"] @ params["v"])) @ rotation(homes)
    assert made.method == Prompt(length=3)
    np.testing.assert_allclose(made.params["prompt"], plain, atol=1e-4)
    # A factor for each feature does not commute with a map that mixes features.
    apart = recycling.apply(fitted.map, params["shared"]) * (params["u"] @ params["v"])
    assert np.abs(apart - plain).max() > 0.1


def test_slots_of_entailment_and_no_heads(tmp_path):
    """Encoders in Hugging Face layout; what reads an encoder's states cannot be carried over as what it is given can."""
    homes = {}
    for seed, name in enumerate("ab"):
        shapes = jax.eval_shape(lambda: roberta.init(ENCODER, jax.random.key(0)))
        params = jax.tree.map(lambda x: draw(*x.shape, seed=seed), shapes)
        params["token_embedder"]["embedding"] = draw(ENCODER.vocab_size, 8) @ draw(8, 8, seed=seed)
        huggingface_roberta.write_roberta(tmp_path / name, params, ENCODER)
        homes[name] = recycle.home(tmp_path / name, SPEC)
    params, paths = {"slots": draw(1, 3, 8)}, [tmp_path / f"{name}.safetensors" for name in "ab"]
    task_file.save(trained(homes["a"], Entailment(3, "shared"), params), paths[0])
    recycle.recycle(*paths, homes["b"], homes["a"], words=WORDS)
    found = task_file.read(paths[1])
    np.testing.assert_allclose(found.params["slots"], params["slots"] @ rotation(homes), atol=1e-3)
    assert found.method == Entailment(3, "shared") and found.backbone == homes["b"].fingerprint
    head = {"dense": {"kernel": draw(1, 8, 8)}}
    with pytest.raises(UserError, match="Entailment of task .* cannot be recycled: its head/dense/kernel is no embedding"):
        fitted = recycle.fit(homes["a"], homes["b"], words=WORDS)
        recycle.recycle_task(trained(homes["a"], Entailment(3), params | {"head": head}), fitted, homes["b"])


def test_a_permuted_vocabulary_is_refused_by_its_pieces_or_explains_nothing(homes):
    order = np.random.default_rng(0).permutation(8092)
    permuted = dataclasses.replace(homes["a"], name="c", embedding=homes["a"].embedding[order])
    renamed = dataclasses.replace(permuted, pieces=tuple(np.array(homes["a"].pieces, object)[order]))
    with pytest.raises(UserError, match="a and c have different vocabularies: id 0 is '<pad>' in one"):
        recycle.fit(dataclasses.replace(homes["a"], name="a"), renamed, words=WORDS)
    words = EnglishWords(0, 300)
    assert recycle.fit(homes["a"], homes["b"], words=words).explained > 0.999
    assert recycle.fit(homes["a"], permuted, words=words).explained < 0.1


@pytest.mark.parametrize(
    "recycler", [Linear(bias=True), Network(updates=3, match_norms=True)], ids=["linear", "network"]
)
def test_a_kept_map_is_the_same_to_the_bit(homes, tmp_path, recycler):
    np.save(tmp_path / "p.npy", draw(3, 8))
    run = lambda name, target="b", words=WORDS, recycler=recycler: recycle.recycle(
        tmp_path / "p.npy",
        tmp_path / name,
        homes[target],
        homes["a"],
        recycler,
        words,
        kept=tmp_path / "map.safetensors",
    )
    _, fitted = run("one.npy")
    _, again = run("two.npy")
    jax.tree.map(np.testing.assert_array_equal, again.map, fitted.map)
    assert (again.map.recycler, again.ids, again.explained) == (recycler, fitted.ids, fitted.explained)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy"))
    with safetensors.safe_open(tmp_path / "map.safetensors", "np") as f:
        record = json.loads(f.metadata()["zeroprompt_jax_map"])
    assert record["rows"] == fitted.ids and record["source"]["weights"] == homes["a"].fingerprint.weights
    assert record["source"]["vocabulary"] == record["target"]["vocabulary"] and record["target"]["shape"] == [8192, 8]
    for call, match in (
        (lambda: run("x.npy", "a"), "has the target .*/b, whose embeddings .*/a has not"),
        (lambda: run("x.npy", words=EnglishWords(0, 59)), "to 60 words, not as asked"),
        (lambda: run("x.npy", recycler=Linear()), "was fitted as .* not as asked"),
        (lambda: recycle.read_map(tmp_path / "p.npy", homes["a"], homes["b"]), "p.npy' holds no map"),
    ):
        with pytest.raises(UserError, match=match):
            call()


def test_refusals(homes, folders, tmp_path):
    a, b = homes["a"], homes["b"]
    save = lambda name, file: (task_file.save(file, tmp_path / name), str(tmp_path / name))[1]
    plain = save("plain.safetensors", trained(a, Prompt(length=3), {"prompt": draw(1, 3, 8)}))
    layers = Prompt(length=3, layers="add"), {"layer_prompt": {"encoder": draw(1, 1, 3, 8)}}
    layered = save("layers.safetensors", trained(a, *layers, "layered"))
    shapes = jax.eval_shape(lambda: LoRA().init(jax.random.key(0), Setting(CONFIG)))
    place = jax.tree.map(lambda x: draw(*x.shape), shapes)
    lora = save("lora.safetensors", trained(a, LoRA(), place, "low-rank"))
    holed = save("holed.safetensors", trained(a, Prompt(length=3), {"prompt": np.full((1, 3, 8), np.nan, np.float32)}))
    np.save(tmp_path / "wide.npy", draw(3, 9))
    np.save(tmp_path / "holed.npy", np.full((3, 8), np.inf))
    np.save(tmp_path / "table.npy", a.embedding)
    np.save(tmp_path / "row.npy", a.embedding[0])
    table = recycle.home(tmp_path / "table.npy", SPEC)
    out, array = tmp_path / "out.safetensors", tmp_path / "out.npy"
    run = lambda source, output, target=b, origin=a, words=WORDS: recycle.recycle(
        source, output, target, origin, words=words
    )
    for call, match in (
        (lambda: run(plain, out, a, b), "Task 'pool/task' was trained on another backbone than .*/b: of another shape"),
        (lambda: run(plain, out, b, table), "another backbone than .*table.npy: it holds embeddings alone"),
        (lambda: run(plain, out, table), "table.npy holds embeddings alone; give the whole backbone"),
        (lambda: run(plain, out, b, None), "does not hold the backbone that it was trained on; name it with --from"),
        (lambda: run(plain, array), "output '.*out.npy' is neither a folder nor"),
        (
            lambda: run(layered, out),
            "method Prompt of task 'layered' cannot be recycled: its layer_prompt/encoder is no",
        ),
        (
            lambda: run(lora, out),
            "method LoRA of task 'low-rank' cannot be recycled: its lora/",
        ),
        (lambda: run(holed, out), "There are 24 values that are NaN or infinite in the prompt"),
        (lambda: run(tmp_path / "holed.npy", array), "There are 24 values .* in the prompt"),
        (lambda: run(tmp_path / "wide.npy", array), r"holds shape \[3, 9\]; a prompt of .*/a is length × 8"),
        (lambda: run(tmp_path / "wide.npy", out), "holds a prompt and no task; the output '.*' must end in .npy"),
        (
            lambda: run(plain, out, words=EnglishWords(6000, 4000)),
            "too few rows for EnglishWords.skip 6,000 and count 4,000",
        ),
        (lambda: run(plain, out, dataclasses.replace(b, embedding=b.embedding[:300])), "has embeddings of 300 tokens"),
        (lambda: recycle.home(tmp_path / "table.npy"), "embeddings without their vocabulary; give --vocabulary"),
        (lambda: recycle.home(tmp_path / "row.npy", SPEC), r"row.npy' holds shape \[8\]"),
        (lambda: recycle.home(tmp_path / "absent"), "absent' is no backbone: neither"),
        (lambda: recycle.home(folders / "a"), "holds no vocabulary"),
    ):
        with pytest.raises(UserError, match=match):
            call()
    assert not out.exists() and not array.exists()


def test_the_command(homes, folders, tmp_path, capsys):
    prompt = draw(1, 3, 8)
    task_file.save(trained(homes["a"], Prompt(length=3), {"prompt": prompt}), tmp_path / "a.safetensors")
    sides = [f"--from={folders / 'a'}", f"--to={folders / 'b'}", f"--vocabulary={SPEC}"]
    words = ["--gin.recyclers.EnglishWords.skip=0", "--gin.recyclers.EnglishWords.count=300"]
    for kind in ("v2v-lin", "procrustes"):
        out = tmp_path / f"{kind}.safetensors"
        assert main(["recycle", str(tmp_path / "a.safetensors"), str(out), *sides, *words, f"--recycler={kind}"]) == 0
        assert (
            f"{out} ({kind} on 300 words, which explains 100.0% of other words' embeddings)" in capsys.readouterr().out
        )
        np.testing.assert_allclose(task_file.read(out).params["prompt"], prompt @ rotation(homes), atol=1e-4)
    # Tables alone cannot show that ids were given anew; that the map finds nothing is said.
    order = np.random.default_rng(0).permutation(8092)
    np.save(tmp_path / "prompt.npy", prompt[0])
    for name, table in (("turned", homes["b"].embedding), ("renumbered", homes["b"].embedding[order])):
        np.save(tmp_path / f"{name}.npy", table)
        where = [str(tmp_path / "prompt.npy"), str(tmp_path / "out.npy"), sides[0], f"--to={tmp_path / name}.npy"]
        assert main(["recycle", *where, sides[2], *words]) == 0
        told = capsys.readouterr()
        assert told.out.startswith(str(tmp_path / "out.npy"))
        assert ("token ids do not mean the same tokens" in told.err) == (name == "renumbered")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # written whole, then moved
    for arguments, match in (
        (["x.npy"], "needs SOURCE OUTPUT --to BACKBONE, or --sweep"),
        (["--sweep", "--to=x"], "--sweep takes everything from --gin_file"),
        (["x.npy", "y.npy", "--to=x", "--task=t"], "--task chooses among a run's tasks"),
        (["x.npy", "y.npy", "--to=packaged:t5_tyni"], "Did you mean 't5_tiny'"),
        (["x.npy", "y.npy", "--to=x", "--recycler=v2v-lim"], "v2v-lim"),
    ):
        assert main(["recycle", *arguments]) == 2
        assert match in capsys.readouterr().err


def test_public_prompts(shared_data, tmp_path):
    # Tables of T5 base's and large's widths, without their weights.
    for width in (768, 1024):
        np.save(tmp_path / f"{width}.npy", draw(32128, width, seed=width))
    base, large = (recycle.home(tmp_path / f"{w}.npy", f"{shared_data / 't5_vocab.model'}:100") for w in (768, 1024))
    words = EnglishWords(count=400)
    for name in ("sst2", "mrpc", "rte"):
        source = shared_data / "prompts" / f"{name}.npy"
        (path,), fitted = recycle.recycle(
            source, tmp_path / f"large-{name}.npy", large, base, words=words, kept=tmp_path / "map.safetensors"
        )
        made, prompt = np.load(path), np.load(source)
        assert made.shape == (100, 1024) and made.dtype == np.float32
        S, Y = base.embedding[fitted.ids], large.embedding[fitted.ids]
        want = prompt.astype(float) @ np.linalg.lstsq(S.astype(float), Y.astype(float), rcond=None)[0]
        assert np.abs(made - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.slow
def test_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", True)
    root, turned = tmp_path / "run", tmp_path / "turned"
    config = dataclasses.replace(huggingface.read_config(recycle.pretrained.directory(SPEC)), dtype="float32")
    params = huggingface.read_t5(recycle.pretrained.directory(SPEC), False)
    huggingface.write_t5(turned, *variants.rotate(params, config), "float32")
    bindings = [
        f"--gin.MODEL_DIR='{root}'", "--gin.TRAIN_STEPS=1", "--gin.Schedule.kind='constant'", "--gin.Data.evaluation={}",
        f"--gin.CACHE_DIR='{tmp_path / 'cache'}'", "--gin.Data.train_tasks=2", "--gin.BATCH_SIZE=4",
        "--gin.Experiment.method=@methods.Prompt()", "--gin.methods.Prompt.per_task=True", "--gin.methods.Prompt.length=4",
    ]  # fmt: skip
    assert main(["train", "--gin_file=runs/adapt_t5_tiny.gin", *bindings]) == 0
    where = [str(root), str(tmp_path / "out"), f"--to={turned}", f"--vocabulary={SPEC}"]
    assert main(["recycle", *where]) == 0
    assert "2 tasks in " in capsys.readouterr().out
    assert main(["export", f"--model_dir={root}", "--all", f"--output={tmp_path / 'own'}"]) == 0
    own, made = (sorted((tmp_path / name).rglob("*.safetensors")) for name in ("own", "out"))
    assert len(own) == len(made) == 2
    Q = np.linalg.lstsq(params["token_embedder"]["embedding"], recycle.home(turned, SPEC).embedding, rcond=None)[0]
    for before, after in zip(own, made):
        want = task_file.read(before).params["prompt"] @ Q
        np.testing.assert_allclose(task_file.read(after).params["prompt"], want, atol=1e-3)
