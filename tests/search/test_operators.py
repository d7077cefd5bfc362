"""Operators: what each makes of a parent, and that a parent's children are its own."""

import dataclasses
import random

import jax
import pytest

from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.decoding import Beam, Sample
from zeroprompt_jax.search import operators
from zeroprompt_jax.search.operators import BackTranslation, Cloze, Continuation, Crossover, Synonyms
from zeroprompt_jax.search.writer import Writer

V = load_vocabulary("bytes:100")
SMALL = dict(emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
CONFIG = t5.T5Config(vocab_size=V.size, logits_via_embedding=True, dropout_rate=0.0, dtype="float32", **SMALL)


@dataclasses.dataclass(frozen=True)
class Fake(Writer):
    """Answers by a function of the row's text, sentinels written <0>, <1>, …"""

    answer: object = None

    def write(self, rows, seeds, strategy, max_length, samples=1):
        self.asked.extend(map(self.text, rows))
        return [[self.ids(self.answer(self.text(row), n)) for n in range(samples)] for row in rows]

    def text(self, ids):
        return "".join(f"<{V.size - 1 - i}>" if self._is_sentinel(i) else V.decode([i]) for i in ids)

    def ids(self, text):
        out = []
        for piece in text.replace("<", "|<").replace(">", ">|").split("|"):
            out += [V.size - 1 - int(piece[1:-1])] if piece.startswith("<") else V.encode(piece)
        return out

    @property
    def asked(self):
        return self.config


def fake(answer):
    return Fake([], None, V, answer=answer)


def test_cloze_fills_its_holes_and_leaves_marks():
    writer = fake(lambda row, n: "<0> new <1> next <2> and more")
    parent = "say X1 the long word now"
    ((*children,),) = Cloze(children=40, holes=2, longest=2).propose([parent], [3], writer)
    assert len(children) == 40 and len(set(children)) > 5
    for row, child in zip(writer.asked, children):
        assert "X1" in row and child == row.replace("<0>", "new").replace("<1>", "next")
        assert "<0>" in row and "<0> <1>" not in row
    assert any("<1>" in row for row in writer.asked)
    assert Cloze().propose(["X1 X2"], [0], writer) == [[]]  # there is no word to hide
    # What leaves a hole open, or answers out of order, makes no child; an empty filling drops the words.
    parent = "say the long word now"
    for answer in ("new", "<1> a <0> b"):
        writer = fake(lambda *_, answer=answer: answer)
        assert Cloze(children=1, holes=2).propose([parent], [5], writer) == [[]]
    ((made,),) = Cloze(children=1).propose([parent], [5], fake(lambda *_: "<0>"))
    assert made and len(made.split()) < 5 and set(made.split()) < set(parent.split())


def test_continuation_is_cut_at_the_closing_quotation_mark():
    answers = ['tell it"', "no mark", 'broken\nline"', '"', 'say it" and "so on"', 'tell it"']
    writer = fake(lambda row, n: answers[n])
    made = Continuation(children=6, sentinel=False).propose(["say X1"], [0], writer)
    assert made == [["tell it", "say it", "tell it"]]
    assert writer.asked == ['Write two sentences that mean the same thing. Sentence 1: "say X1" Sentence 2: "']
    writer = fake(lambda row, n: "<0> say X1 <1>")
    assert Continuation(children=1).propose(["say X1"], [0], writer) == [["say X1"]]
    assert writer.asked[0].endswith('Sentence 2: " <0> "')
    with pytest.raises(UserError, match="must name {wording}"):
        Continuation(prompt="Write.")


def test_back_translation_goes_there_and_back():
    asked = []

    def translate(texts, source, target):
        asked.append((source, target))
        return [f"{text} {target[0]}" for text in texts]

    made = BackTranslation(translate, languages=("German", "French")).propose(["a", "b"], [0, 0], None)
    assert made == [["a G E", "a F E"], ["b G E", "b F E"]]
    assert asked == [("English", "German"), ("German", "English"), ("English", "French"), ("French", "English")]
    assert len(operators.LANGUAGES) == 11
    with pytest.raises(UserError, match="gave 1 texts in German for 2"):
        BackTranslation(lambda texts, a, b: ["one"], languages=("German",)).propose(["a", "b"], [0, 0], None)
    with pytest.raises(UserError, match="'/nowhere' is no directory of a T5"):
        BackTranslation("/nowhere", languages=("German",)).propose(["a"], [0], None)


def test_synonyms_swap_whole_words_alone(tmp_path):
    table = (("big", "large", "of great size"), ("say", "tell me"))
    ((*made,),) = Synonyms(table, children=60, most=2).propose(["Say the big bigger X1"], [1], None)
    assert set(made) == {
        f"{say} the {big} bigger X1" for say in ("Say", "tell me") for big in ("big", "large", "of great size")
    } - {"Say the big bigger X1"}
    assert Synonyms(table).propose(["nothing here"], [1], None) == [[]]
    path = tmp_path / "table.txt"
    path.write_text("big, large , of great size\n\nsay,tell me\n")
    assert Synonyms(str(path), 60).propose(["Say the big bigger X1"], [1], None) == [made]
    assert Synonyms((("say",), ("big", "large"))).propose(["say it"], [1], None) == [[]]  # a group of one says nothing
    with pytest.raises(UserError, match="Synonyms.most is 0"):
        Synonyms(table, most=0)
    with pytest.raises(UserError, match="Synonyms.table '.*none.txt' cannot be read"):
        Synonyms(str(tmp_path / "none.txt")).propose(["a"], [1], None)


def test_crossover_joins_a_beginning_and_an_end():
    parents = ["one two three", "a b c d"]
    first = Crossover(children=20).propose(parents, [1, 2], None)[0]
    assert len(set(first)) > 3
    for child in first:
        words = child.split()
        cut = next(i for i, w in enumerate(words) if w in "abcd")
        assert cut >= 1 and parents[0].startswith(" ".join(words[:cut])) and parents[1].endswith(" ".join(words[cut:]))
    assert Crossover().propose(["alone here"], [1], None) == [[]]


@pytest.fixture(scope="module")
def writer(compile_fast):
    return Writer(CONFIG, jax.jit(lambda: t5.init(CONFIG, jax.random.key(0)))(), V, batch_size=4)


@pytest.mark.parametrize("strategy", [Sample(top_p=0.9), Beam(2)], ids=lambda s: type(s).__name__)
def test_what_is_written_depends_on_row_and_seed_alone(writer, strategy):
    rows = [V.encode(text) for text in ("one", "another", "a longer one", "two", "six")]
    want = writer.write(rows, [5, 6, 7, 8, 9], strategy, 5, 2)
    assert all(len(own) == 2 and all(len(ids) <= 5 and 1 not in ids for ids in own) for own in want)
    order = [3, 0, 4, 2, 1]
    assert writer.write([rows[i] for i in order], [5 + i for i in order], strategy, 5, 2) == [want[i] for i in order]
    again = writer.write(rows[1:2], [60], strategy, 5, 2)
    assert (again != want[1:2]) == isinstance(strategy, Sample)


def test_children_are_a_parents_own(writer):
    draw, parents = random.Random(0), ["say X1 it", "name it", "it is"]
    continuation = Continuation(2, "{wording}", strategy=Sample(top_p=0.9), max_length=5)
    for operator in (Cloze(2, max_length=5), continuation, Synonyms((("say", "name", "it"),))):
        seeds = [draw.getrandbits(32) for _ in parents]
        want = operator.propose(parents, seeds, writer)
        assert operator.propose(parents[1:2], seeds[1:2], writer) == want[1:2]
        assert operator.propose(parents, seeds, writer) == want


def test_sentinels_that_a_vocabulary_lacks_are_told(writer):
    bare = dataclasses.replace(writer, vocabulary=load_vocabulary("bytes:0"))
    with pytest.raises(UserError, match="'bytes:0' has 0 extra ids"):
        bare.sentinel()
