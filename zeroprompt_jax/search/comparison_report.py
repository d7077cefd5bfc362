"""A comparison's table and picture."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.evaluation import report

Record = Mapping[str, Any]


def by_arm(records: Iterable[Record], key: str = "score") -> dict[tuple[str, str], dict[int, float]]:
    """(arm, group) to seed to the mean over tasks; scores in points of 100, losses in nats. Without what is not known."""
    cells: dict = collections.defaultdict(lambda: collections.defaultdict(list))
    for r in records:
        if r[key] is not None:
            cells[r["arm"], r["group"]][r["seed"]].append(r[key] * (1 if key.endswith("loss") else 100))
    return {place: {seed: float(np.mean(v)) for seed, v in sorted(s.items())} for place, s in cells.items()}


def distance(scores: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Seed by seed, how far scores lie above the reference's."""
    return [scores[seed] - reference[seed] for seed in scores if seed in reference]


def _known(records: Sequence[Record], names: Iterable[str]) -> list[str]:
    measured = {r["arm"] for r in records}
    return [name for name in names if name in measured]


def _groups(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    present = dict.fromkeys(r["group"] for r in records if r["arm"] in arms)
    return [g for g in reversed(report.GROUPS) if g in present] + [g for g in present if g not in report.GROUPS]


def table(records: Sequence[Record], stages: Iterable[str], arms: Iterable[str], reference: str | None) -> str:
    """The printed table: every arm's mean over the tasks of each group ± its standard deviation over seeds; the stages;
    and for each group the arms' means over seeds by type of task."""
    arms, stages = _known(records, arms), _known(records, stages)
    reference = reference if reference in arms else None
    out: list[str] = []
    if arms:
        out += [*_summary(records, arms, reference), ""]
    if stages:
        out += [*_stages(records, stages), ""]
    for group in _groups(records, arms):
        out += [*_types(records, arms, group), ""]
    seeds = len({r["seed"] for r in records})
    over = f"tasks and {seeds} seeds; ± is the standard deviation over seeds" if seeds > 1 else "tasks; one seed"
    metrics = ", ".join(sorted({r["metric"] for r in records if r["arm"] in arms}))
    out.append(f"Points of 100{metrics and f' ({metrics})'}, means over {over}.")
    if reference is not None:
        out.append(f"vs {reference}: the difference, taken seed by seed.")
    if any(r["shuffled"] is not None for r in records):
        out.append("shuffled: the same model, each task given another task's instruction, or each text another text's.")
    labels = collections.defaultdict(list)
    for r in records:
        if r["arm"] in arms and r.get("labels") is not None:  # records of an older version do not tell
            labels[r["group"]].append(r["labels"])
    if labels:
        told = ", ".join(f"{group.replace('_', ' ')} {np.mean(counts):,.0f}" for group, counts in labels.items())
        out.append(f"Labelled examples of a task that training was given: {told}.")
    out.append("baseline: the better of the best single answer and the copied input, chosen per task.")
    return "\n".join(out) + "\n"


def _summary(records: Sequence[Record], arms: Sequence[str], reference: str | None) -> list[str]:
    mine = [r for r in records if r["arm"] in arms]
    scores, baselines, shuffled = (by_arm(mine, key) for key in ("score", "baseline", "shuffled"))
    facts = {r["arm"]: r for r in mine}
    minutes = collections.defaultdict(dict)
    for r in mine:
        minutes[r["arm"]][r["seed"]] = r["minutes"]
    groups = _groups(records, arms)
    head = ["arm"]
    for group in groups:
        head += [group.replace("_", " "), *([f"vs {reference}"] if reference else []), *(["shuffled"] if shuffled else [])]
    lines = [[*head, "trained", "steps", "minutes"]]
    for number, arm in enumerate(arms, 1):
        line = [f"{number:>2} {arm}"]
        for group in groups:
            line.append(_cell(scores, arm, group))
            if reference:
                apart = distance(scores.get((arm, group), {}), scores.get((reference, group), {}))
                line.append(report.spread(apart, signed=True) if apart and arm != reference else "-")
            if shuffled:
                line.append(_cell(shuffled, arm, group))
        took = np.mean(list(minutes[arm].values()))
        lines.append([*line, f"{facts[arm]['trained']:,.0f}", f"{facts[arm]['steps']:,}", f"{took:.1f}"])
    last = ["   baseline"]
    for group in groups:
        found = [v for (_, g), seeds in baselines.items() if g == group for v in seeds.values()]
        last += [f"{np.mean(found):.1f}", *([""] if reference else []), *([""] if shuffled else [])]
    return report.align([*lines, [*last, "", "", ""]])


def _cell(cells: Mapping[tuple[str, str], Mapping[int, float]], arm: str, group: str, digits: int = 1) -> str:
    return report.spread(list(cells[arm, group].values()), digits) if (arm, group) in cells else "-"


def _stages(records: Sequence[Record], stages: Sequence[str]) -> list[str]:
    measured = {key: by_arm(records, key) for key in ("score", "loss", "shuffled_loss")}
    lines = [["stage", "tested on", "score", "nats/token", "shuffled", "steps", "minutes"]]
    for stage in stages:
        mine = [r for r in records if r["arm"] == stage]
        for group in dict.fromkeys(r["group"] for r in mine):
            took = np.mean(list({r["seed"]: r["minutes"] for r in mine}.values()))
            cells = [_cell(cells, stage, group, 1 if key == "score" else 3) for key, cells in measured.items()]
            lines.append([stage, group.replace("_", " "), *cells, f"{mine[0]['steps']:,}", f"{took:.1f}"])
    return report.align(lines)


def _types(records: Sequence[Record], arms: Sequence[str], group: str) -> list[str]:
    """Types of a group's tasks by arms, which their numbers stand for."""
    cells, tasks = collections.defaultdict(list), collections.defaultdict(set)
    for r in records:
        if r["group"] == group and r["arm"] in arms:
            cells[r["type"], r["arm"]].append(100 * r["score"])
            tasks[r["type"]].add(r["task"])
    lines = [[group.replace("_", " "), "tasks", *(str(number) for number, _ in enumerate(arms, 1))]]
    for kind in sorted(tasks):
        scores = [f"{np.mean(cells[kind, arm]):.1f}" if (kind, arm) in cells else "-" for arm in arms]
        lines.append([kind, str(len(tasks[kind])), *scores])
    return report.align(lines)


def picture(path: Path, records: Sequence[Record], arms: Iterable[str], title: str) -> None:
    """A bar per arm and group, with the standard deviation over seeds and a line at the baseline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = _known(records, arms)
    groups = _groups(records, arms)
    mine = [r for r in records if r["arm"] in arms]
    scores, baselines = by_arm(mine), by_arm(mine, "baseline")
    figure = Figure(
        figsize=(2.2 + 3.4 * len(groups), 1.3 + 0.34 * len(arms)), dpi=150, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, group in zip(axes, groups):
        for y, arm in enumerate(arms):
            values = list(scores.get((arm, group), {}).values())
            if not values:
                continue
            error = np.std(values, ddof=1) if len(values) > 1 else 0
            axis.barh(y, np.mean(values), xerr=error, height=0.68, color="#2f6db3", ecolor="#222222", capsize=2)
            axis.text(105, y, f"{np.mean(values):.1f}", va="center", fontsize=8.5)
        level = [v for (_, g), seeds in baselines.items() if g == group for v in seeds.values()]
        axis.axvline(np.mean(level), color="#222222", linestyle=":", label="baseline")
        axis.set_xlim(0, 100)
        axis.set_title(report.GROUPS.get(group, group.replace("_", " ")), loc="left", fontsize=9.5)
        axis.tick_params(length=0, labelsize=8.5)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    axes[0].legend(loc="lower right", frameon=False, fontsize=8.5)
    figure.supxlabel("mean over tasks, points of 100; bars: standard deviation over seeds", fontsize=8.5)
    report.entitle(figure, title)
    report.save(figure, path)


def write(
    root: Path,
    records: Sequence[Record],
    stages: Iterable[str],
    arms: Iterable[str],
    reference: str | None = None,
    title: str = "",
) -> str:
    """Writes table.txt and results.png; returns the table."""
    text = table(records, stages, arms, reference)
    report.save_text(root / "table.txt", text)
    if _known(records, arms):
        picture(root / "results.png", records, arms, title or root.name)
    return text
