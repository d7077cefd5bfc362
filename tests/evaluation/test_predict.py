"""Prediction from Python: the same rows as evaluation reads, and each text's result its own."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from zeroprompt_jax.data.batches import EvalSet, Features
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import predict as module
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.conditioning import Conditioning, Stack
from zeroprompt_jax.models.decoding import Beam, Greedy, Sample

pytestmark = pytest.mark.usefixtures("compile_fast")
FEATURES = Features(inputs=64, targets=6)
INSTRUCTIONS = {"words": "Do words.", "long": "Please long now.", "own": "Choose."}
TEXTS = ["ab bcd", "cab", "dad ca abba dad ca abba", "x", "abba ab", "bcd " * 30, "ca"]
TASKS = ["words", "long", "words", "own", "long", "words", "own"]


@pytest.fixture(scope="module")
def predictor(config, variables, vocabulary):
    return Predictor(config, variables, Full(), vocabulary, FEATURES, INSTRUCTIONS, batch_size=4)


@pytest.fixture(scope="module")
def log_probs(config, variables):
    @jax.jit
    def log_probs(encoder, decoder):
        return jax.nn.log_softmax(t5.Backbone(config, variables["backbone"])(encoder, decoder).logits)

    return log_probs


def agree(got, want):
    assert [p.text for p in got] == [p.text for p in want]
    np.testing.assert_allclose([p.score for p in got], [p.score for p in want], atol=1e-4)


@pytest.mark.parametrize(
    "features",
    [
        FEATURES,
        Features(40, 6),
        Features(48, 6, instructions=24),
        Features(48, 6, 24, 5),
        Features(48, 6, 24, None, False),
    ],
)
def test_rows_are_those_that_evaluation_reads(features, config, variables, vocabulary, store):
    tasks = ["words", "long"]
    data = EvalSet(store, tasks, "test", features, wordings="train")
    want = next(data.batches(len(data)))
    texts = [e.input for e in data.examples]
    cut = 0
    for wording in (0, 1):
        instructions = {task: store.card(task).instructions[wording] for task in tasks}
        predictor = Predictor(
            config,
            variables,
            Full(),
            vocabulary,
            features,
            instructions,
            dict(zip(store.tasks, range(9))),
            batch_size=4,
        )
        rows, names = predictor._rows(texts, [e.task for e in data.examples])
        seen = []
        for index, kept, batch in predictor._batches(rows, names, {}):
            for b, i in enumerate(index[:kept]):
                seen.append(i)
                if data.examples[i].wording != wording:
                    continue
                tokens = batch["encoder_input_tokens"][b]
                np.testing.assert_array_equal(
                    np.pad(tokens, (0, features.inputs - len(tokens))), want["encoder_input_tokens"][i]
                )
                cut += tokens[-1] > 0
                assert batch["task_ids"][b] == want["task_ids"][i]
                if features.instructions:
                    np.testing.assert_array_equal(batch["instruction_tokens"][b], want["instruction_tokens"][i])
        assert sorted(seen) == list(range(len(data)))
    assert cut or features.inputs > 48 or not features.instruct_inputs


def test_greedy_answers_follow_the_most_likely_tokens(predictor, log_probs, vocabulary):
    found = predictor.predict(TEXTS, TASKS)
    assert len({p.text for p in found}) > 3
    for text, task, prediction in zip(TEXTS[:5], TASKS, found):
        ids = [*vocabulary.encode(f"{INSTRUCTIONS[task]} {text}"), 1]
        encoder, tokens, total = np.zeros((1, 64), np.int32), [], 0.0
        encoder[0, : len(ids)] = ids
        while len(tokens) < 6 and tokens[-1:] != [1]:
            decoder = np.zeros((1, 32), np.int32)
            decoder[0, 1 : len(tokens) + 1] = tokens
            logp = log_probs(encoder, decoder)[0, len(tokens)]
            tokens.append(int(np.argmax(logp)))
            total += float(logp[tokens[-1]])
        assert prediction.text == vocabulary.decode(tokens)
        assert abs(prediction.score - total) < 1e-4


@pytest.mark.parametrize("strategy", [Greedy(), Sample()], ids=str)
def test_a_texts_answer_does_not_depend_on_the_others(predictor, strategy):
    want = predictor.predict(TEXTS, TASKS, strategy)
    order = [5, 0, 3, 6, 2, 1, 4]
    agree(predictor.predict([TEXTS[i] for i in order], [TASKS[i] for i in order], strategy), [want[i] for i in order])
    for i in (1, 2):
        agree(predictor.predict([TEXTS[i]], TASKS[i], strategy), [want[i]])
    large = dataclasses.replace(predictor, batch_size=16)
    agree(large.predict(TEXTS + ["another", "text"], [*TASKS, "own", "long"], strategy)[:7], want)


def test_the_task_the_seed_and_the_strategy_matter(predictor):
    words, long = (predictor.predict(TEXTS, task) for task in ("words", "long"))
    assert [p.text for p in words] != [p.text for p in long]
    one, again, other = (predictor.predict(TEXTS, TASKS, Sample(), seed=s) for s in (1, 1, 2))
    assert one == again and [p.text for p in one] != [p.text for p in other]
    twice = predictor.predict(["ab", "ab"], "words", Sample())
    assert twice[0] == twice[1]
    greedy, beams = (predictor.predict(TEXTS[:4], "words", s) for s in (Greedy(), Beam(3, 0.0)))
    assert sum(p.score for p in beams) > sum(p.score for p in greedy)
    short = predictor.predict(TEXTS[:4], "words", max_length=2)
    assert all(len(p.text) <= 2 for p in short) and any(len(p.text) > 2 for p in greedy)


def test_raw_prompts_carry_their_own_instruction(predictor):
    agree(
        predictor.predict([f"{INSTRUCTIONS[k]} {t}" for t, k in zip(TEXTS[:5], TASKS)]),
        predictor.predict(TEXTS[:5], TASKS[:5]),
    )
    mixed = predictor.predict([TEXTS[0], f"{INSTRUCTIONS['long']} {TEXTS[1]}"], ["words", None])
    agree(mixed, predictor.predict(TEXTS[:2], TASKS[:2]))


def test_too_long_inputs_lose_their_own_end_only(predictor):
    room = 64 - 1 - len(INSTRUCTIONS["words"]) - 1
    text = "".join(itertools.islice(itertools.cycle("abc d"), 200))
    cut, longer, shorter = predictor.predict([text[:room], text, text[: room - 1]], "words")
    agree([longer], [cut])
    assert shorter.score != cut.score
    assert predictor.predict([text], "long")[0].score != longer.score, "the instruction must still be read"


def test_instructions_may_be_a_function(predictor):
    function = dataclasses.replace(predictor, instructions=lambda name: INSTRUCTIONS[name])
    agree(function.predict(TEXTS[:2], TASKS[:2]), predictor.predict(TEXTS[:2], TASKS[:2]))
    with pytest.raises(UserError, match="task 'word'"):
        function.predict(["a"], "word")


OPTIONS = [
    ["ab", "bcd"],
    ["a", "no", "yes", "ca", "dad", "it is impossible"],
    ["x"],
    ["yes", "no"],
    [""],
    ["abba", "a"],
    ["ab", "ab", "ba"],
]


def test_scores_are_log_likelihoods_of_each_option(predictor, log_probs, vocabulary):
    got = predictor.score(TEXTS, OPTIONS, TASKS)
    assert [len(row) for row in got] == [len(row) for row in OPTIONS]
    for i in (0, 1, 4, 6):
        ids = [*vocabulary.encode(f"{INSTRUCTIONS[TASKS[i]]} {TEXTS[i]}"), 1]
        encoder = np.zeros((1, 64), np.int32)
        encoder[0, : len(ids)] = ids
        for option, value in zip(OPTIONS[i], got[i]):
            target = [*vocabulary.encode(option), 1]
            decoder = np.zeros((1, 32), np.int32)
            decoder[0, 1 : len(target)] = target[:-1]
            logp = log_probs(encoder, decoder)[0]
            assert abs(value - sum(float(logp[p, t]) for p, t in enumerate(target))) < 1e-4
    assert got[6][0] == got[6][1] != got[6][2]
    means = predictor.score(TEXTS, OPTIONS, TASKS, length_normalised=True)
    for row, mean, options in zip(got, means, OPTIONS):
        np.testing.assert_allclose(mean, [v / (len(o) + 1) for v, o in zip(row, options)], rtol=1e-5)


def test_a_texts_scores_do_not_depend_on_the_others(predictor):
    want = predictor.score(TEXTS, OPTIONS, TASKS)
    order = [6, 2, 0, 1, 5, 3, 4]
    got = predictor.score([TEXTS[i] for i in order], [OPTIONS[i] for i in order], [TASKS[i] for i in order])
    for i, row in zip(order, got):
        np.testing.assert_allclose(row, want[i], atol=1e-4)
    alone = predictor.score([TEXTS[0]], [OPTIONS[0]], "words")
    np.testing.assert_allclose(alone[0], want[0], atol=1e-4)
    both = predictor.score(TEXTS[:2], ["ab", "bcd"], TASKS[:2])
    np.testing.assert_allclose(both[0], want[0], atol=1e-4)


def test_few_shapes_are_compiled(predictor):
    predictor.predict(TEXTS, TASKS)
    before = module._generate._cache_size()
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 9):
        texts = ["".join(rng.choice(list("abcd "), rng.integers(1, 90))) for _ in range(count)]
        assert len(predictor.predict(texts, "words")) == count
    assert module._generate._cache_size() == before


def test_nothing_in_nothing_out(predictor):
    assert predictor.predict([]) == [] and predictor.score([], []) == []


@dataclasses.dataclass(frozen=True)
class _PerTask(Method):
    """A prompt of each task's own."""

    def condition(self, params, batch, backbone):
        return Conditioning(encoder=Stack(prompt=params["prompts"][batch["task_ids"]]))


def test_task_ids_reach_the_method(config, variables, vocabulary):
    prompts = np.random.default_rng(0).normal(size=(3, 2, config.emb_dim)).astype(np.float32)
    mine = {**variables, "method": {"prompts": prompts}}
    ids = {"words": 0, "long": 1, "own": 2}
    predictor = Predictor(config, mine, _PerTask(), vocabulary, FEATURES, dict.fromkeys(ids, "Do."), ids, batch_size=4)
    together = predictor.predict(["ab bcd"] * 3, list(ids))
    assert len({p.score for p in together}) == 3
    agree([predictor.predict(["ab bcd"], "long")[0]], [together[1]])
    with pytest.raises(UserError, match="task_ids"):
        predictor.predict(["ab bcd"])
    with pytest.raises(UserError, match="task_ids"):
        predictor.score(["ab bcd"], ["a", "b"])


def test_bad_requests_are_named(predictor):
    tight = dataclasses.replace(predictor, features=Features(12, 6))
    instructed = dataclasses.replace(predictor, features=Features(64, 6, instructions=8))
    for call, words in [
        (lambda: predictor.predict(["a"], "word"), "Unknown task 'word'. Did you mean 'words'"),
        (lambda: predictor.predict(["a", "b"], ["words", "lang"]), "Did you mean 'long'"),
        (lambda: predictor.predict(["a", "b"], ["words"]), "1 tasks for 2 texts"),
        (lambda: predictor.predict("a text"), "list of texts"),
        (lambda: predictor.score(["a", "b"], [["yes"], []]), r"text 1 \('b'\) is empty"),
        (lambda: predictor.score(["a", "b"], []), "0 option lists for 2 texts"),
        (lambda: predictor.score(["a"], [["x"], ["y"]]), "2 option lists for 1 texts"),
        (lambda: predictor.score(["a", "b"], [["x"], "yes"]), "is the text 'yes', not a list"),
        (lambda: predictor.score(["a"], [["x", "yes"]], shape=(1, 4)), r"\(1, 4\) .* up to 2 options of"),
        (lambda: predictor.score(["a"], [["x", "yes"]], shape=(2, 1)), r"\(2, 1\) of options is too small"),
        (lambda: tight.predict(["a long enough input"], "words"), "inputs=12 is too short for task 'words'.*leaves 1"),
        (lambda: instructed.predict(["a"], "words"), "instructions=8 is too short for task 'words'"),
        (lambda: dataclasses.replace(predictor, batch_size=0), "batch_size"),
    ]:
        with pytest.raises(UserError, match=words):
            call()
