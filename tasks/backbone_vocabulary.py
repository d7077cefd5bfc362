"""Trains the SentencePiece model of the packaged backbone, on English text and the procedural suite.

    python -m zeroprompt_jax.tasks.backbone_vocabulary novels.txt --natural_instructions DIR --output spiece.model

A unigram model whose pieces never cross white space, so that texts join as their pieces do, with bytes below it, so that
nothing is unknown. Every word of the suite is one piece: what training text did not make one is added, just likely enough
to beat its parts, and so hardly used inside other words. Numbers above 199 are digits.
"""

import argparse
import io
import itertools
import pathlib
from collections.abc import Iterable, Iterator

import sentencepiece

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import natural_instructions, procedural, procedural_vocabulary

SIZE = 8192
EXTRA_IDS = 100  # T5's sentinels, the last ids; the file does not hold them
SPACE = procedural_vocabulary.SPACE
_CHARACTERS = 24_000_000  # of plain text: more hardly changes eight thousand pieces
_LINE = 1000
_INSTANCES = 10  # of each Natural Instructions task
_EXAMPLES = 4  # of each procedural task
_REPEATS = 200  # of each of the suite's words by itself, so that most become pieces by training
_NEVER = -1000.0
_MARGIN = 0.05  # in log likelihood


def plain_text(path: pathlib.Path) -> Iterator[str]:
    """Lines of a text file, spread over all of it, at most about `_CHARACTERS` in all."""
    stride = max(1, path.stat().st_size // _CHARACTERS)
    with path.open(encoding="utf-8") as file:
        for i, line in enumerate(file):
            if i % stride == 0 and (text := line.strip()):
                yield from (text[at : at + _LINE] for at in range(0, len(text), _LINE))


def task_text() -> Iterator[str]:
    """Wordings and some examples of every procedural task, and of Natural Instructions' training tasks if registered."""
    registered = natural_instructions.TRAIN_MIXTURE in cards.mixture_names()
    for word in procedural_vocabulary.words():
        yield from [f"{word} {word}"] * (_REPEATS // 2)
    others = cards.mixture(natural_instructions.TRAIN_MIXTURE) if registered else ()
    for names, count in ((procedural.SPECS, _EXAMPLES), (others, _INSTANCES)):
        for name in names:
            yield from (wording[:_LINE] for wording in cards.card(name).instructions)
            for example in itertools.islice(cards.source(name).examples("train"), count):
                yield from (example["input"][:_LINE], example["target"][:_LINE])


def train(lines: Iterable[str], size: int = SIZE) -> bytes:
    """The model file's content: pad 0, eos 1, unk 2; with EXTRA_IDS sentinels it has `size` pieces.

    Raises UserError where the text is too little for so many."""
    from sentencepiece import sentencepiece_model_pb2 as proto  # needs protobuf, which only building does

    words = [SPACE + word for word in [*procedural_vocabulary.words(), *procedural_vocabulary.PUNCTUATION]]
    model = proto.ModelProto.FromString(_unigram(lines, size - EXTRA_IDS))
    missing = sorted(set(words) - {p.piece for p in model.pieces})
    _drop_least_likely(model, len(missing), keep=set(words))
    for word in missing:
        model.pieces.add(piece=word, score=_NEVER)
    _prefer_whole(model, words)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString(deterministic=True)


def _unigram(lines: Iterable[str], size: int) -> bytes:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=size,
            character_coverage=0.9999,
            byte_fallback=True,
            normalization_rule_name="identity",
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=2,
            minloglevel=1,
        )
    except RuntimeError as e:
        raise UserError(f"Vocabulary: there is too little text for {size:,} pieces ({str(e).strip()}).") from None
    return written.getvalue()


def _drop_least_likely(model, count: int, keep: set[str]) -> None:
    """Makes room for `count` pieces. Single characters stay: they are below everything else."""
    longer = [p for p in model.pieces if p.type == p.NORMAL and len(p.piece.removeprefix(SPACE)) > 1]
    droppable = [p for p in longer if p.piece not in keep]
    dropped = {p.piece for p in sorted(droppable, key=lambda p: p.score)[:count]}
    kept = [p for p in model.pieces if p.piece not in dropped]
    del model.pieces[:]
    model.pieces.extend(kept)


def _prefer_whole(model, words: list[str]) -> None:
    """Raises each word that is not clearly likelier than its parts above them. Raising one may raise another's parts, so
    it repeats; a mere tie would be broken now so, now so, by what stands before."""
    pieces = {p.piece: p for p in model.pieces}
    while True:
        loaded = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        raised = False
        for word in words:
            ways = loaded.nbest_encode(word.removeprefix(SPACE), nbest_size=2, out_type=str)
            parts = max(sum(pieces[p].score for p in way) for way in ways if way != [word])
            if pieces[word].score < parts + _MARGIN:
                pieces[word].score = parts + 2 * _MARGIN
                raised = True
        if not raised:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=pathlib.Path, help="a plain text file, English")
    parser.add_argument("--natural_instructions", help="directory of the public repository; left out by default")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("spiece.model"))
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        raise UserError(f"There is no text file {arguments.text}.")
    if arguments.natural_instructions:
        natural_instructions.register_directory(arguments.natural_instructions)
    content = train(itertools.chain(plain_text(arguments.text), task_text()))
    arguments.output.write_bytes(content)
    print(f"{arguments.output}: {len(content):,} bytes, and {EXTRA_IDS} extra ids")


if __name__ == "__main__":
    main()
