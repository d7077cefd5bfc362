"""Hugging Face's `tokenizer.json` of a T5 as a SentencePiece model, which SeqIO reads and everything here.

Such a file holds the same Unigram pieces and scores, and the same table of normalisation, as the SentencePiece model it
was made from (sentencepiece_model.proto, ModelProto). What a SentencePiece model cannot say is refused.
"""

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zeroprompt_jax.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")


def piece(text: str, score: float, kind: int) -> bytes:
    """A serialised `pieces` field of SentencePiece's ModelProto. kind: NORMAL, UNKNOWN, CONTROL or USER_DEFINED."""
    return _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


def _field(number: int, value: bytes) -> bytes:
    """A protobuf field of variable length, numbered below 16."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def read(path: Path) -> tuple[bytes, int]:
    """(a serialised SentencePiece model without sentinels, how many sentinels `<extra_id_0>` … the file has).

    Raises UserError where the file is damaged, or tokenises as no SentencePiece Unigram model does."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        model = record["model"]
        if model.get("type", "Unigram") != "Unigram" or not isinstance(model["vocab"], list):
            raise UserError(f"{path} is a {model.get('type')} tokenizer; those of T5 are Unigram.")
        vocab = [(str(text), float(score)) for text, score in model["vocab"]]
        if model.get("byte_fallback"):
            raise UserError(f"{path} spells unknown characters as bytes, which is not read here; give its spiece.model.")
        special = {token["content"]: token["id"] for token in record.get("added_tokens") or ()}
        unknown = int(model.get("unk_id") or 0)
        charsmap = _charsmap(path, record.get("normalizer"))
        prefix = _begins_words(path, record.get("pre_tokenizer"))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path} is no tokenizer.json of Hugging Face, or is damaged.") from None
    texts = dict(enumerate(text for text, _ in vocab)) | {i: text for text, i in special.items()}
    count = 0
    while (match := _SENTINEL.fullmatch(texts.get(len(texts) - 1 - count, ""))) and int(match[1]) == count:
        count += 1
    size = len(texts) - count
    if size > len(vocab) or any(_SENTINEL.fullmatch(text) for text, _ in vocab[:size]):
        raise UserError(
            f"{path} adds tokens behind its pieces that are not T5's sentinels, which SentencePiece has no room for."
        )
    if plain := [t["content"] for t in record.get("added_tokens") or () if not t.get("special", True) and t["id"] < size]:
        raise UserError(f"{path} adds '{plain[0]}' as a token that is not special, which is not read here.")
    kind = lambda i, text: UNKNOWN if i == unknown else CONTROL if text in special else NORMAL
    pieces = b"".join(piece(text, score, kind(i, text)) for i, (text, score) in enumerate(vocab[:size]))
    # add_dummy_prefix (3) and remove_extra_whitespaces (4); the pieces that stand for <unk> and the like have their
    # default names.
    normalizer = _field(2, charsmap) + bytes([3 << 3, prefix, 4 << 3, 1])
    return pieces + _field(3, normalizer), count


def _parts(record: Any, children: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a `Sequence`, flat; of nothing, none."""
    if record is None:
        return
    if record["type"] == "Sequence":
        for part in record[children]:
            yield from _parts(part, children)
    else:
        yield record


def _charsmap(path: Path, normalizer: Any) -> bytes:
    charsmap = b""
    for part in _parts(normalizer, "normalizers"):
        if part["type"] == "Precompiled":
            charsmap = base64.b64decode(part["precompiled_charsmap"])
        elif part["type"] not in ("Strip", "Replace"):  # with which Hugging Face removes superfluous spaces
            raise UserError(f"{path} normalises texts by {part['type']}, which a SentencePiece model cannot say.")
    return charsmap


def _begins_words(path: Path, pre_tokenizer: Any) -> bool:
    """Whether a space is put before a text."""
    parts = list(_parts(pre_tokenizer, "pretokenizers"))
    if (
        not parts
        or {part["type"] for part in parts} - {"WhitespaceSplit", "Metaspace"}
        or parts[-1]["type"] != "Metaspace"
    ):
        raise UserError(f"{path} does not split texts into words as SentencePiece does.")
    return parts[-1].get("add_prefix_space", True) and parts[-1].get("prepend_scheme", "always") != "never"
