import subprocess
import sys

import numpy as np
import pytest

from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

TEXTS = ["hello world", "A sentence, with marks: 12.5%!", "été — Größe 日本", "", "x"]


@pytest.fixture(params=["bytes", "procedural", "t5"])
def vocabulary(request):
    if request.param != "t5":
        return load_vocabulary(request.param)
    return load_vocabulary(f"{request.getfixturevalue('shared_data')}/t5_vocab.model:100")


def test_bytes_are_byt5s():
    v = load_vocabulary("bytes")
    assert (v.size, v.pad_id, v.eos_id) == (384, 0, 1)
    assert v.encode("aé") == [100, 198, 172]
    assert v.decode([100, 198, 172, 0, 259, 383, 1, 100]) == "aé"
    assert load_vocabulary("bytes:0").size == 259


def test_join_is_encoding_with_a_space(vocabulary):
    for a in ["Say the word.", "Task (3):", "x"]:
        for b in ["stone river", "12", "Z"]:
            assert vocabulary.join(vocabulary.encode(a), vocabulary.encode(b)) == vocabulary.encode(f"{a} {b}")
    assert vocabulary.join([], vocabulary.encode("b")) == vocabulary.encode("b")
    assert vocabulary.join(vocabulary.encode("b"), []) == vocabulary.encode("b")


def test_ragged_encoding_is_one_by_one_encoding(vocabulary):
    flat, lengths = vocabulary.encode_ragged(TEXTS)
    assert [row.tolist() for row in np.split(flat, np.cumsum(lengths)[:-1])] == [vocabulary.encode(t) for t in TEXTS]
    assert flat.dtype == np.int32
    assert [len(x) for x in vocabulary.encode_ragged([])] == [0, 0]


def test_decoding_returns_the_text_and_stops_at_eos(vocabulary):
    for text in ["hello world", "say 12"]:
        ids = vocabulary.encode(text)
        assert vocabulary.decode([*ids, 1, *ids]) == text
        assert vocabulary.decode(np.array([*ids, 0, 0, vocabulary.size - 1 if vocabulary.extra_ids else 0])) == text


def test_sentinels_are_numbered_from_the_end(shared_data):
    v, plain = (load_vocabulary(f"{shared_data}/t5_vocab.model{extra}") for extra in (":100", ""))
    assert (plain.size, v.size) == (32000, 32100)
    assert v.encode("<extra_id_0> a <extra_id_99>")[0] == 32099
    assert v.encode("<extra_id_0> a <extra_id_99>")[-1] == 32000
    assert plain.fingerprint != v.fingerprint
    assert plain.encode("hello") == v.encode("hello")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.model"):
        load_vocabulary(f"{tmp_path}/missing.model:100")
    (tmp_path / "bad.model").write_bytes(b"not a model at all")
    with pytest.raises(UserError, match=r"bad\.model.*not a SentencePiece model"):
        load_vocabulary(f"{tmp_path}/bad.model")
    with pytest.raises(UserError, match="holds no vocabulary: neither spiece.model nor tokenizer.json"):
        load_vocabulary(str(tmp_path))


def test_data_room_imports_neither_tensorflow_nor_seqio():
    modules = ["cards", "vocabulary", "cache", "store", "shards", "mixture", "batches", "seqio_bridge"]
    code = "import sys; " + "; ".join(f"import zeroprompt_jax.data.{m}" for m in modules)
    code += "; print([m for m in ('tensorflow', 'seqio', 'jax', 'grain') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
