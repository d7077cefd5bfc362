"""The adaptation study's table and picture."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.evaluation import report

Record = Mapping[str, Any]
Cells = dict[tuple[str, int | None], list[float]]


def by_arm(records: Iterable[Record], key: str = "score") -> Cells:
    """(arm, shots) to the mean over tasks, one value per seed, in points of 100."""
    cells: dict = collections.defaultdict(lambda: collections.defaultdict(list))
    for r in records:
        cells[r["arm"], r["shots"]][r["seed"]].append(100 * r[key])
    return {place: [float(np.mean(v)) for _, v in sorted(seeds.items())] for place, seeds in cells.items()}


def table(records: Sequence[Record], stages: Iterable[str], arms: Iterable[str]) -> str:
    """The printed table: arms by numbers of examples, mean ± standard deviation over seeds, then the stages."""
    cells, baselines = by_arm(records), by_arm(records, "baseline")
    known = {arm for arm, _ in cells}
    arms, stages = ([name for name in names if name in known] for names in (arms, stages))
    shots = sorted({k for _, k in cells if k is not None})
    trained = {r["arm"]: r["trained"] for r in records}
    head = ["target tasks", "trained/task", *(f"{k} examples" for k in shots)]
    cell = lambda place: report.spread(cells[place]) if place in cells else "-"
    lines = [[a, f"{trained[a]:,.0f}", *(cell((a, k)) for k in shots)] for a in arms]
    if arms:
        lines.append(["baseline", "0", *(f"{np.mean(baselines[arms[0], k]):.1f}" for k in shots)])
    out = report.align([head, *lines]) if arms else []
    if stages:
        own = [["source tasks", "trained/task", "all examples"]]
        own += [[s, f"{trained[s]:,.0f}", report.spread(cells[s, None])] for s in stages]
        own += [["baseline", "0", f"{np.mean(baselines[stages[0], None]):.1f}"]]
        out += ["", *report.align(own)] if out else report.align(own)
    seeds = len({r["seed"] for r in records})
    targets = len({r["task"] for r in records if r["shots"] is not None})
    sources = len({r["task"] for r in records if r["shots"] is None})
    out += [
        "",
        f"Points of 100, means over {targets} target and {sources} source tasks; ± is the standard deviation over {seeds} "
        f"seeds." if seeds > 1 else f"Points of 100, means over {targets} target and {sources} source tasks; one seed.",
        "baseline: the better of the best single answer and the copied input.",
    ]
    return "\n".join(out) + "\n"


def picture(path: Path, records: Sequence[Record], arms: Iterable[str], title: str) -> None:
    """Score against the number of examples, a line per arm, bars being the standard deviation over seeds."""
    cells, baselines = by_arm(records), by_arm(records, "baseline")
    shots = sorted({k for _, k in cells if k is not None})
    arms = [arm for arm in arms if all((arm, k) in cells for k in shots)]  # the others are still at work
    if not arms:
        return
    figure, axis = report.chart(title)
    colors = _colors(len(arms))
    for i, (arm, color) in enumerate(zip(arms, colors)):
        values = [cells[arm, k] for k in shots]
        # Side by side, or error bars would hide each other.
        x = np.arange(len(shots)) + 0.012 * (i - len(arms) / 2)
        errors = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.6, "elinewidth": 0.9}
        axis.errorbar(x, [np.mean(v) for v in values], errors, **style, label=arm)
    level = [np.mean(baselines[arms[0], k]) for k in shots]
    axis.plot(np.arange(len(shots)), level, color="#222222", linestyle=":", label="baseline")
    order = sorted(arms, key=lambda arm: -np.mean(cells[arm, shots[-1]]))
    handles = dict(zip(axis.get_legend_handles_labels()[1], axis.get_legend_handles_labels()[0]))
    names = [*order, "baseline"]
    axis.legend([handles[n] for n in names], names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axis.set_xticks(range(len(shots)), [f"{k}" for k in shots])
    axis.set_xlabel("training examples of a target task")
    axis.set_ylabel("mean score over target tasks, points of 100")
    axis.set_ylim(0, 100)
    report.save(figure, path)


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20" if count > 10 else "tab10"](i) for i in range(count)]


def write(root: Path, records: Sequence[Record], stages: Iterable[str], arms: Iterable[str], title: str) -> str:
    """Writes table.txt and results.png; returns the table."""
    text = table(records, stages, arms)
    report.save_text(root / "table.txt", text)
    if any(r["shots"] is not None for r in records):
        picture(root / "results.png", records, arms, title or root.name)
    return text
