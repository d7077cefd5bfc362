"""What an experiment leaves behind: a table, its picture, and results.json."""

import dataclasses
import json
import os
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = {
    "unseen_types": "Unseen types",
    "unseen_tasks": "Unseen tasks of seen types",
    "seen_tasks": "Seen tasks, new examples",
}
_COLORS = {"unseen_types": "#c2553f", "unseen_tasks": "#2f6db3", "seen_tasks": "#8a94a0"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One task type of one group; every score is the mean over its tasks, in [0, 1].

    Attributes:
      group: `unseen_types`, `unseen_tasks`, `seen_tasks`, or a name of the experiment's own.
      type: the task type or category.
      score, baseline: the model, and the better of the best single answer and copying the input, chosen per task.
      tasks, examples: how many there are.
      families: the names of the tasks' families, so that one that spans types is counted once; or just their number.
      shuffled: the model's score when each task is given another task's instruction; None where it was not measured.
      more: further scores by column name, shown in the order given.
      labels: labelled examples of a task, on average, that the model was trained on; None where that is not known.
    """

    group: str
    type: str
    score: float
    baseline: float
    tasks: int
    families: int | Collection[str]
    shuffled: float | None = None
    examples: int = 0
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)
    labels: float | None = None

    @property
    def family_count(self) -> int:
        return self.families if isinstance(self.families, int) else len(set(self.families))


def _ordered_groups(rows: Sequence[Row]) -> list[str]:
    present = dict.fromkeys(row.group for row in rows)
    return [g for g in GROUPS if g in present] + [g for g in present if g not in GROUPS]


def _members(rows: Sequence[Row], group: str) -> list[Row]:
    """Rows of a group, best first."""
    return sorted((row for row in rows if row.group == group), key=lambda row: (-row.score, row.type))


def mean(rows: Sequence[Row], group: str, type: str = "mean") -> Row:
    """The mean over a group's tasks (not over its types) as a row of its own. A score that only some types have is
    averaged over those."""
    rows = [row for row in rows if row.group == group]

    def over_tasks(value: Callable[[Row], float | None]) -> float | None:
        known = [(value(row), row.tasks) for row in rows if value(row) is not None]
        return sum(v * n for v, n in known) / sum(n for _, n in known) if known else None

    columns = dict.fromkeys(name for row in rows for name in row.more)
    return Row(
        group=group,
        type=type,
        score=over_tasks(lambda row: row.score),
        baseline=over_tasks(lambda row: row.baseline),
        tasks=sum(row.tasks for row in rows),
        families=_union([row.families for row in rows]),
        shuffled=over_tasks(lambda row: row.shuffled),
        examples=sum(row.examples for row in rows),
        more={name: over_tasks(lambda row: row.more.get(name)) for name in columns},
        labels=over_tasks(lambda row: row.labels),
    )


def _union(families: Sequence[int | Collection[str]]) -> int | Collection[str]:
    if any(isinstance(f, int) for f in families):
        return sum(f if isinstance(f, int) else len(set(f)) for f in families)
    return frozenset().union(*families)


def table(rows: Sequence[Row], *, metric: str = "score", notes: Sequence[str] = ()) -> str:
    """The printed table: types by group, best first, scores in points of 100, and the mean over tasks of each group."""
    if not rows:
        raise ValueError("No rows to report.")
    columns = list(dict.fromkeys(name for row in rows for name in row.more))
    shuffled = any(row.shuffled is not None for row in rows)
    head = ["type", metric, "baseline", "gain"]
    head += ["shuffled"] if shuffled else []
    labelled = any(row.labels is not None for row in rows)
    head += [*columns, *(["labels"] if labelled else []), "tasks", "families", "examples"]

    def cells(row: Row) -> list[str]:
        scores = [row.score, row.baseline, row.score - row.baseline]
        scores += [row.shuffled] if shuffled else []
        texts = [_points(value) for value in [*scores, *(row.more.get(name) for name in columns)]]
        texts[2] = f"{100 * scores[2]:+.1f}"
        texts += ["-" if row.labels is None else f"{row.labels:,.0f}"] if labelled else []
        return [row.type, *texts, f"{row.tasks:,}", f"{row.family_count:,}", f"{row.examples:,}"]

    blocks = []
    for group in _ordered_groups(rows):
        members = _members(rows, group)
        blocks.append((_title(group), [cells(row) for row in members], cells(mean(rows, group))))
    lines = [head] + [line for _, body, total in blocks for line in [*body, total]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def text(line: list[str]) -> str:
        return "  ".join([f"  {line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:]))])

    out = [text(head)]
    for title, body, total in blocks:
        out += ["", title, *map(text, body), text(["-" * w for w in widths]), text(total)]
    legend = "Scores are points of 100, means over tasks."
    legend += " baseline: the better of the best single answer and the copied input."
    if shuffled:
        legend += " shuffled: the same model, each task given another task's instruction."
    if labelled:
        legend += " labels: labelled examples of a task that training was given."
    out += ["", *textwrap.wrap(legend, 100)]
    for note in [*_verdicts(rows), *notes]:
        out += textwrap.wrap(note, 100)
    return "\n".join(out) + "\n"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _title(group: str) -> str:
    return GROUPS.get(group, group.replace("_", " ").capitalize())


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """Says so where a group did not rise above its baseline."""
    means = [mean(rows, group) for group in _ordered_groups(rows)]
    return [
        f"{_title(m.group)}: NOT above the baseline ({100 * (m.score - m.baseline):+.1f} points)."
        for m in means
        if m.score <= m.baseline
    ]


def results(rows: Sequence[Row], *, metric: str = "score", **facts: Any) -> dict[str, Any]:
    """What results.json holds: per group the means over tasks and the types; then the facts of the run, such as
    `seeds`, `minutes` and `train_tasks`."""
    summary: dict[str, Any] = {}
    for group in _ordered_groups(rows):
        whole = _as_dict(mean(rows, group))
        whole["types"] = {row.type: _as_dict(row) for row in _members(rows, group)}
        summary[group] = whole
    return {**summary, "metric": metric, **facts}


def _as_dict(row: Row) -> dict[str, Any]:
    numbers = {"score": row.score, "baseline": row.baseline, "shuffled": row.shuffled, **row.more, "labels": row.labels}
    counts = {"tasks": row.tasks, "families": row.family_count, "examples": row.examples}
    return {**{k: round(v, 6) for k, v in numbers.items() if v is not None}, **counts}


def picture(path: Path, rows: Sequence[Row], *, title: str, metric: str = "score") -> None:
    """Saves a PNG: a bar per type, grouped and sorted as in the table, with marks for baseline and shuffled control."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(g, [mean(rows, g, "mean over tasks"), *_members(rows, g)]) for g in _ordered_groups(rows)]
    heights = [len(members) + 1.9 for _, members in groups]
    labels = [_label(row) for _, members in groups for row in members]
    heading = textwrap.wrap(title, 100)
    # Inches: a margin of fixed size around axes that grow with the number of rows and the longest label.
    head, foot, row_height = 0.45 + 0.19 * len(heading), 0.55, 0.27
    width, height = 9.0, head + foot + row_height * sum(heights)
    left = min(0.45, (0.4 + 0.068 * max(map(len, labels))) / width)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    above = height - head
    for i, (group, members) in enumerate(groups):
        above -= row_height * 1.9
        body = row_height * len(members)
        axis = figure.add_axes((left, (above - body + row_height * 0.4) / height, 0.86 - left, body / height))
        above -= body
        _draw_group(axis, group, members, columns=i == 0)
        axis.tick_params(labelbottom=i == len(groups) - 1)
    axis.set_xlabel(f"{metric.replace('_', ' ')}, points of 100; in brackets: number of tasks", fontsize=8.5)

    figure.text(0.02, 1 - 0.13 / height, "\n".join(heading), fontsize=10.5, fontweight="bold", va="top")
    place = {"loc": "upper left", "bbox_to_anchor": (0.01, 1 - (head - 0.26) / height)}
    keys = _keys(any(row.shuffled is not None for row in rows))
    figure.legend(handles=keys, **place, ncols=3, frameon=False, fontsize=8.5, borderaxespad=0)
    save(figure, path)


def _label(row: Row) -> str:
    return f"{row.type.replace('_', ' ')}  ({row.tasks:,})"


_INK = "#222222"
_MARK = {"marker": "o", "linestyle": "", "color": "white", "markeredgecolor": _INK, "markersize": 5}


def _keys(shuffled: bool) -> list[Any]:
    """The legend's entries."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [Patch(color="#8a94a0", label="model")]
    keys.append(Line2D([], [], color=_INK, linewidth=2, label="baseline: one answer or copy"))
    if shuffled:
        keys.append(Line2D([], [], **_MARK, label="control: shuffled instructions"))
    return keys


def _draw_group(axis: Any, group: str, members: Sequence[Row], *, columns: bool) -> None:
    """Draws the rows of one group, the first of them being its mean; `columns` adds the heading of the numbers."""
    from matplotlib.colors import to_rgb

    color = _COLORS.get(group, "#5b8c5a")
    pale = [0.45 + 0.55 * channel for channel in to_rgb(color)]
    number = {"va": "center", "ha": "right", "fontsize": 8.5}
    for y, row in enumerate(members):
        axis.barh(y, 100 * row.score, height=0.68, color=pale if y else color)
        axis.plot([100 * row.baseline] * 2, [y - 0.42, y + 0.42], color=_INK, linewidth=2, solid_capstyle="butt")
        if row.shuffled is not None:
            axis.plot(100 * row.shuffled, y, **_MARK)
        number["fontweight"] = "normal" if y else "bold"
        axis.text(107, y, f"{100 * row.score:.0f}", **number)
        axis.text(116, y, f"{100 * (row.score - row.baseline):+.0f}", **number, color=color)
    if columns:
        axis.text(107, -0.95, "score", ha="right", fontsize=8.5)
        axis.text(116, -0.95, "gain", ha="right", fontsize=8.5, color=color)
    axis.set_yticks(range(len(members)), map(_label, members), fontsize=8.5)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set_ylim(len(members) - 0.5, -0.6)
    axis.set_xlim(0, 100)
    axis.set_xticks(range(0, 101, 20))
    counts = f"{members[0].tasks:,} tasks, {members[0].family_count:,} families"
    axis.set_title(f"{_title(group)}: {counts}", loc="left", fontsize=10, color=color)
    axis.tick_params(length=0, labelsize=8.5)
    axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#bbbbbb")


def write(
    directory: str | os.PathLike,
    rows: Sequence[Row],
    *,
    title: str,
    metric: str = "score",
    notes: Sequence[str] = (),
    **facts: Any,
) -> str:
    """Writes table.txt, results.png and results.json into `directory`, each whole or not at all. Returns the table.

    Args:
      title: the picture's heading: the command and its number of steps.
      metric: what `score` is, for the heading of its column and axis.
      notes: sentences printed under the table.
      facts: further entries of results.json, such as `seeds`, `minutes` and `train_tasks`.
    """
    folder = Path(directory)
    text = table(rows, metric=metric, notes=notes)
    data = json.dumps(results(rows, metric=metric, **facts), indent=2) + "\n"
    save_text(folder / "table.txt", text)
    picture(folder / "results.png", rows, title=title, metric=metric)
    save_text(folder / "results.json", data)  # last: a run with it counts as finished
    return text


def align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join([f"{line[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:]))]).rstrip()
        for line in lines
    ]


def spread(values: Sequence[float], digits: int = 1, signed: bool = False) -> str:
    """Mean ± standard deviation over seeds; of one seed the value alone."""
    mean = f"{np.mean(values):{'+' if signed else ''}.{digits}f}"
    return mean + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def half_interval(values: Sequence[float]) -> float:
    """Half the 95% t interval of the mean of independent values; NaN of a single one."""
    import scipy.special

    count = len(values)
    if count < 2:
        return float("nan")
    return float(scipy.special.stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count))


def chart(title: str, grid: str = "y") -> tuple[Any, Any]:
    """(figure, axis) of a picture of lines. grid: of which axis lines are drawn, or 'both'."""
    figure, (axis,) = charts([title], 1, (9, 5.2), grid)
    return figure, axis


def charts(titles: Sequence[str], columns: int, size: tuple[float, float], grid: str = "y") -> tuple[Any, list[Any]]:
    """(figure, axes) of pictures of lines side by side, in rows of `columns`, with one y axis for all; size: inches of
    each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(titles) // columns)
    whole = (columns * size[0], rows * size[1])
    figure = Figure(figsize=whole, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for axis, title in zip(axes, titles):
        axis.grid(axis=grid, color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def entitle(figure: Any, title: str) -> None:
    """Puts a title over a whole figure, in as many lines as its width needs."""
    width = int(11 * figure.get_figwidth())
    lines = textwrap.fill(title, width, break_on_hyphens=False, break_long_words=False)
    figure.suptitle(lines, x=0.01, ha="left", fontsize=10.5)


def save(figure: Any, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, whole or not at all."""
    _replace(Path(path), lambda partial: figure.savefig(partial, format="png"))


def save_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, whole or not at all."""
    _replace(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))


def save_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a .npy file, whole or not at all."""

    def write_to(partial: Path) -> None:
        with partial.open("wb") as f:  # given a name, np.save would add .npy to it
            np.save(f, array)

    _replace(Path(path), write_to)


def _replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Has `write_to` write a file beside `path`, then moves it there, so that `path` is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_to(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
