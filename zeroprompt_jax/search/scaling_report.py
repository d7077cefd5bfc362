"""The task-scaling study's table, its pictures and its scores by wording. Scores are in points of 100."""

import collections
import csv
import dataclasses
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.metrics import ranks

Record = Mapping[str, Any]
Cells = Mapping[tuple[str, int], Mapping[int, Record]]


def cells(records: Iterable[Record]) -> Cells:
    """(size, number of tasks) to seed to the run's record; of a run that two jobs made, the first."""
    found: dict = collections.defaultdict(dict)
    for r in records:
        found[r["arm"], r["tasks"]].setdefault(r["seed"], r)
    return {place: dict(sorted(seeds.items())) for place, seeds in sorted(found.items())}


def scores(found: Cells, size: str, tasks: int, group: str) -> dict[int, float]:
    """Seed to the mean over a group's tasks."""
    return {seed: 100 * r["groups"][group]["score"] for seed, r in found.get((size, tasks), {}).items()}


def _counts(found: Cells, size: str | None = None) -> list[int]:
    return sorted({tasks for name, tasks in found if size in (None, name)})


def _groups(found: Cells) -> list[str]:
    present = dict.fromkeys(group for seeds in found.values() for r in seeds.values() for group in r["groups"])
    return [g for g in reversed(report.GROUPS) if g in present] + [g for g in present if g not in report.GROUPS]


def correlation(found: Cells, size: str, group: str) -> float:
    """Spearman's rank correlation of number of tasks and score, over all runs of a size; NaN where one is constant."""
    pairs = [(n, s) for n in _counts(found, size) for s in scores(found, size, n, group).values()]
    x, y = (ranks(column) for column in zip(*pairs))
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else float("nan")


def _apart(higher: Mapping[int, float], lower: Mapping[int, float]) -> dict[int, float]:
    return {seed: higher[seed] - lower[seed] for seed in higher if seed in lower}


def gap(found: Cells, size: str, group: str) -> list[float]:
    """By seed, how far the score with the most tasks lies above that with the fewest."""
    counts = _counts(found, size)
    return list(_apart(*(scores(found, size, n, group) for n in (counts[-1], counts[0]))).values())


def size_gain(found: Cells, sizes: Sequence[str], tasks: int, group: str) -> dict[int, float]:
    """Seed to how far the last size's score lies above the first's, with so many tasks."""
    return _apart(scores(found, sizes[-1], tasks, group), scores(found, sizes[0], tasks, group))


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What it takes to reach the best score of a smaller number of tasks, with that number and with a larger one.

    Attributes:
      target: the best final score of any size with few tasks.
      few_flops, many_flops: training FLOPs of the cheapest run up to its first evaluation at or above the target.
        (Before the end of a run its learning rate is still high: a shorter run would have reached more.)
      few_parameters, many_parameters: of the smallest model that reaches it. None: with many tasks none does.
    """

    target: float
    few_flops: float
    many_flops: float | None
    few_parameters: int
    many_parameters: int | None


def efficiency(found: Cells, few: int, many: int, group: str) -> dict[int, Efficiency]:
    """Seed to the comparison of two numbers of tasks at equal score, over all sizes and all evaluations of a run."""

    def of(tasks: int, seed: int) -> list[Record]:
        return [seeds[seed] for (_, n), seeds in found.items() if n == tasks and seed in seeds]

    out = {}
    for seed in sorted({seed for seeds in found.values() for seed in seeds}):
        little, much = of(few, seed), of(many, seed)
        if not little or not much:
            continue
        target = max(100 * r["groups"][group]["score"] for r in little)
        needed = [_needed(own, target, group) for own in (little, much)]
        (few_flops, few_size), (many_flops, many_size) = needed
        out[seed] = Efficiency(target, few_flops, many_flops, few_size, many_size)
    return out


def _needed(runs: Sequence[Record], target: float, group: str) -> tuple[float | None, int | None]:
    """(FLOPs, parameters) of the cheapest and of the smallest run that reach a score."""
    reached = [(f, r["parameters"]) for r in runs for f, score in points(r, group) if f > 0 and score >= target]
    return (min(f for f, _ in reached), min(size for _, size in reached)) if reached else (None, None)


def points(run: Record, group: str) -> list[tuple[float, float]]:
    """(training FLOPs so far, score) of every evaluation of a run."""
    each = run["flops"] / run["steps"]
    during = {step: values[group] for step, values in run["curve"]}
    return [(each * step, 100 * s) for step, s in {**during, run["steps"]: run["groups"][group]["score"]}.items()]


def by_type(runs: Iterable[Record], group: str) -> dict[str, list[float]]:
    """Type to the mean over its tasks, a value for each run."""
    out = collections.defaultdict(list)
    for r in runs:
        own = collections.defaultdict(list)
        for test in r["tests"]:
            if test["group"] == group:
                own[test["type"]].append(100 * test["score"])
        for kind, values in own.items():
            out[kind].append(float(np.mean(values)))
    return dict(sorted(out.items()))


def wording_spread(runs: Iterable[Record], group: str) -> tuple[float, float] | None:
    """Over tasks that were tested with several wordings: the best wording's score less the worst's, mean over tasks;
    and the standard deviation among wordings beyond what drawing the examples explains (at most s (1 - s) / (n - 1) for
    a wording of score s on n examples). None where no task has several wordings."""
    ranges, beyond = [], []
    for test in (test for r in runs for test in r["tests"] if test["group"] == group and len(test["wordings"]) > 1):
        values = np.array(list(test["wordings"].values()))
        n = test["examples"] / len(values)
        ranges.append(np.ptp(values))
        beyond.append(np.var(values, ddof=1) - np.mean(values * (1 - values)) / max(n - 1, 1))
    return (100 * float(np.mean(ranges)), 100 * float(np.sqrt(max(np.mean(beyond), 0)))) if ranges else None


# The table.


def table(records: Iterable[Record], sizes: Sequence[str]) -> str:
    """The printed table, of what is recorded so far of these sizes."""
    found = cells(r for r in records if r["arm"] in sizes)
    sizes = [size for size in sizes if any(name == size for name, _ in found)]
    groups = _groups(found)
    parts = [_summary(found, sizes, groups), _trends(found, sizes, groups)]
    if len(sizes) > 1:
        parts.append(_size_gains(found, sizes, groups))
    if len(_counts(found)) > 1:
        parts.append(_efficiencies(found, groups))
    parts += [_types(found, sizes, group) for group in groups]
    parts += [_wordings(found, sizes, groups), _costs(found, sizes)]
    seeds = len({seed for own in found.values() for seed in own})
    metrics = sorted({t["metric"] for own in found.values() for r in own.values() for t in r["tests"]})
    legend = f"Scores are points of 100 ({', '.join(metrics)}), means over tasks"
    legend += f" and {seeds} seeds; ± is the standard deviation over seeds." if seeds > 1 else "; one seed."
    legend += " nats/token: loss on the answers. labels: labelled examples of a tested task that training was given."
    legend += " baseline: the better of the best single answer and the copied input."
    legend += " FLOPs: of training alone, by formula, padding counted; pretraining and evaluation are not in them."
    lines = [line for part in parts if part for line in [*part, ""]]
    return "\n".join([*lines, *textwrap.wrap(legend, 120)]) + "\n"


def _named(found: Cells, group: str) -> str:
    one = next(r["groups"][group] for own in found.values() for r in own.values() if group in r["groups"])
    labels = "" if one["labels"] is None else f", {one['labels']:,.0f} labels"
    return f"{group.replace('_', ' ')} ({one['tasks']} tasks{labels})"


def _mean(runs: Mapping[int, Record], key: str) -> float:
    return float(np.mean([r[key] for r in runs.values()]))


def _summary(found: Cells, sizes: Sequence[str], groups: Sequence[str]) -> list[str]:
    columns = [name for group in groups for name in (_named(found, group), "nats/token")]
    lines = [["size", "training tasks", "types", *columns, "TFLOP", "minutes"]]
    for size in sizes:
        for n in _counts(found, size):
            runs = found[size, n]
            values = []
            for group in groups:
                losses = [r["groups"][group]["loss"] for r in runs.values()]
                values += [report.spread(list(scores(found, size, n, group).values())), report.spread(losses, 2)]
            types = f"{_mean(runs, 'types'):.0f}"
            lines.append(
                [size, f"{n:,}", types, *values, f"{_mean(runs, 'flops') / 1e12:,.4g}", f"{_mean(runs, 'minutes'):.1f}"]
            )
    level = [cell for group in groups for cell in (f"{_baseline(found, group):.1f}", "")]
    return report.align([*lines, ["baseline", "", "", *level, "", ""]])


def _baseline(found: Cells, group: str) -> float:
    return 100 * float(np.mean([r["groups"][group]["baseline"] for own in found.values() for r in own.values()]))


def _trends(found: Cells, sizes: Sequence[str], groups: Sequence[str]) -> list[str]:
    lines = [["more tasks", "size", "rank correlation", "first to last"]]
    for group in groups:
        for size in sizes:
            rises = gap(found, size, group)
            told = report.spread(rises, signed=True) if rises else "-"
            lines.append([group.replace("_", " "), size, f"{correlation(found, size, group):.2f}", told])
    return [
        *report.align(lines),
        "rank correlation: Spearman's, of number of training tasks and score, over all runs of a size.",
    ]


def _size_gains(found: Cells, sizes: Sequence[str], groups: Sequence[str]) -> list[str]:
    counts = _counts(found)
    lines, told = [[f"'{sizes[-1]}' over '{sizes[0]}'", *(f"{n:,} tasks" for n in counts)]], []
    for group in groups:
        gains = {n: size_gain(found, sizes, n, group) for n in counts}
        cell = lambda n: report.spread(list(gains[n].values()), signed=True) if gains[n] else "-"
        lines.append([group.replace("_", " "), *map(cell, counts)])
        change = list(_apart(gains[counts[-1]], gains[counts[0]]).values())
        if len(counts) > 1 and change:
            told += _verdict(group, counts, change)
    return [*report.align(lines), *told]


def _verdict(group: str, counts: Sequence[int], change: Sequence[float]) -> list[str]:
    mean, half = float(np.mean(change)), report.half_interval(change)
    sure = abs(mean) > half
    says = (
        f"size matters {'less' if mean < 0 else 'more'}"
        if sure
        else "whether size matters less is not told apart from chance"
    )
    shown = f"{mean:+.1f}" + (
        f" ± {half:.1f}, 95% t interval over {len(change)} seeds" if len(change) > 1 else ", one seed"
    )
    return [f"{group.replace('_', ' ').capitalize()}, {counts[-1]:,} tasks against {counts[0]:,}: {says} ({shown})."]


def _efficiencies(found: Cells, groups: Sequence[str]) -> list[str]:
    *fewer, most = _counts(found)
    tera = lambda values: f"{np.mean(values) / 1e12:,.3g}"
    lines = [["at equal score", "tasks", "score", "TFLOP", f"with {most:,}", "times the FLOPs", "times the parameters"]]
    for group in groups:
        for few in fewer:
            every = list(efficiency(found, few, most, group).values())
            known = [e for e in every if e.many_flops]
            targets = [e.target for e in every]
            below = " (below baseline)" if every and np.mean(targets) < _baseline(found, group) else ""
            line = [group.replace("_", " "), f"{few:,}", report.spread(targets) + below if every else "-"]
            if not known:
                lines.append([*line, tera([e.few_flops for e in every]) if every else "-", "-", "-", "-"])
                continue
            ratio = report.spread([e.few_flops / e.many_flops for e in known])
            smaller = report.spread([e.few_parameters / e.many_parameters for e in known])
            partly = "" if len(known) == len(every) else f" ({len(known)} of {len(every)} seeds)"
            costs = [tera([e.few_flops for e in known]), tera([e.many_flops for e in known])]
            lines.append([*line, *costs, ratio + partly, smaller])
    notes = [
        "score: the best with so many tasks. TFLOP: up to the first evaluation that reaches it, with these tasks and",
        "with the most. times: fewer tasks over most; of parameters, those of the smallest model that reaches it.",
    ]
    return [*report.align(lines), *notes]


def _types(found: Cells, sizes: Sequence[str], group: str) -> list[str]:
    counts = _counts(found)
    values = {place: by_type(own.values(), group) for place, own in found.items()}
    tasks = collections.defaultdict(set)
    for test in (t for own in found.values() for r in own.values() for t in r["tests"] if t["group"] == group):
        tasks[test["type"]].add(test["task"])
    lines = [[group.replace("_", " "), "tasks", "size", *(f"{n:,}" for n in counts)]]
    for kind in sorted(tasks):
        for size in sizes:
            row = [values.get((size, n), {}).get(kind) for n in counts]
            first = [kind, str(len(tasks[kind]))] if size == sizes[0] else ["", ""]
            lines.append([*first, size, *("-" if v is None else f"{np.mean(v):.1f}" for v in row)])
    return report.align(lines)


def _wordings(found: Cells, sizes: Sequence[str], groups: Sequence[str]) -> list[str]:
    counts = _counts(found)
    lines = [["wordings", "size", *(f"{n:,} tasks" for n in counts)]]
    for group in groups:
        for size in sizes:
            row = [wording_spread(found.get((size, n), {}).values(), group) for n in counts]
            if any(row):
                cell = lambda pair: "-" if pair is None else f"{pair[0]:.1f} / {pair[1]:.1f}"
                lines.append([group.replace("_", " "), size, *map(cell, row)])
    if len(lines) == 1:
        return []
    note = (
        "A task's best wording less its worst / standard deviation of its wordings beyond chance; each: wordings.csv."
    )
    return [*report.align(lines), note]


def _costs(found: Cells, sizes: Sequence[str]) -> list[str]:
    lines = [["model", "parameters", "steps", "batch", "GFLOP a step", "by XLA", "formula / XLA"]]
    for size in sizes:
        r = next(r for (name, _), own in found.items() if name == size for r in own.values())
        each = [f"{r[key] / r['steps'] / 1e9:,.4g}" for key in ("flops", "counted")]
        ratio = f"{r['flops'] / r['counted']:.3f}"
        lines.append([size, f"{r['parameters']:,}", f"{r['steps']:,}", f"{r['batch']:,}", *each, ratio])
    return report.align(lines)


def wordings_csv(records: Iterable[Record]) -> str:
    """A line for every wording of every tested task of every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size", "training_tasks", "seed", "group", "type", "task", "wording", "metric", "score", "labels"])
    for (size, tasks), own in cells(records).items():
        for seed, r in own.items():
            for t in r["tests"]:
                for wording, score in t["wordings"].items():
                    place = [size, tasks, seed, t["group"], t["type"], t["task"], wording]
                    writer.writerow([*place, t["metric"], f"{score:.6g}", t["labels"]])
    return text.getvalue()


# The pictures.

_DOTTED = {"color": "#222222", "linestyle": ":", "linewidth": 1.2}


def _color(place: int, count: int = 0) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.85 * place / max(count - 1, 1)) if count else colormaps["tab10"](place)


def _against_tasks(axis: Any, counts: Sequence[int], lines: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """A line per size: mean and standard deviation over seeds."""
    for place, (size, values) in enumerate(lines.items()):
        x = [n for n in counts if values.get(n)]
        errors = [np.std(values[n], ddof=1) if len(values[n]) > 1 else 0 for n in x]
        style = {"color": _color(place), "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.6}
        axis.errorbar(x, [np.mean(values[n]) for n in x], errors, **style, elinewidth=0.9, label=size)
    axis.set_xscale("log")
    axis.set_xticks(counts, [f"{n:,}" for n in counts])
    axis.minorticks_off()


def _pictures(root: Path, found: Cells, sizes: Sequence[str], title: str) -> None:
    from matplotlib.ticker import LogLocator

    counts, groups = _counts(found), _groups(found)
    titled = [report.GROUPS.get(group, group.replace("_", " ")) for group in groups]

    figure, axes = report.charts(titled, len(groups), (5.2, 4.6))
    for axis, group in zip(axes, groups):
        _against_tasks(axis, counts, {s: {n: list(scores(found, s, n, group).values()) for n in counts} for s in sizes})
        axis.axhline(_baseline(found, group), **_DOTTED, label="baseline")
        axis.set_xlabel("training tasks")
    axes[0].set_ylabel("mean score over tasks, points of 100")
    axes[0].legend(frameon=False, title="bars: std over seeds", title_fontsize=8.5, fontsize=8.5)
    report.entitle(figure, title)
    axes[0].set_ylim(bottom=0)  # of all panels, once all are drawn
    report.save(figure, root / "results.png")

    figure, axes = report.charts(titled, len(groups), (5.2, 4.6), grid="both")
    styles = ["-", "--", ":", "-."]
    for axis, group in zip(axes, groups):
        for (size, n), own in found.items():
            shared = set.intersection(*({f for f, _ in points(r, group)} for r in own.values()))
            x = sorted(f for f in shared if f > 0)
            y = np.mean([[dict(points(r, group))[f] for f in x] for r in own.values()], axis=0)
            style = {
                "color": _color(counts.index(n), len(counts)),
                "linestyle": styles[sizes.index(size) % len(styles)],
            }
            axis.plot(np.array(x) / 1e12, y, marker="o", markersize=3.5, **style)
        axis.axhline(_baseline(found, group), **_DOTTED)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_xlabel("training TFLOP, by formula")
    for place, n in enumerate(counts):
        axes[0].plot([], [], color=_color(place, len(counts)), label=f"{n:,} tasks")
    for size, style in zip(sizes, styles * len(sizes)):
        axes[0].plot([], [], color="#222222", linestyle=style, label=size)
    axes[0].plot([], [], **_DOTTED, label="baseline")
    axes[0].set_ylabel("mean score over tasks and seeds, points of 100")
    axes[0].legend(frameon=False, fontsize=8.5)
    report.entitle(figure, title)
    axes[0].set_ylim(bottom=0)
    report.save(figure, root / "flops.png")

    kinds = {
        group: sorted({kind for own in found.values() for kind in by_type(own.values(), group)}) for group in groups
    }
    panels = [(group, kind) for group in groups for kind in kinds[group]]
    named = [f"{kind.replace('_', ' ')} ({group.replace('_', ' ')})" for group, kind in panels]
    figure, axes = report.charts(named, min(5, len(panels)), (3.2, 2.5))
    for axis, (group, kind) in zip(axes, panels):
        of = lambda size, n: by_type(found.get((size, n), {}).values(), group).get(kind, [])
        _against_tasks(axis, counts, {size: {n: of(size, n) for n in counts} for size in sizes})
        axis.set_title(axis.get_title(loc="left"), loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("training tasks; bars: standard deviation over seeds", fontsize=9)
    report.entitle(figure, title)
    axes[0].set_ylim(bottom=0)
    report.save(figure, root / "types.png")


def write(root: Path, records: Sequence[Record], sizes: Sequence[str], title: str = "") -> str:
    """Writes table.txt, wordings.csv, results.png, flops.png and types.png; returns the table."""
    known = [r for r in records if r["arm"] in sizes]
    text = table(known, sizes)
    report.save_text(root / "table.txt", text)
    report.save_text(root / "wordings.csv", wordings_csv(known))
    _pictures(root, cells(known), [size for size in sizes if any(r["arm"] == size for r in known)], title or root.name)
    return text
