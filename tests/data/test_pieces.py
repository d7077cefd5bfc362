"""Pieces of vocabularies: read alike from SentencePiece and tokenizer.json, compared, and filtered to English words."""

import json

import pytest

from zeroprompt_jax.data import pieces
from zeroprompt_jax.data.pieces import EnglishWords
from zeroprompt_jax.errors import UserError

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁a", "ing", "▁über", "▁dog", "▁2nd", "▁cat", "Ġrun", ",", "▁Dog"]


def tokenizer(path, vocab, added=()):
    path.write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": list(added)}), encoding="utf-8")
    return str(path)


def test_read_from_every_kind_of_file(tmp_path):
    sentinels = [{"content": f"<extra_id_{i}>", "id": len(PIECES) + 1 - i} for i in (0, 1)]
    unigram = tokenizer(tmp_path / "tokenizer.json", [[piece, -1.0] for piece in PIECES], sentinels)
    bpe = tokenizer(tmp_path / "bpe.json", {piece: i for i, piece in reversed(list(enumerate(PIECES)))})
    assert pieces.read(unigram) == pieces.read(bpe) == pieces.read(str(tmp_path)) == tuple(PIECES)
    packaged = pieces.read("packaged:t5_tiny")
    assert len(packaged) == 8092 and packaged[:3] == ("<pad>", "</s>", "<unk>")
    assert len(pieces.read("bytes")) == 259 and pieces.read("bytes")[3 + ord("a")] == "<0x61>"
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="bad.json is no tokenizer.json"):
        pieces.read(str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match="none.json cannot be read"):
        pieces.read(str(tmp_path / "none.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no vocabulary"):
        pieces.read(str(tmp_path / "empty"))


def test_words_in_order():
    assert EnglishWords(0, 5).choose(PIECES) == [4, 8, 10, 11, 13]
    assert EnglishWords(1, 2).choose(PIECES) == [8, 10] and EnglishWords(1, 2).rest(PIECES) == [11, 13]
    with pytest.raises(UserError, match="5 pieces that are English words: too few rows for .*skip 2 and count 4"):
        EnglishWords(2, 4).choose(PIECES)
    with pytest.raises(UserError, match="skip -1"):
        EnglishWords(-1)


def test_words_of_wordpiece_have_no_mark():
    told = ["[PAD]", "[unused1]", "the", "##ing", "a", "of", "7", "dog"]
    assert EnglishWords(0, 3).choose(told) == [2, 5, 7]


def test_different_vocabularies_are_told_by_their_first_difference():
    pieces.check_same(PIECES, PIECES)
    swapped = [*PIECES[:8], PIECES[10], PIECES[9], PIECES[8], *PIECES[11:]]
    with pytest.raises(
        UserError, match="A and B have different vocabularies: id 8 is '▁dog' in one, '▁cat' in the other"
    ):
        pieces.check_same(PIECES, swapped, ("A", "B"))
    with pytest.raises(UserError, match="of 14 and 13 pieces: id 13 is '▁Dog' in one and missing"):
        pieces.check_same(PIECES, PIECES[:-1])


def test_the_public_vocabulary_of_t5(shared_data):
    found = pieces.read(str(shared_data / "t5_vocab.model"))
    assert len(found) == 32000 and pieces.read(f"{shared_data / 't5_vocab.model'}:100") == found
    rows = EnglishWords().choose(found)
    assert len(rows) == 4000 == len(set(rows)) and rows == sorted(rows) and rows[0] > 1000
    words = [found[i].removeprefix("▁") for i in rows]
    assert all(word.isascii() and word.isalpha() for word in words)
    assert {"clean", "museum"} <= {word.lower() for word in words}  # no longer the commonest, and not rare
