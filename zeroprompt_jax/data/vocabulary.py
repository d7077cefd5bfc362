"""Vocabularies: text to token ids and back, in plain Python, with the ids of SeqIO's vocabularies."""

import abc
import functools
import hashlib
import importlib.util
import pathlib
import re
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from zeroprompt_jax import pretrained
from zeroprompt_jax.data import tokenizer_json
from zeroprompt_jax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_PROCEDURAL = "procedural"
_BYTES_EXTRA_IDS = 125
_PACKAGED_EXTRA_IDS = 100


class Vocabulary(abc.ABC):
    """Text to token ids and back. Make one with `load_vocabulary`.

    Attributes:
      spec: the text `load_vocabulary` read it from.
      size: number of ids, extra ids included.
      extra_ids: sentinels at the end; `<extra_id_0>` is the last id.
      fingerprint: changes whenever any text would get other ids.
      separator: the ids that stand for the space between two texts in `join`.
      path: the SentencePiece file, or None where there is none.
    """

    path: pathlib.Path | None = None
    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, spec: str, size: int, extra_ids: int, fingerprint: str, separator: tuple[int, ...]):
        self.spec, self.size, self.extra_ids, self.fingerprint, self.separator = (
            spec,
            size,
            extra_ids,
            fingerprint,
            separator,
        )

    def __repr__(self) -> str:
        return f"Vocabulary({self.spec!r}, size={self.size})"

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without EOS."""

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of many texts as one flat int32 array, and each text's length [N] int64; without EOS."""
        encoded = [self.encode(t) for t in texts]
        return _ragged(encoded)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids up to the first EOS; padding and extra ids are left out."""
        kept = []
        for i in map(int, ids):
            if i == EOS_ID:
                break
            if i != PAD_ID and i < self.size - self.extra_ids:
                kept.append(i)
        return self._decode(kept)

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that are neither padding, EOS nor extra."""

    def join(self, a: Sequence[int], b: Sequence[int]) -> list[int]:
        """`join(encode(a), encode(b)) == encode(a + " " + b)`, unless a ends or b begins with white space. An empty
        side adds nothing, not even the space."""
        return [*a, *self.separator, *b] if len(a) and len(b) else [*a, *b]

    @abc.abstractmethod
    def pieces(self) -> list[str]:
        """What every id stands for, extra ids included."""

    @abc.abstractmethod
    def to_seqio(self):
        """The SeqIO vocabulary with the same ids. Imports seqio."""


class _Bytes(Vocabulary):
    def __init__(self, spec: str, extra_ids: int):
        super().__init__(spec, 259 + extra_ids, extra_ids, f"bytes:{extra_ids}", (ord(" ") + 3,))

    def encode(self, text: str) -> list[int]:
        return [b + 3 for b in text.encode("utf-8")]

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [t.encode("utf-8") for t in texts]
        flat = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32) + 3
        return flat, np.fromiter(map(len, encoded), np.int64, len(encoded))

    def _decode(self, ids: list[int]) -> str:
        return bytes(i - 3 for i in ids if i >= 3).decode("utf-8", errors="ignore")

    def pieces(self) -> list[str]:
        extra = [f"<extra_id_{i}>" for i in reversed(range(self.extra_ids))]
        return ["<pad>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *extra]

    def to_seqio(self):
        import seqio

        return seqio.ByteVocabulary(extra_ids=self.extra_ids)


class _SentencePiece(Vocabulary):
    """extra_ids: None takes as many as a tokenizer.json has, and of a SentencePiece model none."""

    def __init__(self, spec: str, path: pathlib.Path, extra_ids: int | None):
        try:
            model, own = tokenizer_json.read(path) if path.suffix == ".json" else (path.read_bytes(), 0)
        except OSError as e:
            raise UserError(f"Vocabulary '{spec}': {path} cannot be read ({e.strerror}).") from None
        extra_ids = own if extra_ids is None else extra_ids
        self.path, self._bytes = path, model
        # The Python package has no way to add pieces, and its protobuf module would need protobuf; but a serialised
        # message with further `pieces` fields appended is the message with those pieces added.
        sentinels = (f"▁<extra_id_{i}>" for i in reversed(range(extra_ids)))
        model_with_extra = model + b"".join(
            tokenizer_json.piece(sentinel, 0.0, tokenizer_json.USER_DEFINED) for sentinel in sentinels
        )
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model_with_extra)
            pad, eos, unk = self._model.pad_id(), self._model.eos_id(), self._model.unk_id()
        except (RuntimeError, ValueError):
            raise UserError(f"Vocabulary '{spec}': {path} is not a SentencePiece model, or is damaged.") from None
        if (pad, eos, unk) != (PAD_ID, EOS_ID, UNK_ID):
            raise UserError(
                f"Vocabulary '{spec}': its padding, EOS and unknown ids are {pad}, {eos} and {unk}; T5 models need "
                f"0, 1 and 2."
            )
        digest = hashlib.sha256(model).hexdigest()[:16]
        super().__init__(spec, self._model.get_piece_size(), extra_ids, f"{digest}:{extra_ids}", self._find_separator())

    def _find_separator(self) -> tuple[int, ...]:
        # Models that put a space before the first word (T5's do) need nothing between two encoded texts.
        a, b = self.encode("a"), self.encode("b")
        together = self.encode("a b")
        gap = together[len(a) : len(together) - len(b)]
        return tuple(gap) if [*a, *gap, *b] == together else ()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_ragged(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _ragged(self._model.encode(list(texts)) if texts else [])

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def pieces(self) -> list[str]:
        return self._model.id_to_piece(list(range(self.size)))

    def to_seqio(self):
        import seqio

        return seqio.SentencePieceVocabulary(str(self._file), extra_ids=self.extra_ids)

    @functools.cached_property
    def _file(self) -> pathlib.Path:
        """A SentencePiece file, which of a tokenizer.json is made for as long as the process runs."""
        if self.path.suffix != ".json":
            return self.path
        self._folder = tempfile.TemporaryDirectory()
        file = pathlib.Path(self._folder.name) / "spiece.model"
        file.write_bytes(self._bytes)
        return file


def _ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    flat = np.fromiter((i for row in rows for i in row), np.int32, int(lengths.sum()))
    return flat, lengths


def file_in(folder: pathlib.Path) -> pathlib.Path:
    """The vocabulary's file in a directory in Hugging Face layout. UserError where there is none."""
    for name in ("spiece.model", "tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"The directory {folder} holds no vocabulary: neither spiece.model nor tokenizer.json.")


def load_vocabulary(spec: str) -> Vocabulary:
    """Loads a vocabulary by its spec. The same spec gives the same object.

    Args:
      spec: `bytes` (ByT5's ids: byte + 3, 125 extra ids, size 384), `procedural` (the packaged vocabulary of the
        procedural suite), the path of a SentencePiece `.model` or of a Hugging Face `tokenizer.json`, or a
        directory in Hugging Face layout or a model's name (`packaged:NAME`, `OWNER/NAME` on the hub); each may end in `:N`
        for N extra ids (T5 uses 100; without it a SentencePiece file gets none, a tokenizer.json those it has, and the
        spiece.model of a directory 100).

    Raises:
      UserError: the file is missing or neither of the two, its special ids are not T5's, or no model has that name.
    """
    path, _, extra = spec.rpartition(":")
    if not (path and re.fullmatch(r"\d+", extra)):
        path, extra = spec, None
    return _load(spec, path, None if extra is None else int(extra))


@functools.lru_cache(maxsize=16)
def _load(spec: str, path: str, extra_ids: int | None) -> Vocabulary:
    if path == "bytes":
        return _Bytes(spec, _BYTES_EXTRA_IDS if extra_ids is None else extra_ids)
    if path == _PROCEDURAL:
        package = importlib.util.find_spec("zeroprompt_jax.tasks")
        file = pathlib.Path(package.submodule_search_locations[0]) / "procedural.model"
    else:
        file = pretrained.directory(path) or pathlib.Path(path).expanduser()
        if not file.exists():
            raise UserError(
                f"Vocabulary '{spec}': there is no file {file}. Use 'bytes', 'procedural', 'packaged:t5_tiny', the path of a "
                f"SentencePiece .model or a tokenizer.json, a model directory, or OWNER/NAME on the Hugging Face hub."
            )
        if file.is_dir():
            file = file_in(file)
            extra_ids = _PACKAGED_EXTRA_IDS if extra_ids is None and file.suffix != ".json" else extra_ids
    return _SentencePiece(spec, file, extra_ids)
