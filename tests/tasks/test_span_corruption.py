"""Span corruption: what the properties of T5's objective say, on a text made here."""

import numpy as np
import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import span_corruption

VOCABULARY = "packaged:t5_tiny"
SIZE = 8192
WORDS = "the old man walked slowly down to the river and looked at the grey water under the bridge".split()


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("a", "b"):
        lines = [" ".join(rng.choice(WORDS, 40)) for _ in range(60)]
        (tmp_path / f"{part}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return tmp_path / "*.txt"


def examples(text, split="train", **options):
    span_corruption.register_text(text, VOCABULARY, **{"test_chunks": 10, "name": "spans", **options})
    return list(cards.source("spans").examples(split))


def reassembled(given, wanted):
    """The chunk: each sentinel of the input replaced by what follows it in the target."""
    spans, sentinel = {}, None
    for token in wanted:
        if token >= SIZE - 100:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    return [t for token in given for t in spans.get(token, [token])]


@pytest.mark.parametrize("inputs", [4, 17, 48, 128])
def test_input_and_target_together_are_the_text(text, inputs):
    made = examples(text, inputs=inputs)
    chunks = [reassembled(e["input_ids"].tolist(), e["target_ids"].tolist()) for e in made]
    v = load_vocabulary(VOCABULARY)
    whole = [i for file in ("a", "b") for i in v.encode(" ".join((text.parent / f"{file}.txt").read_text().split()))]
    assert sum(chunks, []) == whole[: sum(map(len, chunks))]
    length, targets = span_corruption.lengths(inputs)
    assert {len(c) for c in chunks} == {length}
    assert {len(e["input_ids"]) + 1 for e in made} <= set(range(inputs - 1, inputs + 1))
    assert {len(e["target_ids"]) + 1 for e in made} == {targets}


def test_lengths_are_those_of_t5():
    # random_spans_helper(inputs_length, 0.15, 3.0, 1, 1) gives (568, 114) at T5's 512.
    assert span_corruption.lengths(512) == (568, 114)


def test_density_and_spans(text):
    hidden = span_corruption.noise_mask(np.arange(2000), 200)
    assert (hidden.sum(1) == 30).all()
    starts = hidden & ~np.roll(hidden, 1, axis=1)
    assert (starts.sum(1) == 10).all() and not hidden[:, 0].any() and hidden[:, -1].all()
    # Where the spans lie is random: apart from the ends every place is hidden about equally often.
    share = hidden.mean(0)[20:-20]
    assert abs(share - 0.15).max() < 0.05
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(hidden, ((0, 0), (1, 1))).reshape(-1).astype(int))))[::2]
    assert lengths.mean() == 3 and lengths.min() == 1 and lengths.max() > 8


def test_sentinels_count_down_from_the_last_id(text):
    for e in examples(text):
        for ids in (e["input_ids"], e["target_ids"]):
            sentinels = [i for i in ids.tolist() if i >= SIZE - 100]
            assert sentinels == list(range(SIZE - 1, SIZE - 1 - len(sentinels), -1)) and sentinels
        assert e["target_ids"][0] == SIZE - 1


def test_deterministic_and_the_splits_share_nothing(text):
    train, test = examples(text), examples(text, "test")
    again = examples(text)
    assert len(test) == 10 and len(train) > 20
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(train, again, strict=True))
    assert any(not np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(train, examples(text, seed=1)))
    assert not {tuple(e["input_ids"]) for e in train} & {tuple(e["input_ids"]) for e in test}
    assert len(examples(text, chunks=10**6)) == len(train)
    few = examples(text, chunks=5)
    assert len(few) == 5 and np.array_equal(few[0]["input_ids"], train[0]["input_ids"])


def test_fingerprint_follows_the_text(text):
    examples(text)
    before = cards.source("spans").fingerprint
    with open(text.parent / "b.txt", "a") as f:
        f.write(" more")
    examples(text)
    assert cards.source("spans").fingerprint != before


def test_mistakes_are_told(text, tmp_path):
    with pytest.raises(UserError, match="no text file 'nowhere.txt'"):
        span_corruption.register_text("nowhere.txt", VOCABULARY)
    with pytest.raises(UserError, match="too short"):
        span_corruption.register_text(text, VOCABULARY, inputs=3)
    with pytest.raises(UserError, match="chunks of 52 tokens, too few for 9,999 to test on"):
        examples(text, test_chunks=9_999)
    span_corruption.register_text(text, "procedural", test_chunks=1)
    with pytest.raises(UserError, match="needs 3 extra ids, but the vocabulary 'procedural' has 0"):
        list(cards.source("span_corruption").examples("train"))
    (tmp_path / "latin.dat").write_bytes("café".encode("latin-1"))
    span_corruption.register_text(tmp_path / "latin.dat", VOCABULARY)
    with pytest.raises(UserError, match="not UTF-8"):
        list(cards.source("span_corruption").examples("train"))
