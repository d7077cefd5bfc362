"""What a run's sampling shares come to: lines printed before training, with a warning where a rate is surprising."""

import textwrap
from collections import Counter
from collections.abc import Mapping

MANY_EPOCHS = 10.0
MANY_TIMES_UNIFORM = 10.0
_WIDTH = 120


def describe(shares: Mapping[str, float], types: Mapping[str, str], sizes: Mapping[str, int], draws: int) -> list[str]:
    """The expected share of every type, the most and the least drawn task, and at most one warning.

    Args:
      shares: task to its share of the examples drawn; they sum to 1.
      types: task to its type.
      sizes: task to its number of training examples.
      draws: examples that the run draws: steps times batch size, times the examples of a row.

    Returns:
      Lines of at most 120 columns, except the warning, which is one line. It tells tasks that are gone through 10
      times or more, tasks above ten times the uniform share, and tasks that are expected less than once.
    """
    by_type: Counter[str] = Counter()
    for task, share in shares.items():
        by_type[types[task]] += share
    told = ", ".join(f"{kind} {_percent(share)}" for kind, share in by_type.most_common())
    lines = textwrap.wrap(f"Shares by type: {told}.", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)

    def drawn(task: str) -> str:
        count = shares[task] * draws
        return f"{task} {_percent(shares[task])}, {_count(count)} draws, {count / sizes[task]:.2g} epochs"

    ordered = sorted(shares, key=lambda task: (-shares[task], task))
    most, least = ordered[0], ordered[-1]
    if shares[most] <= shares[least] * (1 + 1e-9):
        lines.append(
            f"Every task has the share {_percent(shares[most])}, {_count(shares[most] * draws)} of {draws:,} draws."
        )
    else:
        lines.append(f"Most drawn: {drawn(most)}. Least drawn: {drawn(least)}.")
    if warning := _surprises(shares, sizes, draws):
        lines.append(f"Warning: {'; '.join(warning)}.")
    return lines


def _surprises(shares: Mapping[str, float], sizes: Mapping[str, int], draws: int) -> list[str]:
    epochs = {task: share * draws / sizes[task] for task, share in shares.items()}
    told = []
    if repeated := [task for task in shares if epochs[task] >= MANY_EPOCHS]:
        worst = max(repeated, key=epochs.get)
        told.append(
            f"{_tasks(repeated)} gone through {MANY_EPOCHS:.0f} times or more in this run (most: {worst}, its "
            f"{sizes[worst]:,} examples {epochs[worst]:,.0f} times)"
        )
    if large := [task for task in shares if shares[task] * len(shares) > MANY_TIMES_UNIFORM]:
        worst = max(large, key=shares.get)
        told.append(
            f"{_tasks(large)} drawn over {MANY_TIMES_UNIFORM:.0f} times as often as at equal shares (most: {worst}, "
            f"{shares[worst] * len(shares):,.0f} times)"
        )
    if rare := [task for task in shares if shares[task] * draws < 1]:
        least = min(rare, key=shares.get)
        told.append(
            f"{_tasks(rare)} expected less than once in this run's {draws:,} draws (least: {least}, "
            f"{shares[least] * draws:.2g})"
        )
    return told


def _tasks(names: list[str]) -> str:
    return "1 task is" if len(names) == 1 else f"{len(names):,} tasks are"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.1f}%"


def _count(expected: float) -> str:
    return f"{expected:,.0f}" if expected >= 10 else f"{expected:.2g}"
