"""Classification as entailment: what rows hold, which of it are slots, and what their scores say."""

import dataclasses
import itertools

import numpy as np
import pytest

from zeroprompt_jax.data import cards, entailment
from zeroprompt_jax.data.byte_pairs import BytePairs, _letters
from zeroprompt_jax.data.encoder_vocabulary import EncoderVocabulary, words_vocabulary
from zeroprompt_jax.data.entailment import Rows, RowStream, join, nli_rows, predictions, rows
from zeroprompt_jax.data.reformulation import GROUPS, Reformulation
from zeroprompt_jax.errors import UserError

WORDS = words_vocabulary("a b c d e it was is great bad fine . so very good".split())
BINARY = Reformulation(("bad", "great"))
THREE = Reformulation(("bad", "fine", "great"))
PAIR = Reformulation(("no", "yes"), first="{premise}", second="{hypothesis}", extra=2)
EXAMPLES = [{"sentence": "a b c"}, {"sentence": "d"}, {"sentence": "e e"}, {"sentence": "b a"}]
GOLD = [1, 0, 1, 0]


def byte_vocabulary():
    """RoBERTa's marks and the 256 bytes, without merges."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *_letters().values(), "<mask>"]
    return EncoderVocabulary("bytes", BytePairs(pieces, []), "bytes")


def text(tokens_T, vocabulary=WORDS):
    pieces = vocabulary.pieces()
    return " ".join(pieces[i] for i in tokens_T if i != vocabulary.pad_id)


def slots(made: Rows, r: int, vocabulary=WORDS):
    pieces = vocabulary.pieces()
    return [pieces[made.encoder_input_tokens[r, at]] if at >= 0 else None for at in made.slot_positions[r]]


def test_a_row_and_its_slots():
    made = rows(BINARY, EXAMPLES, GOLD, WORDS, 24, task_id=7)
    masks = " ".join(["[MASK]"] * 5)
    assert text(made.encoder_input_tokens[0]) == f"[CLS] a b c [SEP] {masks} it was great . [SEP]"
    assert slots(made, 0) == ["[MASK]"] * 5 + ["it", "was", "great", "."]
    assert made.slot_positions[0].tolist() == list(range(5, 14))
    assert made.token_types[0].tolist() == [0] * 5 + [1] * 10 + [0] * 9
    assert made.labels.tolist() == GOLD and made.klass.tolist() == [1] * 4 and made.task_ids.tolist() == [7] * 4
    words = BINARY.words(WORDS)
    assert words[:5] == (None,) * 5 and [WORDS.pieces()[i] for i in words[5:]] == ["it", "was", "great", "."]


@pytest.mark.parametrize("extra", [0, 2, 5, 20])
@pytest.mark.parametrize("groups", [g for n in range(4) for g in itertools.combinations(GROUPS, n)])
def test_switches(extra, groups):
    task = dataclasses.replace(BINARY, extra=extra, slots=groups)
    made = rows(task, EXAMPLES, GOLD, WORDS, 40)
    own = {"template": ["it", "was"], "label": ["great"], "end": ["."]}
    wanted = ["[MASK]"] * extra + [w for g in GROUPS if g in groups for w in own[g]]
    assert len(task.words(WORDS)) == made.slot_positions.shape[1] == len(wanted)
    assert all(slots(made, r) == wanted for r in range(4))
    # What is no slot stays in its place as an ordinary token.
    assert text(made.encoder_input_tokens[1]).endswith("it was great . [SEP]")


def test_slots_begin_as_the_words_they_replace():
    """Putting each slot's own word in its place gives the row of the same task without slots."""
    task = dataclasses.replace(THREE, extra=0, second="so it was very {label} .", labels=("very bad", "fine", "good"))
    made, plain = (rows(t, EXAMPLES, GOLD, WORDS, 24) for t in (task, dataclasses.replace(task, slots=())))
    tokens = made.encoder_input_tokens.copy()
    for r, positions in enumerate(made.slot_positions):
        assert len(set(positions[positions >= 0])) == (positions >= 0).sum()
        for word, at in zip(task.words(WORDS), positions, strict=True):
            if at >= 0:
                tokens[r, at] = -1
                tokens[r, at] = word
    np.testing.assert_array_equal(tokens, plain.encoder_input_tokens)
    assert plain.slot_positions.shape == (12, 0)


def test_repeated_tokens_share_a_vector_or_not():
    task = dataclasses.replace(THREE, extra=2, second="so it was so {label} .", labels=("so bad", "fine", "very fine"))
    # so it was so | so bad | fine | very fine | .
    assert task.ties(WORDS) == (0, 1, 2, 3, 4, 2, 2, 7, 8, 9, 8, 11)
    assert dataclasses.replace(task, tied=False).ties(WORDS) == tuple(range(12))


def test_separators_and_pairs():
    v = byte_vocabulary()
    example = [{"premise": "ab", "hypothesis": "cd"}]
    pieces = {
        n: text(rows(dataclasses.replace(PAIR, separators=n), example, [1], v, 20).encoder_input_tokens[0], v)
        for n in (None, 1, 2)
    }
    assert pieces[1] == "<s> a b </s> <mask> <mask> c d </s>"
    assert pieces[2] == pieces[None] == "<s> a b </s> </s> <mask> <mask> c d </s>"
    assert rows(PAIR, example, [1], v, 20).token_types is None
    # Byte pairs have the space in the word behind it: the description reads as it is written.
    made = rows(dataclasses.replace(BINARY, extra=0), [{"sentence": "x"}], [1], v, 40)
    assert v.decode(made.encoder_input_tokens[0]) == "xit was great ."
    assert [v.pieces()[i] for i in BINARY.words(v)[5:]] == list("itĠwasĠgreatĠ.")
    nli = nli_rows([{"premise": "ab", "hypothesis": "cd", "label": "Neutral"}], v, 20, ("CONTRADICTION", "NEUTRAL"))
    assert text(nli.encoder_input_tokens[0], v) == "<s> a b </s> </s> c d </s>"
    assert (nli.labels.tolist(), nli.slot_positions.shape) == ([1], (1, 0))
    with pytest.raises(UserError, match="label of inference 'maybe'"):
        nli_rows([{"premise": "a", "hypothesis": "b", "label": "maybe"}], v, 20, ("yes", "no"))


@pytest.mark.parametrize("task", [BINARY, THREE, PAIR, dataclasses.replace(BINARY, symmetric=True, extra=20)])
def test_cutting_takes_only_the_examples_words(task):
    long = [{"sentence": "a b c d " * 30, "premise": "a b " * 40, "hypothesis": "c d e"}]
    whole, least = rows(task, long, [1], WORDS, 200), 0
    for length in range(100, 0, -1):
        try:
            cut = rows(task, long, [1], WORDS, length)
        except UserError as e:
            assert "give a larger length" in str(e)
            break
        least = length
        np.testing.assert_array_equal(cut.slot_positions >= 0, whole.slot_positions >= 0)
        for r in range(len(cut)):
            assert slots(cut, r) == slots(whole, r)
            row, full = (text(m.encoder_input_tokens[r]).split() for m in (cut, whole))
            assert len(row) == min(length, len(full)) and row[-1] == "[SEP]" and row.count("[SEP]") == 2
            tail = row.index("[SEP]")
            assert row[1:tail] == full[1:tail] and row[tail:] == full[full.index("[SEP]") :]
    assert 12 <= least < 50  # the marks, the slots, and eight tokens of the example


def test_every_class_is_described_once():
    made = rows(THREE, EXAMPLES, [2, 0, 1, 2], WORDS, 24)
    assert made.klass.tolist() == [0, 1, 2] * 4 and made.example.tolist() == np.repeat(range(4), 3).tolist()
    assert made.labels.reshape(4, 3).argmax(1).tolist() == [2, 0, 1, 2] and made.labels.sum() == 4
    assert [s for s in slots(made, 1)[5:]] == ["it", "was", None, "fine", None, "."]


def test_permuting_the_classes_permutes_the_predictions():
    """Scores that depend on the description alone, as a model's do, give the same class under another number."""
    order = np.array([2, 0, 1])
    other = dataclasses.replace(THREE, labels=tuple(THREE.labels[i] for i in order))
    score = lambda tokens: np.sin(np.asarray(tokens, float) ** 2 @ np.arange(1, 25)) / 2 + 0.5
    many = [{"sentence": " ".join(p)} for p in itertools.permutations("abcd")]
    gold = np.arange(len(many)) % 3
    # Without slots both tasks have the same rows in another order.
    mine, theirs = (
        rows(dataclasses.replace(t, slots=(), extra=0), many, g, WORDS, 24)
        for t, g in ((THREE, gold), (other, np.argsort(order)[gold]))
    )
    found = predictions(mine, score(mine.encoder_input_tokens))
    assert set(found) == {0, 1, 2}
    np.testing.assert_array_equal(order[predictions(theirs, score(theirs.encoder_input_tokens))], found)
    np.testing.assert_array_equal(order[theirs.gold], mine.gold)


def test_predictions():
    binary = rows(BINARY, EXAMPLES, GOLD, WORDS, 24)
    assert predictions(binary, [0.9, 0.5, 0.51, 0.1]).tolist() == [1, 0, 1, 0]
    negative = rows(dataclasses.replace(BINARY, positive=0), EXAMPLES, GOLD, WORDS, 24)
    assert negative.labels.tolist() == [0, 1, 0, 1]
    assert predictions(negative, [0.9, 0.5, 0.51, 0.1]).tolist() == [0, 1, 0, 1]
    both = rows(dataclasses.replace(BINARY, symmetric=True), EXAMPLES, GOLD, WORDS, 24)
    assert predictions(both, [0.2, 0.3, 0.9, 0.8, 0.4, 0.4, 0.1, 0.7]).tolist() == [1, 0, 0, 1]
    mixed = join([binary, rows(THREE, EXAMPLES[:2], [2, 1], WORDS, 24, task_id=1)])
    assert predictions(mixed, [0.9, 0.5, 0.51, 0.1, 0.2, 0.1, 0.3, 0.3, 0.2, 0.1]).tolist() == [1, 0, 1, 0, 2, 0]


def test_symmetric_rows_double_and_deny():
    plain, made = (rows(dataclasses.replace(BINARY, symmetric=s), EXAMPLES, GOLD, WORDS, 24) for s in (False, True))
    assert len(made) == 2 * len(plain)
    pairs = made.labels.reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 1], plain.labels)
    np.testing.assert_array_equal(pairs[:, 0], 1 - plain.labels)
    np.testing.assert_array_equal(made.encoder_input_tokens[1::2], plain.encoder_input_tokens)
    assert [made.klass[made.labels == 1].tolist()] == [GOLD]


@pytest.mark.parametrize("negatives", [1, 2, 3])
def test_negatives_are_never_the_gold_description(negatives):
    task = Reformulation(("bad", "fine", "great", "good"), negatives=negatives)
    many, gold = EXAMPLES * 10, [0, 1, 2, 3] * 10
    draw = lambda seed: rows(task, many, gold, WORDS, 24, seed=seed)
    made = draw(3)
    assert len(made) == 40 * (1 + negatives)
    for e in range(40):
        classes, labels = made.klass[made.example == e], made.labels[made.example == e]
        assert len(set(classes.tolist())) == 1 + negatives
        assert classes[labels == 1].tolist() == [gold[e]]
    for name in ("encoder_input_tokens", "labels", "klass", "slot_positions"):
        np.testing.assert_array_equal(getattr(draw(3), name), getattr(made, name))
    if negatives < 3:
        assert not np.array_equal(draw(4).klass, made.klass)
        assert len(set(made.klass.tolist())) == 4
    assert len(rows(task, many, gold, WORDS, 24)) == 160  # evaluation sees every description


def test_tasks_are_mixed_in_one_batch_and_each_is_as_alone():
    alone = [
        rows(BINARY, EXAMPLES, GOLD, WORDS, 32, task_id=2),
        rows(THREE, EXAMPLES[:3], [0, 1, 2], WORDS, 32, task_id=0),
    ]
    mixed = join(alone)
    assert (len(mixed), len(mixed.gold), mixed.slot_positions.shape) == (13, 7, (13, 11))
    assert mixed.slot_positions[0, 9:].tolist() == [-1, -1] and mixed.example.tolist() == [
        0,
        1,
        2,
        3,
        4,
        4,
        4,
        5,
        5,
        5,
        6,
        6,
        6,
    ]
    stream = RowStream(mixed, 3, seed=5)
    seen = {0: [], 2: []}
    for number in range(12):
        batch = stream.batch(number)
        assert batch["task_ids"].tolist() == [0] * 3 + [2] * 3
        for task_id, part in ((2, alone[0]), (0, alone[1])):
            solo = RowStream(part, 3, seed=5).batch(number)
            mine = batch["task_ids"] == task_id
            np.testing.assert_array_equal(batch["encoder_input_tokens"][mine], solo["encoder_input_tokens"])
            np.testing.assert_array_equal(batch["labels"][mine], solo["labels"])
            seen[task_id] += [row.tobytes() for row in solo["encoder_input_tokens"]]
        again = RowStream(mixed, 3, seed=5).batch(number)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)
    # 36 rows of each are nine epochs of four and four of nine.
    assert all(seen[2].count(row) == 9 for row in seen[2]) and all(seen[0].count(row) == 4 for row in seen[0])
    assert not np.array_equal(
        RowStream(mixed, 3, seed=6).batch(0)["encoder_input_tokens"], stream.batch(0)["encoder_input_tokens"]
    )


def test_evaluation_reads_each_row_once():
    made = rows(THREE, EXAMPLES, GOLD, WORDS, 24)
    found = list(made.batches(5))
    assert [len(b["labels"]) for b in found] == [5] * 3
    real = np.concatenate([b["row_weights"] for b in found]) > 0
    assert real.sum() == 12 and real[:12].all()
    tokens = np.concatenate([b["encoder_input_tokens"] for b in found])
    np.testing.assert_array_equal(tokens[real], made.encoder_input_tokens)


def test_a_card_s_examples_have_classes():
    card = cards.TaskCard(
        "review", "sentiment", ("Say how it was.",), input_template="{sentence}", options=("bad", "good")
    )
    told = [{"sentence": "a b", "target": "good"}, {"sentence": "c", "target": "bad"}]
    cards.register(card, cards.Source(lambda split: told, "review 1"))
    assert entailment.classified("review", "train") == (told, [1, 0])
    cards.register(dataclasses.replace(card, name="free", options=()), cards.Source(lambda split: told, "free 1"))
    with pytest.raises(UserError, match="'free' has no fixed answer options"):
        entailment.classified("free", "train")


@pytest.mark.parametrize(
    "change, told",
    [
        ({"labels": ("bad",)}, "two different"),
        ({"labels": ("bad", "bad")}, "two different"),
        ({"slots": ("templates",)}, "Did you mean 'template'"),
        ({"positive": 2}, "positive 2 is no class"),
        ({"extra": -1}, "extra -1"),
        ({"separators": 3}, "separators 3"),
        ({"labels": ("a", "b", "c"), "second": "{hypothesis}"}, "names no {label}"),
        ({"labels": ("a", "b", "c"), "symmetric": True}, "two classes, not of 3"),
        ({"negatives": 1}, "negatives 1; an example has 0"),
        ({"first": "{sentence} {label}"}, "only the second segment"),
        ({"first": "{label.x}"}, "names 'label.x'; it names whole fields"),
        ({"second": "{a[b]} {label}"}, "it names whole fields"),
    ],
)
def test_what_a_task_cannot_be(change, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(BINARY, **change)


@pytest.mark.parametrize(
    "labels, told",
    [
        (("dire", "great", "good"), "the label 'dire' is not in the vocabulary 'words'"),
        (("Great", "great", "good"), "the labels 'Great' and 'great' are the same tokens"),
        (("", "great", "good"), "the label '' is not"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(labels, told):
    with pytest.raises(UserError, match=told):
        rows(Reformulation(labels), EXAMPLES, GOLD, WORDS, 24)
    rows(Reformulation(labels[:2]), EXAMPLES, GOLD, WORDS, 24)  # which is not described


def test_bad_examples_are_told():
    with pytest.raises(UserError, match="names the field 'sentence', but an example has text"):
        rows(BINARY, [{"text": "a"}], [0], WORDS, 24)
    with pytest.raises(UserError, match="example 0 is of class 2; there are 0 to 1"):
        rows(BINARY, EXAMPLES[:1], [2], WORDS, 24)
    with pytest.raises(UserError, match="all of one length"):
        join([rows(BINARY, EXAMPLES, GOLD, WORDS, n) for n in (24, 32)])
    with pytest.raises(UserError, match="above 0"):
        RowStream(rows(BINARY, EXAMPLES, GOLD, WORDS, 24), 0)
