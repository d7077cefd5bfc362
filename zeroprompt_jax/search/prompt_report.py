"""The prompt search's table and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.evaluation import report

Record = Mapping[str, Any]
KINDS = {"first": "first wording", "manual": "best manual", "found": "found"}


def means(records: Sequence[Record], kind: str, split: str) -> float:
    """Mean accuracy over tasks in points of 100."""
    return 100 * float(np.mean([r[kind][split] for r in records]))


def table(records: Sequence[Record]) -> str:
    """A line per task: accuracy on the development set / on the test examples, of three wordings; then the means, what
    it cost, and what was found."""
    pair = lambda r, kind: f"{100 * r[kind]['dev']:.1f} / {100 * r[kind]['test']:.1f}"
    lines = [["task", *(f"{name}, dev / test" for name in KINDS.values()), "chance", "wordings"]]
    for r in records:
        lines.append(
            [r["task"], *(pair(r, kind) for kind in KINDS), f"{100 * r['chance']['test']:.1f}", f"{r['wordings']}"]
        )
    mean = [f"{means(records, kind, 'dev'):.1f} / {means(records, kind, 'test'):.1f}" for kind in KINDS]
    chance = 100 * np.mean([r["chance"]["test"] for r in records])
    lines.append(
        [f"mean of {len(records)}", *mean, f"{chance:.1f}", f"{np.mean([r['wordings'] for r in records]):.0f}"]
    )
    rise = lambda kind: ", ".join(
        f"{means(records, 'found', split) - means(records, kind, split):+.1f} {split}" for split in ("dev", "test")
    )
    lost = sum(r["found"]["dev"] < r["manual"]["dev"] for r in records)
    labels = {r["labels"] for r in records}
    out = [
        *report.align(lines),
        "",
        f"Accuracy in points of 100. Found against first: {rise('first')}; against the best manual: {rise('manual')}; "
        f"below the best manual wording on dev: {lost} of {len(records)} tasks.",
        f"Selected by {' and '.join(sorted({r['fitness'] for r in records}))}, labels used per task: "
        f"{' to '.join(str(n) for n in sorted({min(labels), max(labels)}))}.",
        f"Scoring: {sum(r['wordings'] * r['examples'] for r in records):,} prompts, "
        f"{sum(r['tflop'] for r in records):.3g} TFLOP. Searching, new wordings included: "
        f"{sum(r['minutes'] for r in records):.1f} minutes.",
        "",
    ]
    for r in records:
        out.append(f"{r['task']}\n  first  {r['first']['wording']}\n  found  {r['found']['wording']}")
    return "\n".join(out) + "\n"


def picture(path: Path, records: Sequence[Record], title: str) -> None:
    """Left: the archive by generation, mean over tasks. Right: each task's test accuracy, first wording to found."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.25 * max(len(records), 10)), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if all(r["fitness"] != "MeanLogit" for r in records):
        unit, scale = "points of 100", 100
    else:
        unit, scale = "nats", 1
    length = min(len(r["progress"]) for r in records)
    for key, name, style in (
        ("best", "archive best", "-"),
        ("top", "archive top-K mean", "--"),
        ("own", "generation best", ":"),
    ):
        # A generation without new wordings keeps what it had.
        rows = [_carried([g[key] for g in r["progress"][:length]]) for r in records]
        left.plot(range(length), scale * np.mean(rows, axis=0), style, marker="o", markersize=4, label=name)
    left.set_xlabel("generation")
    left.set_ylabel(f"fitness, mean over {len(records)} tasks, {unit}")
    left.set_xticks(range(length))
    left.legend(frameon=False)
    order = sorted(records, key=lambda r: r["first"]["test"])
    for y, r in enumerate(order):
        right.plot([100 * r["first"]["test"], 100 * r["found"]["test"]], [y, y], color="#bbbbbb", zorder=1)
    for kind, color in (("first", "#999999"), ("manual", "#1f77b4"), ("found", "#d62728")):
        right.scatter(
            [100 * r[kind]["test"] for r in order], range(len(order)), s=22, color=color, label=KINDS[kind], zorder=2
        )
    right.set_yticks(range(len(order)), [r["task"] for r in order], fontsize=7)
    right.set_xlabel("test accuracy, points of 100")
    right.set_xlim(-2, 102)
    right.legend(frameon=False, loc="best", fontsize=8)
    for axis in (left, right):
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    report.entitle(figure, title)
    report.save(figure, path)


def _carried(values: Sequence[float | None]) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(out[-1] if value is None else value)
    return out


def write(root: Path, records: Sequence[Record], title: str) -> str:
    """Writes table.txt and results.png; returns the table."""
    text = table(records)
    report.save_text(root / "table.txt", text)
    picture(root / "results.png", records, title or root.name)
    return text
