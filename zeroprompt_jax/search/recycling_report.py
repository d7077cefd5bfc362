"""The recycling study's table and picture.

A prompt counts as recycled when it scores above the 95th percentile of random prompts on the same target and task: to beat
a model without a prompt is easy, as random prompts do so often. A percentile of few draws is rough, so how many random
prompts count by the same rule, each against the others, is shown beside it.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zeroprompt_jax.evaluation import report

ZERO_SHOT, RETUNED, COPY, RANDOM = "zero-shot", "re-tuned", "raw copy", "random"
PAPER = "v2v-nn"  # what other recyclers are compared with, case by case
_QUANTILE = 95


class Case(NamedTuple):
    """A recycled prompt of one task, with what it is compared with on its target. bar: the percentile of random
    prompts; random: their mean; retuned: prompts trained on the target for as many steps."""

    level: str
    method: str
    key: tuple  # of the prompt and the target, whatever recycled it: source, target, initialiser, run, step, task
    score: float
    zero_shot: float
    random: float
    bar: float
    retuned: float


def cases(records: Sequence[Any], models: Sequence[str]) -> list[Case]:
    """Every recycled or copied prompt. Its level is the farther of its two models, and of a model with itself
    the first. Targets not yet measured are left out."""
    zero = {r.target: r.scores for r in records if r.method == ZERO_SHOT}
    retuned = {(r.target, r.initialiser, r.run, r.step): r.scores for r in records if r.method == RETUNED}
    drawn = _drawn(records)
    out = []
    for r in records:
        own = retuned.get((r.target, r.initialiser, r.run, r.step))
        if not r.source or r.method == RETUNED or own is None or r.target not in zero or not drawn[r.target]:
            continue
        level = models[0 if r.source == r.target else max(models.index(r.source), models.index(r.target))]
        for task, score in r.scores.items():
            values = [scores[task] for scores in drawn[r.target]]
            key = (r.source, r.target, r.initialiser, r.run, r.step, task)
            out.append(Case(level, r.method, key, score, zero[r.target][task], *_against(values), own[task]))
    return out


def random_cases(records: Sequence[Any], found: Sequence[Case]) -> list[Case]:
    """Every random prompt on the targets and tasks of each level's cases, compared with the other random prompts there:
    how often chance alone is counted as recycled."""
    drawn, places = _drawn(records), collections.defaultdict(list)
    for c in found:
        places[c.level, c.key[1], c.key[-1]].append(c)
    out = []
    for (level, target, task), group in places.items():
        values, own = [scores[task] for scores in drawn[target]], float(np.mean([c.retuned for c in group]))
        for i, score in enumerate(values):
            key, others = ("", target, "", i, 0, task), values[:i] + values[i + 1 :]
            out.append(Case(level, RANDOM, key, score, group[0].zero_shot, *_against(others), own))
    return out


def _drawn(records: Sequence[Any]) -> dict[str, list[Mapping[str, float]]]:
    """Target to the scores of each random prompt."""
    out = collections.defaultdict(list)
    for r in records:
        if not r.source and r.method != ZERO_SHOT:
            out[r.target].append(r.scores)
    return out


def _against(values: Sequence[float]) -> tuple[float, float]:
    """Mean and bar of random prompts' scores."""
    return float(np.mean(values)), float(np.percentile(values, _QUANTILE))


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share of k among n (Wilson 1927)."""
    p, scale = k / n, 1 + z**2 / n
    middle, half = (p + z**2 / (2 * n)) / scale, z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / scale
    return float(max(middle - half, 0)), float(min(middle + half, 1))


def summary(found: Sequence[Case]) -> dict[str, float]:
    """Of the cases of one kind: `n`; `recycled` and `above_zero`, counts; `score`, `zero_shot`, `random`, `retuned`, means;
    `gain` over random prompts; `closed`, the share of the way from random to re-tuned prompts."""
    mean = lambda name: float(np.mean([getattr(c, name) for c in found]))
    means = {name: mean(name) for name in ("score", "zero_shot", "random", "retuned")}
    gain, room = means["score"] - means["random"], means["retuned"] - means["random"]
    return {
        "n": len(found),
        "recycled": sum(c.score > c.bar for c in found),
        "above_zero": sum(c.score > c.zero_shot for c in found),
        **means,
        "gain": gain,
        "closed": gain / room if room > 0 else float("nan"),
    }


def paired(found: Sequence[Case], method: str, other: str) -> tuple[float, float, int]:
    """Difference of two methods on the same prompts, its mean over pairs of models; half the 95% t interval of that mean,
    NaN for a single pair; and the number of pairs.

    A pair, in both directions, counts once: its tasks, initialisers and steps share two models and their maps, and are
    no independent cases."""
    scores = {(c.method, c.key): c.score for c in found}
    pairs = collections.defaultdict(list)
    for (name, key), score in scores.items():
        if name == method and (other, key) in scores:
            pairs[frozenset(key[:2])].append(score - scores[other, key])
    values = np.array([np.mean(own) for own in pairs.values()])
    mean = float(values.mean()) if len(values) else 0.0
    return mean, report.half_interval(values), len(values)


def _groups(found: Sequence[Case], models: Sequence[str], methods: Iterable[str]):
    of = collections.defaultdict(list)
    for c in found:
        of[c.level, c.method].append(c)
    return {(level, m): of[level, m] for level in models for m in methods if of[level, m]}


def table(records: Sequence[Any], models: Sequence[str], recyclers: Sequence[str]) -> str:
    """The printed table: for every level and method how many prompts are recycled, and what they score."""
    found = cases(records, models)
    head = [
        "farther model",
        "method",
        "recycled",
        "95%",
        "> zero-shot",
        "score",
        "gain",
        "closed",
        "zero-shot",
        "random",
        "re-tuned",
    ]
    lines = []
    shown = [*found, *random_cases(records, found)]
    for (level, method), group in _groups(shown, models, [*recyclers, COPY, RANDOM]).items():
        s = summary(group)
        low, high = wilson(s["recycled"], s["n"])
        points = [f"{100 * s[name]:.1f}" for name in ("zero_shot", "random", "retuned")]
        lines.append(
            [
                level,
                method,
                f"{s['recycled']}/{s['n']}",
                f"{100 * low:.0f}–{100 * high:.0f}",
                f"{s['above_zero']}/{s['n']}",
            ]
            + [f"{100 * s['score']:.1f}", f"{100 * s['gain']:+.1f}", f"{100 * s['closed']:.0f}%", *points]
        )
    if not lines:
        return "No pair of models is measured yet.\n"
    out = report.align([head, *lines])
    own = [[m, *paired([c for c in found if c.key[0] != c.key[1]], m, PAPER)] for m in recyclers if m != PAPER]
    if PAPER in recyclers and any(n for *_, n in own):
        out += ["", f"Points more than {PAPER} on the same prompts, means over pairs of different models:", ""]
        lines = [[m, f"{100 * d:+.1f} ± {100 * h:.1f}" if n > 1 else f"{100 * d:+.1f}", f"{n}"] for m, d, h, n in own]
        out += report.align([["method", "difference", "pairs"], *lines])
        out += [
            "±: 95% t interval over pairs, each the mean of its tasks, initialisers, steps and both directions, as if pairs",
            f"that share a model were independent; not corrected for the number of comparisons, {len(own)}.",
        ]
    draws = max(map(len, _drawn(records).values()))
    out += [
        "",
        f"Rank accuracy in points of 100. recycled: prompts above the {_QUANTILE}th percentile (interpolated) of {draws} random "
        "prompts of the",
        f"same target and task. {RANDOM}: the same count of the random prompts, each against the others: what chance reaches.",
        "95%: Wilson's interval, as if cases were independent, which those of one pair of models are not. gain: over the mean "
        "random prompt.",
        "closed: share of the way from random to re-tuned prompts.",
    ]
    return "\n".join(out) + "\n"


def picture(path: Path, records: Sequence[Any], models: Sequence[str], recyclers: Sequence[str], title: str) -> None:
    """Mean score against the distance of the models, a line per method, between random and re-tuned prompts."""
    from matplotlib import colormaps

    groups = _groups(cases(records, models), models, [*recyclers, COPY])
    if not groups:
        return
    levels = [level for level in models if any(at == level for at, _ in groups)]
    figure, axis = report.chart(title)
    baselines: Mapping[str, dict[str, Any]] = {
        "zero_shot": {"label": "zero-shot", "color": "#999999", "linestyle": ":"},
        "random": {"label": "random prompts", "color": "#222222", "linestyle": ":"},
        "retuned": {"label": "re-tuned", "color": "#222222", "linestyle": "--"},
    }
    for name, style in baselines.items():
        every = [
            summary([c for (at, m), g in groups.items() if at == level and m != COPY for c in g]) for level in levels
        ]
        axis.plot(range(len(levels)), [100 * s[name] for s in every], **style)
    for i, method in enumerate(m for m in (*recyclers, COPY) if any(method == m for _, method in groups)):
        at = [
            (x, 100 * summary(groups[level, method])["score"])
            for x, level in enumerate(levels)
            if (level, method) in groups
        ]
        axis.plot(*zip(*at), marker="o", markersize=4, linewidth=1.6, color=colormaps["tab10"](i), label=method)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axis.set_xticks(range(len(levels)), levels, rotation=15)
    axis.set_xlabel("the farther of source and target")
    axis.set_ylabel("mean rank accuracy on the target, points of 100")
    axis.set_ylim(0, 101)
    report.save(figure, path)


def write(root: Path, records: Sequence[Any], models: Sequence[str], recyclers: Sequence[str], title: str) -> str:
    """Writes table.txt and results.png; returns the table."""
    text = table(records, models, recyclers)
    report.save_text(root / "table.txt", text)
    picture(root / "results.png", records, models, recyclers, title or root.name)
    return text
