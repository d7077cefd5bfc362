"""Fitness of wordings: labels of a small development set, pseudo-labels from an ensemble, or the right label's score.

A fitness is a frozen dataclass with `labels` (whether it reads right answers), `targets(first_WEO, gold_E)`, called
once with the first population's scores, and `value(scores_EO, target_E)`. Scores are log-likelihoods of answer options,
-inf for absent ones: W wordings, E examples, O options.
"""

import dataclasses
from typing import ClassVar, Protocol

import numpy as np

from zeroprompt_jax.evaluation import ranking


class Fitness(Protocol):
    """What is selected by; larger is better."""

    labels: ClassVar[bool]

    def targets(self, first_WEO: np.ndarray, gold_E: np.ndarray) -> np.ndarray:
        """Each example's option to agree with, [E] int."""

    def value(self, scores_EO: np.ndarray, target_E: np.ndarray) -> float:
        """One wording's fitness."""


def accuracy(scores_EO: np.ndarray, target_E: np.ndarray) -> float:
    """Share of examples whose most likely option is the target; of equally likely ones the first listed counts."""
    return float(np.mean(ranking.choose(scores_EO) == target_E))


@dataclasses.dataclass(frozen=True)
class LabelledDev:
    """Accuracy on the labelled development set (GPS)."""

    labels: ClassVar[bool] = True

    def targets(self, first_WEO, gold_E):
        return gold_E

    def value(self, scores_EO, target_E):
        return accuracy(scores_EO, target_E)


@dataclasses.dataclass(frozen=True)
class MeanLogit:
    """Mean log-likelihood (nats) of the right option on the labelled development set, as GPS selects clozes by the mean
    logit of the label."""

    labels: ClassVar[bool] = True

    def targets(self, first_WEO, gold_E):
        return gold_E

    def value(self, scores_EO, target_E):
        return float(np.mean(np.take_along_axis(scores_EO, target_E[:, None], axis=1)))


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    """Accuracy against the first population's own majority: the option with the largest mean probability over its
    wordings (as Zero-Label Prompt Selection labels data). Right answers are never read. Where all first wordings are at
    chance, it selects nothing of worth."""

    labels: ClassVar[bool] = False

    def targets(self, first_WEO, gold_E):
        return ranking.choose(ensemble(first_WEO))

    def value(self, scores_EO, target_E):
        return accuracy(scores_EO, target_E)


def ensemble(scores_WEO: np.ndarray) -> np.ndarray:
    """Log of the mean over wordings of each option's probability, normalised among an example's options: [E, O]."""
    scores_WEO = np.asarray(scores_WEO, np.float64)
    best_WE1 = scores_WEO.max(-1, keepdims=True)
    p_WEO = np.exp(scores_WEO - best_WE1)
    p_WEO /= p_WEO.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(p_WEO.mean(0))
