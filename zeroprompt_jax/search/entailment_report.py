"""The entailment study's table, and the curve of accuracy against trained parameters."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zeroprompt_jax.evaluation import report

Record = Mapping[str, Any]


def over_splits(records: Iterable[Record], key: str = "score") -> list[float]:
    """A value's mean over tasks, one for each split, in points of 100."""
    found: dict[int, list[float]] = {}
    for record in records:
        found.setdefault(record["seed"], []).append(100 * record[key])
    return [float(np.mean(values)) for _, values in sorted(found.items())]


def table(records: Sequence[Record], arms: Iterable[str]) -> str:
    """The printed table: arms by tasks, test accuracy as mean ± standard deviation over splits."""
    of = lambda **wanted: [r for r in records if all(r[key] == value for key, value in wanted.items())]
    tasks = list(dict.fromkeys(r["task"] for r in records))
    last = ["mean", "train", "positive", "constant"]
    names = [task.split("/")[-1] for task in tasks]
    lines = [["arm", "from", "trained/task", "in its head", "% of encoder", *names, *last]]
    for arm in [arm for arm in arms if of(arm=arm)]:
        mine = of(arm=arm)
        few, most = (pick(r["trained"] for r in mine) for pick in (min, max))
        lines.append(
            [
                arm,
                mine[0]["start"] or "-",
                f"{few:,}" + (f" to {most:,}" if most > few else ""),
                f"{mine[0]['head']:,}",
                f"{_share(mine):.3g}",
                *(report.spread(over_splits(of(arm=arm, task=task))) for task in tasks),
                report.spread(over_splits(mine)),
                *(f"{np.mean(over_splits(mine, key)):.1f}" for key in ("train", "positive")),
                f"{max(np.mean(over_splits(of(arm=arm, task=task), 'constant')) for task in tasks):.1f}",
            ]
        )
    majority = [np.mean([100 * r["baseline"] for r in of(task=task)]) for task in tasks]
    shown = [f"{value:.1f}" for value in (*majority, np.mean(majority))]
    lines.append(["majority", "-", "0", "0", "0", *shown, "-", "-", "-"])
    splits = len({r["seed"] for r in records})
    notes = (
        f"Test accuracy, points of 100; ± is the standard deviation over {splits} splits. Dev examples chose rates and steps.",
        "train: accuracy on the examples trained on. positive: test examples told to be of the positive class, in %.",
        "constant: test examples with the most frequent answer, in %, of the task where these are most.",
        *(
            f"{name}: of '{option}' there were only {have} dev examples."
            for name, task in zip(names, tasks)
            for option, have in of(task=task)[0]["short"].items()
        ),
    )
    return "\n".join([*report.align(lines), "", *notes]) + "\n"


def _share(records: Sequence[Record]) -> float:
    """What a task trains, the mean over tasks, in % of the encoder."""
    return 100 * float(np.mean([r["share"] for r in records]))


def picture(path: Path, records: Sequence[Record], arms: Iterable[str], title: str) -> None:
    """Accuracy against the share of the encoder's parameters that trains, a numbered point per arm, bars being the standard
    deviation over splits, a colour for each encoder that arms start from."""
    from matplotlib import colormaps

    figure, axis = report.chart(title)
    starts = list(dict.fromkeys(r["start"] for r in records))
    color = {start: colormaps["tab10"](i % 10) for i, start in enumerate(starts)}
    measured = {arm: mine for arm in arms if (mine := [r for r in records if r["arm"] == arm])}
    for number, (arm, mine) in enumerate(sorted(measured.items(), key=lambda item: _share(item[1])), 1):
        values, start = over_splits(mine), mine[0]["start"]
        place, height = _share(mine), float(np.mean(values))
        error = np.std(values, ddof=1) if len(values) > 1 else 0
        axis.errorbar([place], [height], [error], color=color[start], elinewidth=0.9, capsize=2)
        axis.scatter([place], [height], s=110, color="white", edgecolors=[color[start]], zorder=3)
        axis.annotate(str(number), (place, height), ha="center", va="center", fontsize=7, zorder=4)
        # Arms lie too close to be named beside their points.
        axis.plot([], [], linestyle="", label=f"{number}  {arm}: {place:.3g} %, {report.spread(values)}")
    for start in starts:
        axis.plot([], [], color=color[start], marker="o", linestyle="", label=f"from {start or 'the beginning'}")
    majority = np.mean([100 * r["baseline"] for r in records])
    axis.axhline(majority, color="#222222", linestyle=":", label=f"majority class: {majority:.1f}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handlelength=1)
    axis.set_xscale("log")
    axis.set_xlabel("trained parameters of a task, % of the encoder's")
    axis.set_ylabel("mean test accuracy, points of 100")
    report.save(figure, path)


def write(root: Path, records: Sequence[Record], arms: Iterable[str], title: str) -> str:
    """Writes table.txt and results.png; returns the table."""
    text = table(records, arms)
    report.save_text(root / "table.txt", text)
    picture(root / "results.png", records, list(arms), title or root.name)
    return text
