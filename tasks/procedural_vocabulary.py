"""Builds the suite's SentencePiece model, `procedural.model`: `python -m zeroprompt_jax.tasks.procedural_vocabulary`.

The model is written piece by piece instead of being trained: every word of the suite is one piece, and characters and
bytes stand below for any other text, so that nothing is ever unknown. The same code gives the same file to the byte.
"""

import itertools
import pathlib
import string

from zeroprompt_jax.tasks import procedural
from zeroprompt_jax.tasks import procedural_words as word_lists

PATH = pathlib.Path(__file__).with_name("procedural.model")
PUNCTUATION = ".,;:?=!"
SPACE = "\u2581"


def words() -> list[str]:
    """Every word of the suite's word lists and wordings, and of some examples of each task, sorted."""
    found = {str(n) for n in range(200)} | set(string.ascii_letters)
    found |= {w for value in vars(word_lists).values() for w in _strings(value)}
    for spec in procedural.SPECS.values():
        # A few examples are enough for the words between the values: the values are in the word lists.
        op = spec.operation
        texts = [*op.wordings, *op.unseen]
        for argument in spec.arguments:
            texts += [*op.phrases.get(argument, (argument,)), *op.unseen_phrases.get(argument, ())]
        for example in itertools.islice(procedural.source_of(spec).examples("train"), 4):
            texts += example.values()
        texts += op.options(spec.arguments)
        for text in texts:
            found |= {w.strip(PUNCTUATION) for w in text.split() if "{" not in w}
    return sorted(found - {""})


def _strings(value) -> set[str]:
    if isinstance(value, str):
        return {value} if value.isalnum() else set()
    if isinstance(value, dict):
        return _strings(tuple(value.items()))
    return set().union(*map(_strings, value)) if isinstance(value, tuple) else set()


def serialized() -> bytes:
    """The model file's content: pad 0, eos 1, unk 2, then the suite's words, characters and the 256 bytes."""
    from sentencepiece import sentencepiece_model_pb2 as proto  # needs protobuf, which only building does

    model = proto.ModelProto()
    kinds = proto.ModelProto.SentencePiece

    def add(piece, score, kind):
        model.pieces.add(piece=piece, score=score, type=kind)

    add("<pad>", 0.0, kinds.CONTROL)
    add("</s>", 0.0, kinds.CONTROL)
    add("<unk>", 0.0, kinds.UNKNOWN)
    known = words()
    # A whole word always beats its characters: one score against the sum of at least two.
    for word in known:
        add(SPACE + word, -5.0, kinds.NORMAL)
    for mark in PUNCTUATION:
        add(SPACE + mark, -5.0, kinds.NORMAL)
    for character in [SPACE, *sorted(set(string.printable) - set(string.whitespace))]:
        add(character, -10.0, kinds.NORMAL)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 0.0, kinds.BYTE)
    trainer = model.trainer_spec
    trainer.model_type = proto.TrainerSpec.UNIGRAM
    trainer.vocab_size = len(model.pieces)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece = "<pad>", "</s>", "<unk>"
    trainer.byte_fallback = True
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = normalizer.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)


def main() -> None:
    content = serialized()
    PATH.write_bytes(content)
    print(f"{PATH.name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
