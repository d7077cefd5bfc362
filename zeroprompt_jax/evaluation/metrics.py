"""Metrics over generated text, and the two baselines every score is shown beside. Plain Python.

A metric is `metric(predictions, references, options=None, scores=None) -> float` in [0, 1], a correlation in [-1, 1]:
`predictions` one text per example, `references` all acceptable answers per example, and the best match counts. `options`
(the answer options, where a task has them) and `scores` (their log-likelihoods, where they were ranked) are accepted by
all; `auc` reads both, `f1` the options: to the others an answer outside the options is simply wrong.

Which differences are forgiven:
  exact_match        case, and the amount of white space
  exact_match_cased  the amount of white space only; for tasks whose answer is a matter of case
  exact_match_loose  case, white space and ASCII punctuation, as Natural Instructions' own scorer does
  accuracy           as exact_match
  macro_f1, micro_f1 as exact_match
  f1, matthews       as exact_match
  auc                as exact_match
  pearson, spearman  how a number is written; an answer that is none counts as -1, as in T5's own scorer
  span_exact_match, span_f1
                     case, white space, ASCII punctuation and articles, as SQuAD's scorer does
  rouge1, rougeL     as exact_match_loose, per word
"""

import itertools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from zeroprompt_jax.errors import unknown

Texts = Sequence[str]
References = Sequence[Sequence[str]]
Metric = Callable[..., float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, canonical Unicode, runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _cased(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _loose(text: str) -> str:
    return normalise(text.translate(_PUNCTUATION))


def _check(predictions: Texts, references: References) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} examples.")
    if not predictions:
        raise ValueError("No examples to score.")
    if empty := [i for i, answers in enumerate(references) if not answers]:
        raise ValueError(f"Example {empty[0]} has no reference.")


def _best_of(score: Callable[[str, str], float], prepare: Callable) -> Metric:
    """The mean over examples of the best score over references; `prepare` is applied once to each text."""

    def metric(
        predictions: Texts,
        references: References,
        options: Sequence[Texts] | None = None,
        scores: Sequence[Sequence[float]] | None = None,
    ) -> float:
        _check(predictions, references)
        best = (
            max(score(prepared, prepare(answer)) for answer in answers)
            for prepared, answers in zip(map(prepare, predictions), references)
        )
        return sum(best) / len(predictions)

    return metric


def _classes(predictions: Texts, references: References) -> tuple[Counter, Counter, Counter]:
    """By class: right predictions, examples, predictions. An example's class is the reference its prediction equals, or
    else its first. A prediction that is no class costs its example a miss and no class a false alarm."""
    _check(predictions, references)
    hits, gold, predicted = Counter(), Counter(), Counter()
    for prediction, answers in zip(map(normalise, predictions), references):
        answers = [normalise(a) for a in answers]
        label = prediction if prediction in answers else answers[0]
        gold[label] += 1
        predicted[prediction] += 1
        hits[label] += prediction == label
    return hits, gold, predicted


def macro_f1(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """F1 of each class, averaged over the classes that occur as a reference; see `_classes`."""
    hits, gold, predicted = _classes(predictions, references)
    return sum(2 * hits[c] / (gold[c] + predicted[c]) for c in gold) / len(gold)


def micro_f1(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """F1 of all classes' counts together, of the classes that occur as a reference: accuracy, where every prediction is
    one of these."""
    hits, gold, predicted = _classes(predictions, references)
    return 2 * hits.total() / (gold.total() + sum(predicted[c] for c in gold))


def f1(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """F1 of one class, that of the second of two options, as GLUE and MultiRC order theirs ('not_duplicate', 'duplicate').
    A prediction that is no option counts as the wrong one.

    Raises ValueError where the options are not two, or not the same for all examples.
    """
    hits, gold, _ = _classes(predictions, references)
    if options is None or len({tuple(given) for given in options}) > 1 or len(options[0]) != 2:
        raise ValueError("F1 needs two answer options in one order for all examples.")
    negative, positive = map(normalise, options[0])
    alarms = gold[negative] - hits[negative]  # every answer but the right one
    return 2 * hits[positive] / (gold[positive] + hits[positive] + alarms) if gold[positive] else 0.0


def matthews(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """Matthews' correlation of predicted and right classes (Gorodkin's R_K for more than two); 0 where either has one
    class alone."""
    hits, gold, predicted = _classes(predictions, references)
    n = gold.total()
    both = sum(gold[c] * predicted[c] for c in gold)
    spread = (n**2 - sum(v**2 for v in predicted.values())) * (n**2 - sum(v**2 for v in gold.values()))
    return (n * hits.total() - both) / math.sqrt(spread) if spread else 0.0


def pearson(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """Pearson's correlation of the predicted numbers and the first references; 0 where either are all equal."""
    _check(predictions, references)
    return _correlation([_number(p) for p in predictions], [_number(answers[0]) for answers in references])


def spearman(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """Spearman's: Pearson's correlation of the ranks."""
    _check(predictions, references)
    sides = [_number(p) for p in predictions], [_number(answers[0]) for answers in references]
    return _correlation(*map(ranks, sides))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    one, other = ([v - sum(values) / len(values) for v in values] for values in (one, other))
    size = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other)) / size if size else 0.0


def auc(
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> float:
    """Area under the ROC curve of the options' probabilities, their log-likelihoods normalised over an example's
    options: the chance that an example with an answer gives it a higher probability than one without. One answer
    against the rest, averaged over the answers (macro, unweighted); where examples list different options, over all
    options of all examples at once. Ties count half. Without `scores` the prediction has probability 1. Where nothing
    can be compared, as all examples have one answer, it is 0.5.

    Raises ValueError for an example without options.
    """
    _check(predictions, references)
    if options is None or not all(len(given) for given in options):
        raise ValueError("AUC needs the answer options of every example.")
    named = [[normalise(option) for option in given] for given in options]
    if scores is None:
        scores = [[0.0 if o == normalise(p) else -math.inf for o in given] for p, given in zip(predictions, named)]
    alike = all(set(given) == set(named[0]) for given in named)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for given, values, answers in zip(named, scores, references):
        right = {normalise(a) for a in answers}
        for place, option in enumerate(given):
            wrong, correct = found.setdefault(option if alike else "", ([], []))
            rest = [v for i, v in enumerate(values) if i != place]
            (correct if option in right else wrong).append(_log_odds(values[place], rest))
    areas = [_area(wrong, correct) for wrong, correct in found.values() if wrong and correct]
    return sum(areas) / len(areas) if areas else 0.5


def _log_odds(value: float, others: Sequence[float]) -> float:
    """Orders as the normalised probability does, and keeps apart what would round to 1."""
    top = max(others, default=-math.inf)
    if -math.inf in (value, top):
        return value if value == -math.inf else math.inf
    return value - top - math.log(sum(math.exp(v - top) for v in others))


def _area(wrong: Sequence[float], correct: Sequence[float]) -> float:
    """The share of pairs of one of each in which the correct one is larger (Mann and Whitney's U)."""
    rank = ranks([*correct, *wrong])
    own, n = sum(rank[: len(correct)]), len(correct)
    return (own - n * (n + 1) / 2) / (n * len(wrong))


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    order, out, before = sorted(range(len(values)), key=values.__getitem__), [0.0] * len(values), 0
    for _, tied in itertools.groupby(order, key=values.__getitem__):
        places = list(tied)
        for place in places:
            out[place] = before + (len(places) + 1) / 2
        before += len(places)
    return out


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", normalise(text))


def _f1(overlap: int, one: int, other: int) -> float:
    return 2 * overlap / (one + other) if overlap else 0.0


def _rouge1(prediction: list[str], reference: list[str]) -> float:
    overlap = (Counter(prediction) & Counter(reference)).total()
    return _f1(overlap, len(prediction), len(reference))


def _rouge_l(prediction: list[str], reference: list[str]) -> float:
    # Longest common subsequence by rows: row[j] is its length for the words so far and reference[:j].
    row = [0] * (len(reference) + 1)
    for word in prediction:
        above_left = 0
        for j, other in enumerate(reference, 1):
            above = row[j]
            row[j] = above_left + 1 if word == other else max(above, row[j - 1])
            above_left = above
    return _f1(row[-1], len(prediction), len(reference))


def _span(text: str) -> list[str]:
    """Words of an answer to a question about a text, without what SQuAD's scorer leaves out."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


exact_match = _best_of(str.__eq__, normalise)
exact_match_cased = _best_of(str.__eq__, _cased)
exact_match_loose = _best_of(str.__eq__, _loose)
accuracy = exact_match
# F-measures over words: runs of letters and digits in lower case, of any script, without a stemmer. (Natural
# Instructions' scorer stems English words, so its figures are slightly higher.)
rouge1 = _best_of(_rouge1, _words)
rougeL = _best_of(_rouge_l, _words)  # noqa: N816, the name the literature uses
span_exact_match = _best_of(list.__eq__, _span)
span_f1 = _best_of(_rouge1, _span)  # word overlap, as ROUGE-1's F1 is

METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "exact_match_cased": exact_match_cased,
    "exact_match_loose": exact_match_loose,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "auc": auc,
    "rouge1": rouge1,
    "rougeL": rougeL,
    "span_exact_match": span_exact_match,
    "span_f1": span_f1,
}


def check(names: Iterable[str]) -> None:
    """Raises UserError for a name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)


def compute(
    names: Sequence[str],
    predictions: Texts,
    references: References,
    options: Sequence[Texts] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> Mapping[str, float]:
    """All the named metrics. Raises UserError for a name that is no metric."""
    check(names)
    return {name: METRICS[name](predictions, references, options, scores) for name in names}


def majority_baseline(references: References) -> str:
    """The one answer that is acceptable for most examples: what a model that ignores its input could at best say.

    It is taken from the examples it is scored on, so it errs on the high side. Ties go to the answer met first.
    """
    counts: Counter[str] = Counter()
    written: dict[str, str] = {}
    for answers in references:
        for key, text in {_cased(a): a for a in answers}.items():
            counts[key] += 1
            written.setdefault(key, text)
    if not counts:
        raise ValueError("No references to take a majority of.")
    return written[max(counts, key=counts.__getitem__)]


def copy_baseline(inputs: Texts) -> list[str]:
    """Predictions of a model that repeats its input, instruction left out."""
    return list(inputs)
