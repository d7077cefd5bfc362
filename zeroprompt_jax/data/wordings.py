"""A wording: how a task is put to the model. The one concept behind instructions and prompt templates.

A wording without placeholders is an instruction and stands before the card's rendered input, as in training. One with
placeholders, fields of an example in braces, is the whole prompt: "Review: {input} Is it {options}?". Other braces are
plain text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zeroprompt_jax.data.cards import LEAST_INPUT, OPTIONS, TaskCard, is_input, parts
from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.errors import UserError

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_MARK = re.compile(r"\bX\d+\b")


def placeholders(wording: str) -> list[str]:
    """The fields that a wording names, in order."""
    return _FIELD.findall(wording)


def _parts(card: TaskCard, wording: str) -> list[tuple[str, str]]:
    """The prompt in parts: ('', text) as it stands, and (field, its format) to be filled."""
    if placeholders(wording):
        pieces = _FIELD.split(wording)
        return [(piece, f"{{{piece}}}") if i % 2 else ("", piece) for i, piece in enumerate(pieces) if piece]
    return [("", f"{wording} ")] * bool(wording) + [*parts(card.input_template)]


def check(card: TaskCard, wording: str, vocabulary: Vocabulary, limit: int, options: Sequence[str] = ()) -> None:
    """Raises UserError where a wording cannot serve a task: it leaves out a field of the card's input, or its own
    tokens leave no room for the input in `limit`, or with the listed `options` they do not fit at all."""
    named = {field for field, _ in _parts(card, wording)}
    for field, _ in _parts(card, ""):
        if is_input(field) and field not in named:
            raise UserError(
                f"Task '{card.name}': the wording '{wording}' has placeholders but lacks {{{field}}}, so that examples "
                f"would read the same."
            )
    fixed = len(vocabulary.encode("".join(text for field, text in _parts(card, wording) if not field)))
    if fixed + LEAST_INPUT > limit:
        raise UserError(
            f"Task '{card.name}': the wording '{wording}' has {fixed} tokens, which leaves {max(limit - fixed, 0)} of "
            f"{limit} for the input."
        )
    texts = ["; ".join(options) if field == OPTIONS else text for field, text in _parts(card, wording)]
    whole = "".join(text for (field, _), text in zip(_parts(card, wording), texts) if field in ("", OPTIONS))
    if (tokens := len(vocabulary.encode(whole))) > limit:
        raise UserError(
            f"Task '{card.name}': the wording '{wording}' and its options alone have {tokens} tokens, above {limit}."
        )


def fill(
    card: TaskCard,
    wording: str,
    example: Mapping[str, Any],
    options: Sequence[str],
    vocabulary: Vocabulary,
    limit: int,
) -> str:
    """The prompt of an example under a wording, in at most `limit` tokens (EOS not counted). Only fields of the input
    are ever cut, the longest first and at their ends; the wording and the listed options stay whole.

    Raises:
      UserError: a field that the example lacks, or a wording and options that alone are too long.
    """
    values = {**example, OPTIONS: "; ".join(options)}
    pieces = _parts(card, wording)
    for field, _ in pieces:
        if field and re.split(r"[.\[]", field)[0] not in values:
            have = ", ".join(sorted(map(str, example)))
            raise UserError(f"Task '{card.name}': the wording names the field '{field}', but its examples have {have}.")
    texts = [text.format(**values) if field else text for field, text in pieces]
    inputs = [i for i, (field, _) in enumerate(pieces) if is_input(field)]
    while (over := len(vocabulary.encode("".join(texts))) - limit) > 0:
        tokens = {i: vocabulary.encode(texts[i]) for i in inputs}
        longest = max(inputs, key=lambda i: len(tokens[i]))
        if not tokens[longest]:
            raise UserError(
                f"Task '{card.name}': the wording '{wording}' and its options alone are {over} tokens above {limit}."
            )
        # Half of a letter that is several byte tokens would be read as a letter of more of them.
        texts[longest] = vocabulary.decode(tokens[longest][: max(len(tokens[longest]) - over, 0)]).rstrip("\ufffd")
    return "".join(texts)


def hide(wording: str, options: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Puts a mark (X1, X2, …) for every placeholder and every answer option in a wording, so that what rewrites its
    words cannot change them. Returns the marked text and what each mark stands for."""
    words = sorted(options, key=len, reverse=True)
    pattern = "|".join([r"\{[A-Za-z_]\w*\}", *(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words if word)])
    taken, marks = set(_MARK.findall(wording)), {}

    def mark(found: re.Match) -> str:
        number = 1 + len(marks)
        while f"X{number}" in taken:
            number += 1
        taken.add(f"X{number}")
        marks[f"X{number}"] = found[0]
        return f"X{number}"

    return re.sub(pattern, mark, wording), marks


def show(text: str, marks: Mapping[str, str], options: Sequence[str]) -> str | None:
    """The wording behind a rewritten marked text; None unless it has every mark once and no other option or brace."""
    found = [mark for mark in _MARK.findall(text) if mark in marks]
    if sorted(found) != sorted(marks) or "{" in text or "}" in text or hide(text, options)[1]:
        return None
    return _MARK.sub(lambda mark: marks.get(mark[0], mark[0]), text)


def is_mark(word: str) -> bool:
    """Whether a word of a marked text holds a mark, and so must stay."""
    return _MARK.search(word) is not None
