"""Metrics against values worked out by hand."""

import math
import random

import numpy as np
import pytest
import scipy.stats
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import metrics


def score(name, prediction, *references):
    return metrics.METRICS[name]([prediction], [list(references)])


@pytest.mark.parametrize(
    "prediction, reference, plain, cased, loose",
    [
        ("Paris", "Paris", 1, 1, 1),
        ("  the   cat ", "the cat", 1, 1, 1),
        ("PARIS", "Paris", 1, 0, 1),
        ("Paris.", "Paris", 0, 0, 1),
        ("a-b", "ab", 0, 0, 1),
        ("cafe\u0301", "caf\u00e9", 1, 1, 1),
        ("Paris France", "Paris", 0, 0, 0),
        ("", "Paris", 0, 0, 0),
    ],
)
def test_exact_match_forgives_what_it_says(prediction, reference, plain, cased, loose):
    assert score("exact_match", prediction, reference) == plain
    assert score("accuracy", prediction, reference) == plain
    assert score("exact_match_cased", prediction, reference) == cased
    assert score("exact_match_loose", prediction, reference) == loose


@pytest.mark.parametrize("name", sorted(metrics.METRICS.keys() - {"auc", "f1", "matthews", "pearson", "spearman"}))
def test_bounds_and_best_reference(name):
    metric = metrics.METRICS[name]
    references = [["a dog", "one dog"], ["two cats"]]
    assert metric(["one dog", "two cats"], references) == 1
    assert metric(["nothing", "here"], references) == 0
    assert 0 < metric(["one dog", "here"], references) < 1
    assert metric(["one dog", "two cats"], references, [["one dog", "two cats"]] * 2) == 1


def test_f1_is_of_the_last_option():
    options = [["no", "yes"]] * 6
    references = [["yes"], ["yes"], ["yes"], ["no"], ["no"], ["no"]]
    # Two hits, a miss and two false alarms, as what is no option is wrong.
    answers = ["yes", "Yes", "no", "yes", "what", "no"]
    assert metrics.f1(answers, references, options) == pytest.approx(2 * 2 / (3 + 2 + 2))
    assert metrics.f1([r for (r,) in references], references, options) == 1
    assert metrics.f1(["yes", "what"], [["yes"], ["yes"]], options[:2]) == pytest.approx(2 / 3)
    assert metrics.f1(["no"], [["no"]], options[:1]) == 0
    for wrong in (None, [["no", "yes"], ["yes", "no"]], [["a", "b", "c"]] * 2):
        with pytest.raises(ValueError, match="two answer options in one order"):
            metrics.f1(["yes", "no"], [["yes"], ["no"]], wrong)


def test_correlations_against_scipy_and_numpy():
    rng = random.Random(0)
    right = [rng.choice(["a", "b"]) for _ in range(40)]
    answers = [r if rng.random() < 0.7 else rng.choice(["a", "b"]) for r in right]
    sides = [[float(x == "a") for x in side] for side in (answers, right)]
    assert metrics.matthews(answers, [[r] for r in right]) == pytest.approx(np.corrcoef(*sides)[0, 1])
    assert metrics.matthews(right, [[r] for r in right]) == pytest.approx(1)
    assert metrics.matthews(["a"] * 40, [[r] for r in right]) == 0
    flipped = ["b" if r == "a" else "a" for r in right]
    assert metrics.matthews(flipped, [[r] for r in right]) == pytest.approx(-1)
    numbers = [round(rng.random() * 25) / 5 for _ in range(40)]
    given = [n + rng.gauss(0, 1) for n in numbers]
    texts, references = [f"{g:.6f}" for g in given], [[f"{n:.1f}"] for n in numbers]
    assert metrics.pearson(texts, references) == pytest.approx(scipy.stats.pearsonr(given, numbers)[0], abs=1e-5)
    assert metrics.spearman(texts, references) == pytest.approx(scipy.stats.spearmanr(given, numbers)[0], abs=1e-5)
    assert metrics.pearson(["3.0"] * 40, references) == 0
    for text in ("three", "nan", "inf", ""):  # no number is -1
        assert metrics.pearson([text, "1"], [["0"], ["1"]]) == metrics.pearson(["-1", "1"], [["0"], ["1"]])


def test_spans_forgive_what_squad_forgives():
    for prediction in ("The Norman  dukes.", "norman dukes", "a Norman, dukes"):
        assert score("span_exact_match", prediction, "Norman dukes") == 1
    assert score("span_exact_match", "another dukes", "dukes") == 0
    assert score("span_f1", "the Norman dukes of Rouen", "Norman dukes") == pytest.approx(2 * 2 / (4 + 2))
    assert score("span_f1", "cats", "dogs", "the cats") == 1


def test_rouge_by_hand():
    # Words shared: the cat on mat (4 of 6 and 4 of 5); longest common subsequence the same four in order.
    one, other = "the cat sat on a mat", "the cat on the mat"
    assert score("rouge1", one, other) == pytest.approx(2 * 4 / (6 + 5))
    assert score("rougeL", one, other) == pytest.approx(2 * 4 / (6 + 5))
    # Reversed words are all shared, but only one is in order.
    assert score("rouge1", "c b a", "a b c") == 1
    assert score("rougeL", "c b a", "a b c") == pytest.approx(2 * 1 / 6)
    # A repeated word counts as often as the other text has it.
    assert score("rouge1", "the the the", "the cat") == pytest.approx(2 * 1 / 5)
    assert score("rougeL", "police killed the gunman", "police kill the gunman") == pytest.approx(2 * 3 / 8)
    assert score("rougeL", "Police, killed: THE gunman!", "police killed the gunman") == 1
    assert score("rougeL", "москва река", "москва") == pytest.approx(2 / 3)
    assert score("rougeL", "...", "a") == 0
    # The best reference counts, not the mean.
    assert score("rougeL", "a b", "x", "a b c") == pytest.approx(0.8)


def test_rouge_l_equals_the_definition():
    from itertools import combinations

    def lcs(a, b):
        subsequences = {tuple(a[i] for i in keep) for n in range(len(a) + 1) for keep in combinations(range(len(a)), n)}
        return max((len(s) for s in subsequences if is_within(s, b)), default=0)

    def is_within(s, b):
        rest = iter(b)
        return all(word in rest for word in s)

    texts = ["a b c a b", "b a c b a", "c c a", "a", "b b b a c", "c b a b"]
    for one in texts:
        for other in texts:
            a, b = one.split(), other.split()
            assert score("rougeL", one, other) == pytest.approx(2 * lcs(a, b) / (len(a) + len(b))), (one, other)


def test_macro_f1_by_hand():
    references = [["yes"]] * 3 + [["no"]]
    # Always the majority: F1 of yes is 2*3/(3+4), of no 0.
    assert metrics.macro_f1(["yes"] * 4, references) == pytest.approx((6 / 7 + 0) / 2)
    assert metrics.accuracy(["yes"] * 4, references) == 0.75
    # yes: 2 hits of 3, predicted twice; no: 1 hit of 1, predicted twice.
    assert metrics.macro_f1(["yes", "Yes", "no", "no"], references) == pytest.approx((4 / 5 + 2 / 3) / 2)
    # An answer outside the classes costs a miss, and adds no class of its own.
    assert metrics.macro_f1(["yes", "yes", "what", "no"], references) == pytest.approx((4 / 5 + 1) / 2)


def test_micro_f1_by_hand():
    references = [["yes"]] * 3 + [["no"]]
    # Where every prediction is a class it is accuracy.
    assert metrics.micro_f1(["yes", "no", "yes", "no"], references) == pytest.approx(3 / 4)
    # What is no class costs a miss and no false alarm: 2 right of 4 examples and 3 predictions.
    assert metrics.micro_f1(["yes", "what", "yes", "yes"], references) == pytest.approx(2 * 2 / (4 + 3))
    assert metrics.micro_f1(["a", "b"], [["a", "b"], ["b", "a"]]) == 1  # any acceptable answer


def ranked(log_likelihoods, references, options=("yes", "no")):
    """AUC of options ranked by log-likelihood."""
    answers = [options[max(range(len(options)), key=values.__getitem__)] for values in log_likelihoods]
    return metrics.auc(answers, [[r] for r in references], [options] * len(answers), log_likelihoods)


def test_auc_of_two_options_is_mann_and_whitneys():
    rng = random.Random(0)
    for count in (2, 5, 40):
        gold = ["yes", "no", *(rng.choice(["yes", "no"]) for _ in range(count - 2))]
        draw = lambda: round(4 * rng.gauss(0, 1)) / 4  # quarters, so that some tie, exactly
        values = [(draw(), draw() - 2) for _ in gold]
        margin = {label: [a - b for (a, b), g in zip(values, gold) if g == label] for label in ("yes", "no")}
        pairs = [(x, y) for x in margin["yes"] for y in margin["no"]]
        wanted = sum((x > y) + (x == y) / 2 for x, y in pairs) / len(pairs)
        assert ranked(values, gold) == pytest.approx(wanted)
        reference = scipy.stats.mannwhitneyu(margin["yes"], margin["no"]).statistic / len(pairs)
        assert ranked(values, gold) == pytest.approx(reference)
        # What all options of an example have in common changes nothing: scores are normalised over them.
        shifted = [(a - 50 * i, b - 50 * i) for i, (a, b) in enumerate(values)]
        assert ranked(shifted, gold) == pytest.approx(wanted)
        assert ranked([(b, a) for a, b in values], gold) == pytest.approx(1 - wanted)


def test_auc_by_hand():
    # Three answers, each against the rest: probabilities of a .5 .2 .3, of b .35 .6 .4, of c .15 .2 .3.
    probabilities = [(0.5, 0.35, 0.15), (0.2, 0.6, 0.2), (0.3, 0.4, 0.3)]
    values = [tuple(math.log(p) for p in row) for row in probabilities]
    assert ranked(values, ["a", "b", "c"], ("a", "b", "c")) == pytest.approx((1 + 1 + 1) / 3)
    assert ranked(values, ["a", "c", "b"], ("a", "b", "c")) == pytest.approx((1 + 0.5 + 0.5) / 3)
    # Probabilities that round to 1 are still told apart.
    assert ranked([(0.0, -800.0), (0.0, -900.0), (0.0, -850.0)], ["no", "yes", "yes"]) == 1
    assert ranked([(-math.inf, 0.0), (0.0, -math.inf), (-1.0, -2.0)], ["no", "yes", "no"]) == 1
    # Where examples list different options, all options together: (.9, .6) right, (.1, .4) wrong.
    own = [("x", "y"), ("u", "v")]
    values = [(math.log(0.9), math.log(0.1)), (math.log(0.4), math.log(0.6))]
    assert metrics.auc(["x", "v"], [["x"], ["v"]], own, values) == 1
    assert metrics.auc(["x", "v"], [["y"], ["v"]], own, values) == pytest.approx(1 / 4)
    # A generated answer counts as certain; one answer for all is chance, and so is one class.
    pair = [("yes", "no")] * 3
    assert metrics.auc(["yes", "no", "yes"], [["yes"], ["no"], ["no"]], pair) == pytest.approx(3 / 4)
    assert metrics.auc(["yes"] * 3, [["yes"], ["no"], ["no"]], pair) == 0.5
    assert metrics.auc(["yes"] * 3, [["yes"]] * 3, pair) == 0.5
    with pytest.raises(ValueError, match="AUC needs the answer options"):
        metrics.auc(["a"], [["a"]])


def test_ranks_are_scipys():
    for values in ([3, 1, 2], [1, 1, 1], [2, 1, 2, 0, 1], [0.5], [], [-math.inf, 0, math.inf, 0]):
        assert metrics.ranks(values) == scipy.stats.rankdata(values).tolist()


def test_baselines():
    assert metrics.majority_baseline([["a"], ["b"], ["b", "c"], ["c"], ["c"]]) == "c"
    assert metrics.majority_baseline([["b"], ["a"]]) == "b"
    references = [["x", "y"], ["y"], ["z"]]
    majority = metrics.majority_baseline(references)
    best = max(metrics.exact_match([word] * 3, references) for word in "xyz")
    assert metrics.exact_match([majority] * 3, references) == best == pytest.approx(2 / 3)
    assert metrics.copy_baseline(("a", "b")) == ["a", "b"]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="Unknown metric 'rougel'. Did you mean 'rougeL'?"):
        metrics.compute(["rougel"], ["a"], [["a"]])
    assert metrics.compute(["accuracy", "rouge1"], ["a"], [["a"]]) == {"accuracy": 1, "rouge1": 1}
    for predictions, references, words in [(["a"], [], "1 predictions for 0"), ([], [], "No ex"), (["a"], [[]], "no ref")]:
        with pytest.raises(ValueError, match=words):
            metrics.exact_match(predictions, references)
