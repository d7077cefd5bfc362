"""Cut text: parts that make up the chunk again, cuts with the distribution they should have, and two ways to the text."""

import lzma
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import EvalSet, Features, TrainStream
from zeroprompt_jax.data.vocabulary import EOS_ID, load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import c4, text_cuts

TEXT = Path(__file__).with_name("lighthouse.txt")
VOCABULARY = "packaged:t5_tiny"
ROLES = ("instruction", "input", "target")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})


def examples(split="train", path=TEXT, **options):
    text_cuts.register_text(path, VOCABULARY, **{"tokens": 24, "test_chunks": 4, **options})
    return list(cards.source(text_cuts.NAME).examples(split))


def lengths(parts, L=96, count=20_000, least=1, seed=0):
    return np.diff(text_cuts.cut(L, np.arange(count), parts, least, seed), axis=1)


@pytest.mark.parametrize("parts", [3, 4, 6])
def test_the_parts_make_up_the_text_again(parts):
    run = [i for line in TEXT.read_text(encoding="utf-8").split("\n") for i in load_vocabulary(VOCABULARY).encode(line)]
    made = examples(parts=parts) + examples("test", parts=parts)
    assert len(made) == len(run) // 24 > 12
    rejoined = []
    for e, edges in zip(made, text_cuts.cut(24, np.arange(len(made)), parts)):
        left = [list(e[f"{role}_ids"]) for role in ROLES]
        for role, n in zip(text_cuts.LAYOUTS[parts], np.diff(edges)):
            rejoined += left[role][:n]
            del left[role][:n]
        assert left == [[], [], []]
    assert rejoined == run[: len(rejoined)] and len(rejoined) == 24 * len(made)
    assert "".join(made[0][role] for role in ROLES).startswith("The")


@pytest.mark.parametrize("parts", [3, 4, 6])
@pytest.mark.parametrize(("L", "least"), [(18, 3), (19, 3), (31, 1), (96, 8)])
def test_every_part_has_its_least_length(parts, L, least):
    sizes = lengths(parts, L, 4000, least)
    assert sizes.min() == least and (sizes.sum(1) == L).all() and sizes.shape == (4000, parts)


def test_shares():
    """A half, a quarter and a quarter; of six parts too, as each half of the chunk is cut so."""
    for parts, expected in ((3, (1 / 2, 1 / 4, 1 / 4)), (4, (5 / 8, 1 / 4, 1 / 8)), (6, (1 / 2, 1 / 4, 1 / 4))):
        sizes = lengths(parts, L=1200).mean(0) / 1200
        found = [sum(s for s, r in zip(sizes, text_cuts.LAYOUTS[parts]) if r == role) for role in range(3)]
        assert np.abs(np.array(found) - expected).max() < 0.01, (parts, found)


def test_the_first_cut_is_uniform():
    first = lengths(3, L=50)[:, 0]
    assert (first.min(), first.max()) == (1, 48)
    counts = np.bincount(first, minlength=49)[1:]
    assert ((counts - 20_000 / 48) ** 2 / (20_000 / 48)).sum() < 80  # chi-square with 47 degrees: 1 in 500


def places(parts):
    """Where each cut lies in what was left for it, from 0 to 1, of chunks so long that whole tokens do not matter."""
    sizes = lengths(parts, L=10**7)
    return (sizes / sizes[:, ::-1].cumsum(1)[:, ::-1])[:, :-1]


def test_cuts_are_independent():
    for parts in (3, 4):
        found = np.corrcoef(places(parts).T)
        assert np.abs(found - np.eye(parts - 1)).max() < 0.03
    sizes = lengths(6, L=400)
    assert abs(np.corrcoef(sizes[:, 0], sizes[:, 3])[0, 1]) < 0.03


def test_one_seed_for_both_cuts_would_be_seen(monkeypatch):
    from zeroprompt_jax.data.mixture import hash64

    monkeypatch.setattr(text_cuts, "hash64", lambda seed, use, numbers: hash64(seed, numbers))
    assert np.corrcoef(places(3).T)[0, 1] > 0.9


def test_deterministic_under_the_seed():
    once, again, other = examples(), examples(), examples(seed=1)
    same = lambda a, b: all(np.array_equal(x["instruction_ids"], y["instruction_ids"]) for x, y in zip(a, b, strict=True))
    assert same(once, again) and not same(once, other)
    # How many chunks are taken does not change how a chunk is cut.
    assert same(examples(chunks=1), once[:1])
    assert not {tuple(e["target_ids"]) for e in once} & {tuple(e["target_ids"]) for e in examples("test")}


def test_packed_files_and_mistakes(tmp_path):
    packed = tmp_path / "text.txt.xz"
    packed.write_bytes(lzma.compress(TEXT.read_bytes()))
    assert [e["target"] for e in examples(path=packed)] == [e["target"] for e in examples()]
    for options, message in (
        ({"parts": 5}, "5 parts are not one of 3, 4, 6"),
        ({"tokens": 11, "least": 4}, "chunks of 11 tokens are too short for 3 parts of at least 4; give at least 12"),
        ({"least": 0}, "least=0 must be at least 1"),
        ({"path": "nowhere/*.txt"}, r"no text file 'nowhere/\*.txt'"),
        ({"chunks": 0}, "chunks is 0; it must be at least 1, or None for all"),
        ({"test_chunks": -1}, r"test_chunks is -1; it must be at least 1\."),
        ({"test_chunks": 500}, "too few for 500 to test on"),
    ):
        with pytest.raises(UserError, match=message):
            examples(**options)


def test_every_example_carries_its_own_instruction_into_the_batch(tmp_path):
    made = examples(test_chunks=4)
    vocabulary = load_vocabulary(VOCABULARY)
    store = cache.build(tmp_path, [text_cuts.NAME], vocabulary, progress=False)
    features = Features(24, 24, 24, instruct_inputs=False)
    train = TrainStream(store, {text_cuts.NAME: 1.0}, features, 4, seed=0)

    def padded(ids):
        return [*ids.tolist(), EOS_ID] + [0] * (23 - len(ids))

    for n in range(5):
        batch = train.batch(n)
        for row, (_, example, _, _) in enumerate(train.drawn(n)):
            e = made[example]
            assert batch["instruction_tokens"][row].tolist() == padded(e["instruction_ids"])
            assert batch["encoder_input_tokens"][row].tolist() == padded(e["input_ids"])
            assert batch["decoder_target_tokens"][row].tolist() == padded(e["target_ids"])
    held_back = examples("test", test_chunks=4)
    [batch] = EvalSet(store, [text_cuts.NAME], "test", features).batches(4)
    assert batch["instruction_tokens"].tolist() == [padded(e["instruction_ids"]) for e in held_back]


def fake_tfds(monkeypatch, load):
    made = types.ModuleType("tensorflow_datasets")
    made.load, made.as_numpy = load, lambda found: found
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", made)


def test_c4_is_registered_without_being_read(monkeypatch):
    fake_tfds(monkeypatch, lambda *args, **options: pytest.fail("C4 was read"))
    began = time.monotonic()
    text_cuts.register_c4(VOCABULARY, documents=100_000, per_task=2_000)
    assert time.monotonic() - began < 1
    names = list(cards.mixture("c4_cuts"))
    assert len(names) == 50 and names[1] == "c4_cuts/1"
    assert cards.source(names[0]).splits == ("train", "test") and cards.source(names[1]).splits == ("train",)
    assert cards.source(names[0]).fingerprint != cards.source(names[1]).fingerprint


def test_c4_documents_become_chunks(monkeypatch):
    asked, documents = [], [{"text": p.encode()} for p in TEXT.read_text(encoding="utf-8").split("\n\n")]

    def load(dataset, split, data_dir, download, try_gcs):
        asked.append((dataset, split, data_dir, download))
        return documents

    fake_tfds(monkeypatch, load)
    text_cuts.register_c4(VOCABULARY, documents=30, per_task=20, tokens=16, parts=4, data_dir="gs://bucket")
    first, second = (list(cards.source(f"c4_cuts/{i}").examples("train")) for i in range(2))
    list(cards.source("c4_cuts/0").examples("test"))
    assert asked == [
        (c4.ENGLISH, split, "gs://bucket", False) for split in ("train[0:20]", "train[20:30]", "validation[:500]")
    ]
    v = load_vocabulary(VOCABULARY)
    run = [i for d in documents for i in (*v.encode(d["text"].decode()), EOS_ID)]
    ids = [sorted(i for role in ROLES for i in e[f"{role}_ids"].tolist()) for e in first]
    assert ids == [sorted(run[at : at + 16]) for at in range(0, len(run) - 15, 16)]
    # The same documents under other numbers are cut elsewhere.
    assert [len(e["input_ids"]) for e in first] != [len(e["input_ids"]) for e in second]


def test_c4_out_of_reach_names_the_local_way(monkeypatch):
    def load(*args, **options):
        raise OSError("could not resolve host storage.googleapis.com\nand much more")

    fake_tfds(monkeypatch, load)
    text_cuts.register_c4(VOCABULARY)
    with pytest.raises(UserError, match=r"storage.googleapis.com\): give another data_dir, or take local text") as e:
        list(cards.source("c4_cuts/0").examples("train"))
    assert "much more" not in str(e.value)
