"""Vocabularies of encoders: BERT's WordPiece and RoBERTa's byte pairs, with the marks that such models read."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zeroprompt_jax import pretrained
from zeroprompt_jax.data.byte_pairs import BytePairs
from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.data.word_pieces import WordPieces
from zeroprompt_jax.errors import UserError

# Names of the marks: BERT's and RoBERTa's.
_MARKS = {
    "first": ("[CLS]", "<s>"),
    "separator": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "mask": ("[MASK]", "<mask>"),
}


class EncoderVocabulary(Vocabulary):
    """Text to token ids and back. Make one with `load_encoder_vocabulary` or `words_vocabulary`.

    A mark's name within a text is text like any other, so that no example can pass for two.

    Attributes:
      first_id, separator_id, pad_id, unk_id, mask_id: of the marks. eos_id is the separator's.
      token_types: 2 where the second segment has a type of its own, as BERT's, else 1.
      pair_separators: how many separators are between the segments of a pair as the model read them in pretraining.
    """

    def __init__(self, spec: str, pieces: WordPieces | BytePairs, fingerprint: str):
        super().__init__(spec, len(pieces.pieces), 0, fingerprint, ())
        self._pieces = pieces
        ids = {}
        for mark, names in _MARKS.items():
            found = [name for name in names if name in pieces.pieces]
            if not found:
                raise UserError(f"Vocabulary '{spec}' has no {' or '.join(names)}, which an encoder's needs.")
            ids[mark] = pieces.pieces.index(found[0])
        self.first_id, self.separator_id, self.mask_id = ids["first"], ids["separator"], ids["mask"]
        self.pad_id, self.unk_id, self.eos_id = ids["pad"], ids["unk"], ids["separator"]
        self.marks = frozenset(ids.values())
        self.token_types, self.pair_separators = (2, 1) if isinstance(pieces, WordPieces) else (1, 2)

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; marks are left out."""
        return self._decode([i for i in map(int, ids) if i not in self.marks])

    def _decode(self, ids: list[int]) -> str:
        return self._pieces.decode(ids)

    def join(self, a: Sequence[int], b: Sequence[int]) -> list[int]:
        if isinstance(self._pieces, BytePairs):
            raise UserError(
                f"Vocabulary '{self.spec}': byte pairs put a space into the word behind it; join texts instead."
            )
        return [*a, *b]

    def pieces(self) -> list[str]:
        return list(self._pieces.pieces)

    def to_seqio(self):
        raise UserError(f"Vocabulary '{self.spec}' is an encoder's, which SeqIO cannot read.")


def words_vocabulary(words: Sequence[str]) -> EncoderVocabulary:
    """BERT's marks and these words, in lower case, each one token; any other word is unknown."""
    pieces = [names[0] for names in _MARKS.values()] + list(dict.fromkeys(words))
    return EncoderVocabulary("words", WordPieces(pieces), _digest(pieces))


@functools.lru_cache(maxsize=8)
def load_encoder_vocabulary(spec: str) -> EncoderVocabulary:
    """Loads an encoder's vocabulary. The same spec gives the same object.

    Args:
      spec: a Hugging Face `tokenizer.json` of WordPiece (BERT) or byte-level pairs (RoBERTa), a `vocab.txt` of BERT (what
        a `tokenizer_config.json` beside it says of lower case counts), a directory with either, or OWNER/NAME of a model on
        the Hugging Face hub.

    Raises:
      UserError: no such file, a tokenizer of another kind, or a mark that is missing.
    """
    file = pretrained.directory(spec) or Path(spec).expanduser()
    if file.is_dir():
        found = [file / name for name in ("tokenizer.json", "vocab.txt") if (file / name).is_file()]
        if not found:
            raise UserError(
                f"The directory {file} holds no encoder's vocabulary: neither tokenizer.json nor vocab.txt."
            )
        file = found[0]
    try:
        pieces, what = _read_text(file) if file.suffix == ".txt" else _read_json(file)
    except OSError as e:
        raise UserError(f"Vocabulary '{spec}': {file} cannot be read ({e.strerror}).") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"Vocabulary '{spec}': {file} is neither a tokenizer.json nor a vocab.txt, or is damaged."
        ) from None
    return EncoderVocabulary(spec, pieces, _digest(what))


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _read_text(file: Path) -> tuple[WordPieces, Any]:
    # A line ends at a newline alone: BERT has pieces that are other separators, such as U+2028.
    pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    beside = file.with_name("tokenizer_config.json")
    config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    lowercase, accents = config.get("do_lower_case", True), config.get("strip_accents")
    options = {
        "lowercase": lowercase,
        "strip_accents": lowercase if accents is None else accents,
        "ideographs": config.get("tokenize_chinese_chars", True),
    }
    return WordPieces(pieces, **options), [pieces, options]


def _read_json(file: Path) -> tuple[WordPieces | BytePairs, Any]:
    record = json.loads(file.read_text(encoding="utf-8"))
    model = record["model"]
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in record.get("added_tokens") or ()}}
    kinds = {part: (record.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer")}
    kind = model.get("type")
    if kind == "WordPiece" and kinds == {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}:
        normal = record["normalizer"]
        accents = normal["strip_accents"]
        options = {
            "unknown": model["unk_token"],
            "prefix": model["continuing_subword_prefix"],
            "lowercase": normal["lowercase"],
            "strip_accents": normal["lowercase"] if accents is None else accents,
            "ideographs": normal["handle_chinese_chars"],
        }
        return WordPieces(_by_id(ids), **options), [ids, options]
    if kind == "BPE" and kinds == {"normalizer": None, "pre_tokenizer": "ByteLevel"}:
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        begins = bool(record["pre_tokenizer"].get("add_prefix_space"))
        return BytePairs(_by_id(ids), merges, begins), [ids, merges, begins]
    raise UserError(
        f"{file} is a {kind} tokenizer ({kinds['normalizer']}, {kinds['pre_tokenizer']}); known here are BERT's WordPiece "
        f"and RoBERTa's byte-level BPE."
    )


def _by_id(ids: Mapping[str, int]) -> list[str]:
    pieces = [""] * (1 + max(ids.values()))
    for piece, i in ids.items():
        pieces[i] = piece
    return pieces
