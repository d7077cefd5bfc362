"""What is cut of a prompt that is too long: of the cached input what comes from the example, and nothing else."""

from types import SimpleNamespace

import numpy as np
import pytest

from zeroprompt_jax import answering
from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import EvalSet, Features, TrainStream
from zeroprompt_jax.data.store import CUTS
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate

V = load_vocabulary("bytes")
OPTIONS = ("certainly", "not at all")
LISTED = "certainly; not at all"
WORDING = "Is it so?"
TEMPLATES = {
    "behind": "Text: {input} Options: {options}.",
    "before": "Of {options} choose for {input}",
    "two": "{one} | {two} | {options}",
    "ending": "{input} Answer:",
}
FIELDS = {"behind": ("input",), "before": ("input",), "two": ("one", "two"), "ending": ("input",)}


def example(i, split):
    story = " ".join(f"{split[:2]}{i}word{k}" for k in range(2 + 3 * i))
    return {"input": story, "one": story, "two": " ".join(["other"] * (9 - i)), "target": OPTIONS[i % 2]}


def add(name="behind", template=None, wordings=(WORDING,)):
    source = cards.Source(lambda split: (example(i, split) for i in range(8)), f"{name} 1")
    options = OPTIONS if "{options}" in (template or TEMPLATES[name]) else ()
    cards.register(
        cards.TaskCard(name, "t", wordings, input_template=template or TEMPLATES[name], options=options), source
    )
    return name


def text(row, vocabulary=V):
    return vocabulary.decode(row.tolist())


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("spec", ["bytes", "packaged:t5_tiny"])
def test_instruction_template_and_options_stay_whole(tmp_path, name, spec):
    vocabulary = load_vocabulary(spec)
    store = cache.build(tmp_path, [add(name)], vocabulary, progress=False)
    rendered = [cards.render(cards.card(name), example(i, "test")) for i in range(8)]
    cuts = rendered[0].cuts  # the fields of the shortest example; all that is around them is the same in each
    ends = {r.input[: r.cuts[0][0]] for r in rendered}, {r.input[r.cuts[-1][1] :] for r in rendered}
    [before], [behind] = ends
    fixed = rendered[0].input[: cuts[0][0]] + rendered[0].input[cuts[-1][1] :]
    least = len(vocabulary.encode(f"{WORDING} {fixed}")) + 12
    was_cut = set()
    for inputs in range(least + 1, least + 260, 7 if spec == "bytes" else 3):
        for row, r in zip(
            next(EvalSet(store, [name], "test", Features(inputs, 30)).batches(8))["encoder_input_tokens"], rendered
        ):
            found, whole = text(row, vocabulary), vocabulary.encode(f"{WORDING} {r.input}")
            if len(whole) < inputs:
                assert row[: len(whole)].tolist() == whole
                continue
            was_cut.add(r.input)
            assert (row > 0).sum() == inputs  # no more is cut than must be
            assert found.startswith(f"{WORDING} {before}".rstrip()) and found.endswith(behind.strip())
            assert (LISTED in found) == (name != "ending") and (" | " in found) == (name == "two")
    assert len(was_cut) > 3


def test_of_several_fields_the_longest_is_cut_first(tmp_path):
    store = cache.build(tmp_path, [add("two")], V, progress=False)
    which = set()
    for inputs in range(70, 260, 5):
        rows = next(EvalSet(store, ["two"], "test", Features(inputs, 30)).batches(8))["encoder_input_tokens"]
        for i, row in enumerate(rows):
            fields = [example(i, "test")[name] for name in ("one", "two")]
            over = len(f"{WORDING} {fields[0]} | {fields[1]} | {LISTED}") + 1 - inputs
            longest = max((0, 1), key=lambda k: len(fields[k]))
            if 0 < over <= len(fields[longest]):
                which.add(longest)
                fields[longest] = fields[longest][: len(fields[longest]) - over]
                assert text(row) == f"{WORDING} {fields[0]} | {fields[1]} | {LISTED}"
    assert which == {0, 1}


def test_where_it_would_cut_options_the_length_is_refused(tmp_path):
    store = cache.build(tmp_path, [add("behind")], V, progress=False)
    fixed = len("Text:  Options: .") + len(LISTED)
    enough = len(WORDING) + 1 + fixed + 8 + 1
    TrainStream(store, {"behind": 1.0}, Features(enough, 30), 2, seed=0)
    with pytest.raises(
        UserError, match=f"'behind': what must stay of an input, .* has {fixed} tokens, and instructions leave"
    ):
        TrainStream(store, {"behind": 1.0}, Features(enough - 1, 30), 2, seed=0)
    apart = Features(fixed + 8 + 1, 30, instructions=20, instruct_inputs=False)
    [batch] = EvalSet(store, ["behind"], "test", apart).batches(8)
    assert all(text(row).endswith(f" Options: {LISTED}.") for row in batch["encoder_input_tokens"])
    with pytest.raises(UserError, match="what must stay"):
        EvalSet(store, ["behind"], "test", Features(fixed + 8, 30, instructions=20, instruct_inputs=False))


@pytest.mark.parametrize("apart", [False, True])
def test_inference_reads_what_evaluation_reads(tmp_path, apart):
    features = Features(80, 30, 20 * apart, instruct_inputs=not apart)
    store, read = cache.build(tmp_path / "store", [add("behind")], V, progress=False), []

    def score(texts, options, tasks, length_normalised):
        read.extend(V.encode(text) for text in texts)
        return [[0.0] * len(own) for own in options]

    made = SimpleNamespace(
        vocabulary=V,
        features=features,
        score=score,
        method=SimpleNamespace(reads_instructions=False),
        options_of=lambda name: (),
    )
    data = SimpleNamespace(register=lambda modules: None, option_seed=None, vocabulary="bytes")
    run = SimpleNamespace(data=data, evaluate=Evaluate())
    assert answering.infer_run(run, str(tmp_path / "out.jsonl"), task="behind", made=made) == 8
    [batch] = EvalSet(store, ["behind"], "test", features).batches(8)
    before = [] if apart else V.encode(f"{WORDING} ")
    for row, ids in zip(batch["encoder_input_tokens"], read):
        assert row[row > 0].tolist() == [*before, *ids, 1]
    assert max(map(len, read)) + len(before) + 1 == 80


def test_options_alone_are_never_cut(tmp_path):
    store = cache.build(tmp_path, [add("only", "{options}")], V, progress=False)
    with pytest.raises(UserError, match=f"has {len(LISTED)} tokens"):
        TrainStream(store, {"only": 1.0}, Features(len(WORDING) + 2 + len(LISTED) - 1, 30), 2, seed=0)
    train = TrainStream(store, {"only": 1.0}, Features(len(WORDING) + 2 + len(LISTED), 30), 2, seed=0)
    assert text(train.batch(0)["encoder_input_tokens"][0]) == f"{WORDING} {LISTED}"


@pytest.mark.parametrize("batching", ["padded", "buckets", "packed"])
def test_lengths_are_foreseen(tmp_path, batching):
    names = [add(name) for name in TEMPLATES]
    store = cache.build(tmp_path, names, V, progress=False)
    features = Features(90, 30)
    train = TrainStream(store, dict.fromkeys(names, 1.0), features, 8, seed=0, window=4, batching=batching)
    for n in range(4):
        batch, listed = train.batch(n), 0
        for row in batch["encoder_input_tokens"]:
            assert (row[: (row > 0).sum()] > 0).all()  # a wrong length would leave a hole or overlap
            listed += text_of_all(row).count(LISTED)
        assert listed == sum(task != "ending" for task, *_ in train.drawn(n))


def text_of_all(row):
    """The texts of a row's segments."""
    return " ".join(V.decode(part.tolist()) for part in np.split(row, np.flatnonzero(row == 1) + 1))


def test_a_longer_foreign_instruction_cuts_further(tmp_path):
    """The control's instruction may be longer than a task's own: then no more than the room is taken."""
    long = add("ending", wordings=("x" * 60,))
    store = cache.build(tmp_path, [add("behind"), long], V, progress=False)
    features = Features(90, 30)
    [batch] = EvalSet(store, ["behind", long], "test", features, wordings="shuffled").batches(16)
    assert ((batch["encoder_input_tokens"] > 0).sum(1) <= 90).all()
    assert text(batch["encoder_input_tokens"][7]).startswith("x" * 60 + " Text: ")


def test_stores_of_inputs_that_end_in_their_field_are_what_they_were(tmp_path, register):
    plain = cards.TaskCard("plain", "t", ("Do.",), input_template=": {input}")
    cards.register(plain, cards.Source(lambda split: [example(0, split)], "1"))
    assert cards.cut_at_end(plain) and not any(
        cards.cut_at_end(cards.TaskCard("a", "t", ("Do.",), input_template=t)) for t in TEMPLATES.values()
    )
    store = cache.build(tmp_path, [*register(2), "plain"], V, progress=False)
    assert not any(store.has_cuts(task) for task in store.tasks)
    assert store.gather(np.zeros(2, int), "train", np.arange(2), CUTS)[0].size == 0
