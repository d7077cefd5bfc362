"""The backbone's mixture and vocabulary."""

import itertools

import numpy as np
import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import backbone, backbone_vocabulary, procedural, procedural_vocabulary

ENGLISH = "“It was 1847,” said Mrs. O'Hara — the extraordinary naïve café of Æsop, 100% sure: £3 [sic]."


def split(v):
    """Words of the suite that are several pieces, alone or among others."""
    words = procedural_vocabulary.words()
    return [w for w in words if len(v.encode(w)) != 1 or len(v.encode(f"42 12 {w} the")) != 4]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times.\n" * 3000, encoding="utf-8")
    return path


def test_mixture_holds_the_backbone_pool_alone(text):
    backbone.register(text, "packaged:t5_tiny", text_share=0.2, per_task=100)
    rates = cards.mixture("backbone")
    assert rates.pop("span_corruption") / (sum(rates.values()) * 5 / 4) == pytest.approx(0.2)
    trained = {name.replace("procedural/", "backbone/", 1) for name in cards.mixture("procedural_train")}
    assert set(rates) == trained and {cards.card(name).pool for name in rates} == {"train"}


def test_more_examples_leave_the_test_examples_out(text):
    backbone.register(text, "packaged:t5_tiny", per_task=150)
    for name in list(cards.mixture("procedural_train"))[::100]:
        mine = list(cards.source(name.replace("procedural/", "backbone/", 1)).examples("train"))
        theirs = cards.source(name)
        assert len(mine) == 150 and mine[:80] == list(theirs.examples("train"))
        assert not {e["input"] for e in mine} & {e["input"] for e in theirs.examples("test")}
    small = next(n for n in cards.mixture("backbone") if "/list_edit/" in n)
    backbone.register(text, "packaged:t5_tiny", per_task=5000)
    assert 150 < len(list(cards.source(small).examples("train"))) < 5000


def test_mistakes_are_told(text):
    with pytest.raises(UserError, match="text_share is 1.5"):
        backbone.register(text, "packaged:t5_tiny", text_share=1.5)
    with pytest.raises(UserError, match="'novels.txt'; give the path of plain text"):
        backbone.register("novels.txt", "packaged:t5_tiny")


def test_every_word_of_the_suite_is_one_piece_of_the_packaged_vocabulary():
    v = load_vocabulary("packaged:t5_tiny")
    assert (v.size, v.extra_ids) == (8192, 100)
    assert split(v) == []
    for spec in list(procedural.SPECS.values())[::40]:
        for example in itertools.islice(procedural.source_of(spec).examples("test"), 5):
            for text in example.values():
                assert v.decode(v.encode(text)) == text and len(v.encode(text)) == len(text.replace(",", " ,").split())


def test_packaged_vocabulary_knows_any_text():
    v = load_vocabulary("packaged:t5_tiny")
    assert v.decode(v.encode(ENGLISH)) == ENGLISH and v.unk_id not in v.encode(ENGLISH)
    a, b = "what is the verb?", ": dog “run” 12"
    assert v.join(v.encode(a), v.encode(b)) == v.encode(f"{a} {b}")


def test_training_a_vocabulary_makes_words_pieces(tmp_path):
    pytest.importorskip("google.protobuf")
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bcdfghklmnprstvz" for b in "aeiou"])
    made = ["".join(rng.choice(syllables, n)) for n in rng.integers(1, 5, 3000)]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(made, 20)) for _ in range(2000)), encoding="utf-8")
    lines = [*backbone_vocabulary.plain_text(text), *backbone_vocabulary.task_text()]
    path = tmp_path / "made.model"
    path.write_bytes(backbone_vocabulary.train(lines, size=2500))
    v = load_vocabulary(f"{path}:100")
    assert v.size == 2500 and split(v) == []
    assert v.decode(v.encode(ENGLISH)) == ENGLISH and v.unk_id not in v.encode(ENGLISH)
    with pytest.raises(UserError, match="too little text"):
        backbone_vocabulary.train(["one line"], size=2500)
