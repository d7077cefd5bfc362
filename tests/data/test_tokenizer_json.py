"""The public T5 vocabulary through SentencePiece, SeqIO and tokenizer.json gives the ids of transformers' tokenizer."""

import base64
import itertools
import json
import lzma
import subprocess
import sys

import pytest
import sentencepiece

from zeroprompt_jax.data import pieces
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

TEXTS = ["Hello  world!", "été — Größe 日本", " a\tb\n c ", "", "½ ﬁ Å", "x" * 60, "<extra_id_0> and <extra_id_1>"]


def tokenizer(vocab, sentinels=2, **changes):
    """A tokenizer.json as transformers writes it for T5."""
    special = ["<pad>", "</s>", "<unk>"]
    last = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    rows = [[text, 0.0] for text in special] + [list(row) for row in vocab] + [[text, 0.0] for text in last]
    added = [{"id": i, "content": text} for i, (text, _) in enumerate(rows) if text in special + last]
    word = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    record = {
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, word]},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": rows},
    }
    return {**record, **changes}


VOCAB = [("▁", -3.0), ("a", -2.0), ("b", -2.5), ("▁ab", -1.0), ("é", -4.0), ("ab", -1.5)]


@pytest.fixture
def write(tmp_path):
    def write(record):
        (tmp_path / "tokenizer.json").write_text(json.dumps(record))
        return str(tmp_path / "tokenizer.json")

    return write


def test_ids_are_those_of_the_pieces(write, tmp_path):
    v = load_vocabulary(write(tokenizer(VOCAB)))
    assert (v.size, v.extra_ids, v.pad_id, v.eos_id) == (11, 2, 0, 1)
    assert v.pieces()[:9] == ["<pad>", "</s>", "<unk>", *(text for text, _ in VOCAB)]
    # Viterbi: '▁ab' (-1.0) beats '▁' 'ab' (-4.5); unknown letters become one <unk>.
    assert v.encode("ab  abab") == [6, 6, 8] and v.encode("xyz b") == [3, 2, 3, 5]
    assert v.decode([6, 7]) == "abé" and v.encode("<extra_id_0> <extra_id_1>") == [10, 9]
    assert load_vocabulary(f"{tmp_path}").encode("ab é") == v.encode("ab é")
    assert load_vocabulary(f"{tmp_path}/tokenizer.json:5").size == 14
    assert pieces.read(str(tmp_path)) == tuple(v.pieces()[:9])


def test_a_directory_has_its_sentinels(shared_data, tmp_path, write):
    (tmp_path / "spiece.model").write_bytes((shared_data / "t5_vocab.model").read_bytes())
    write(tokenizer(VOCAB))  # the SentencePiece file is taken first
    v = load_vocabulary(str(tmp_path))
    assert v.size == 32100 and v.encode("hello <extra_id_0>")[-1] == 32099
    assert load_vocabulary(f"{tmp_path}:0").size == 32000


def _change(record, part, **values):
    return {**record, part: {**(record[part] or {}), **values}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: _change(r, "model", type="BPE", vocab={"a": 0}), "is a BPE tokenizer"),
        (lambda r: {**r, "normalizer": {"type": "Lowercase"}}, "normalises texts by Lowercase"),
        (lambda r: {**r, "pre_tokenizer": {"type": "ByteLevel"}}, "does not split texts into words"),
        (lambda r: {**r, "pre_tokenizer": None}, "does not split texts into words"),
        (lambda r: {**r, "added_tokens": [*r["added_tokens"], {"id": 11, "content": "<mine>"}]}, "behind its pieces"),
        (lambda r: {"version": "1.0"}, "is no tokenizer.json of Hugging Face"),
        (lambda r: _change(r, "model", vocab=[["a"]]), "is no tokenizer.json of Hugging Face"),
        (lambda r: _change(r, "model", unk_id=3), "padding, EOS and unknown ids are 0, 1 and -1"),
    ],
)
def test_what_sentencepiece_cannot_say_is_refused(write, change, match):
    with pytest.raises(UserError, match=match):
        load_vocabulary(write(change(tokenizer(VOCAB))))


def from_sentencepiece(path, sentinels=100):
    """The public vocabulary as a tokenizer.json."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rows = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())]
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap(path.read_bytes())).decode()}
    return tokenizer(rows, sentinels, normalizer={"type": "Sequence", "normalizers": [normalizer]})


def _fields(raw):
    """(number, value) of a protobuf message's fields."""
    at = 0

    def varint():
        nonlocal at
        n = shift = 0
        while True:
            byte = raw[at]
            at, n, shift = at + 1, n | (byte & 127) << shift, shift + 7
            if byte < 128:
                return n

    while at < len(raw):
        key = varint()
        if key & 7 == 2:
            length = varint()
            yield key >> 3, raw[at : at + length]
            at += length
        elif key & 7 == 5:
            at += 4
        else:
            varint()


def charsmap(raw):
    return next(value for n, part in _fields(raw) if n == 3 for m, value in _fields(part) if m == 2)


def lines_of(shared_data, count, every=1):
    """Lines of novels, each `every`th paragraph."""
    with lzma.open(shared_data / "english-novels.txt.xz", "rt", encoding="utf-8") as file:
        lines = (line.rstrip("\n") for line in file if line.strip())
        return list(itertools.islice(lines, 0, count * every, every))


def test_public_vocabulary_is_the_same_through_both_files(shared_data, write):
    ours = load_vocabulary(f"{shared_data}/t5_vocab.model:100")
    bridge = load_vocabulary(write(from_sentencepiece(shared_data / "t5_vocab.model")))
    assert bridge.pieces() == ours.pieces() and bridge.separator == ours.separator
    lines = [*lines_of(shared_data, 500), *TEXTS]
    assert [bridge.encode(line) for line in lines] == [ours.encode(line) for line in lines]


SEQIO = """
import json, sys
from zeroprompt_jax.data.vocabulary import load_vocabulary
lines = json.load(open(sys.argv[1]))
vocabularies = [load_vocabulary(spec).to_seqio() for spec in sys.argv[2:]]
print(json.dumps([[list(map(int, v.encode(line))) for line in lines] for v in vocabularies]))
"""


@pytest.mark.slow
@pytest.mark.parity
def test_ten_thousand_lines_get_the_ids_of_transformers(shared_data, tmp_path):
    import transformers

    (tmp_path / "spiece.model").write_bytes((shared_data / "t5_vocab.model").read_bytes())
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")  # their tokenizer.json
    lines = lines_of(shared_data, 10_000, every=20)
    assert len(lines) == 10_000
    want = theirs(lines, add_special_tokens=False).input_ids
    specs = [f"{shared_data}/t5_vocab.model:100", f"{tmp_path}/saved/tokenizer.json"]
    for spec in specs:
        v = load_vocabulary(spec)
        assert v.size == len(theirs) and [v.encode(line) for line in lines] == want
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    # TensorFlow, which SeqIO imports, and torch do not always share a process.
    argv = [sys.executable, "-c", SEQIO, str(tmp_path / "lines.json"), *specs]
    assert json.loads(subprocess.check_output(argv, text=True).splitlines()[-1]) == [want, want]
