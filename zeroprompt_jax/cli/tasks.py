"""List registered tasks and mixtures, the real sampling proportions of a mixture, what it has seen of another, and rendered
examples of a task."""

import argparse
import itertools
import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from zeroprompt_jax.data import cards, seqio_bridge
from zeroprompt_jax.data.task_modules import import_module, packaged
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.tasks import p3_names, tfds_source

DIRECTORY_VARIABLE = "ZEROPROMPT_NATURAL_INSTRUCTIONS"
POOL_TITLES = {"train": "train", "held_out_task": "held-out tasks", "held_out_type": "held-out types"}
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--module",
        action="append",
        metavar="MODULE",
        help="module that registers tasks; may be repeated (default: every module of zeroprompt_jax.tasks)",
    )
    parser.add_argument(
        "--natural_instructions",
        metavar="DIR",
        help=f"a checkout of Natural Instructions, to list its tasks too (default: ${DIRECTORY_VARIABLE})",
    )
    parser.add_argument(
        "--p3", metavar="DIR", help=f"P3 in its own layout, for its examples (default: ${p3_names.ENVIRONMENT})"
    )
    parser.add_argument(
        "--datasets",
        metavar="DIR",
        help=f"NAME/{{train,validation}}.jsonl of public data sets, for their examples (default: ${tfds_source.ENVIRONMENT})",
    )
    parser.add_argument("--all", action="store_true", help="the name, type, pool and metrics of every task, one a line")
    parser.add_argument("--type", metavar="TYPE", help="the names of all tasks of this type")
    parser.add_argument("--show", metavar="TASK", help="the card of this task and some examples as the model sees them")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="how many examples --show renders (3)")
    parser.add_argument("--mixture", metavar="NAME", help="how often each task of this mixture is drawn")
    parser.add_argument(
        "--against", metavar="NAME", help="for --mixture: tasks of this test mixture whose data set it has seen"
    )
    parser.add_argument("--policy", metavar="POLICY", help="rates for --mixture: uniform, proportional or temperature")
    parser.add_argument("--cap", type=int, metavar="K", help="artificial size limit of a task, for --policy")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="for --policy=temperature (1.0)")


def run(args: argparse.Namespace) -> int:
    given = {p3_names.ENVIRONMENT: args.p3, tfds_source.ENVIRONMENT: args.datasets}
    load_modules(args.module, given | {DIRECTORY_VARIABLE: args.natural_instructions})
    if args.examples < 0:
        raise UserError(f"--examples={args.examples}: give zero or more.")
    if args.show:
        lines = show(args.show, args.examples)
    elif args.against:
        lines = leaks(args.mixture, args.against)
    elif args.mixture:
        lines = proportions(args.mixture, args.policy, args.cap, args.temperature)
    elif args.type:
        lines = of_type(args.type)
    elif args.all:
        lines = every_task()
    else:
        lines = listing()
    for line in lines:
        print(line)
    return 0


def load_modules(modules: Sequence[str] | None, directories: Mapping[str, str | None]) -> None:
    """Imports the modules that register tasks."""
    # Read by the modules when they are imported, as the environment variables of a user would be.
    os.environ.update({variable: directory for variable, directory in directories.items() if directory})
    for module in modules or packaged():
        import_module(module)


def listing() -> Iterable[str]:
    """Counts per type and pool, and the mixtures."""
    all_cards = [cards.card(name) for name in cards.task_names()]
    if not all_cards:
        yield "No task is registered."
        return
    types = sorted({card.type for card in all_cards})
    yield (
        f"{len(all_cards):,} tasks of {len(types)} types in {_count(c.family for c in all_cards):,} families; "
        f"{len(cards.mixture_names())} mixtures"
    )
    yield ""
    pools = [pool for pool in POOL_TITLES if any(card.pool == pool for card in all_cards)]
    rows = []
    for kind in types:
        own = [card for card in all_cards if card.type == kind]
        per_pool = Counter(card.pool for card in own)
        wordings = [len(card.instructions) for card in own]
        spread = f"{min(wordings)}-{max(wordings)}" if min(wordings) < max(wordings) else str(wordings[0])
        counts = [f"{per_pool[pool]:,}" if per_pool[pool] else "-" for pool in pools]
        rows.append([kind, *counts, f"{_count(card.family for card in own):,}", spread, ", ".join(_metrics(own))])
    totals = [f"{sum(card.pool == pool for card in all_cards):,}" for pool in pools]
    rows.append(["all", *totals, f"{_count(card.family for card in all_cards):,}", "", ""])
    heads = ["type", *(POOL_TITLES[pool] for pool in pools), "families", "wordings", "metrics"]
    yield from _columns(heads, rows, text_columns=(0, len(heads) - 1), rule_before_last=True)
    if cards.mixture_names():
        yield ""
        rows = []
        for name in cards.mixture_names():
            own = [cards.card(task) for task in cards.mixture(name)]
            rows.append([name, f"{len(own):,}", str(_count(c.type for c in own)), f"{_count(c.family for c in own):,}"])
        yield from _columns(["mixture", "tasks", "types", "families"], rows)
    yield ""
    yield f"More: zeroprompt tasks --type={shlex.quote(types[0])}, --show={all_cards[0].name}, --mixture=NAME"


def of_type(kind: str) -> Iterable[str]:
    """The tasks of one type, with pool and one wording."""
    own = [card for card in map(cards.card, cards.task_names()) if card.type == kind]
    if not own:
        raise unknown("task type", kind, {cards.card(name).type for name in cards.task_names()})
    yield f"{kind}: {len(own):,} tasks in {_count(card.family for card in own):,} families"
    yield ""
    rows = [[card.name, POOL_TITLES[card.pool], textwrap.shorten(card.instructions[0], 60)] for card in own]
    yield from _columns(["task", "pool", "first wording"], rows, text_columns=(0, 1, 2))


def every_task() -> Iterable[str]:
    """All tasks with type, pool and metrics, in the order of their registration."""
    own = [cards.card(name) for name in cards.task_names()]
    rows = [[card.name, card.type, POOL_TITLES[card.pool], ", ".join(card.metrics)] for card in own]
    yield from _columns(["task", "type", "pool", "metrics"], rows, text_columns=(0, 1, 2, 3))


def leaks(train: str | None, test: str) -> Iterable[str]:
    """Which tasks of a test mixture are of a data set that the training mixture has seen."""
    if train is None:
        raise UserError(f"--against={test} needs the training mixture too: give --mixture=NAME.")
    from zeroprompt_jax.tasks import leakage

    tested = cards.mixture(test)
    found = leakage.find(cards.mixture(train), tested)
    seen = _count(task for leak in found for task in leak.tested)
    yield f"{train} has seen the data sets of {seen:,} of the {len(tested):,} tasks of {test}"
    if found:
        yield ""
        rows = [[_and_more(leak.tested), _and_more(leak.trained), leak.why] for leak in found]
        yield from _columns(["task", "seen by", "why"], rows, text_columns=(0, 1, 2))


def _and_more(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def show(name: str, count: int) -> Iterable[str]:
    """A task's card, and examples rendered as the model sees them: instruction and input, then the target."""
    card, source = cards.card(name), cards.source(name)
    yield f"{card.name}"
    facts = {"type": card.type, "domain": card.domain, "family": card.family, "pool": POOL_TITLES[card.pool]}
    facts |= {"splits": ", ".join(source.splits), "metrics": ", ".join(card.metrics)}
    if card.options:
        facts["options"] = "; ".join(card.options)
    if source.origin:
        facts["rows"] = source.origin
    for key, value in facts.items():
        yield from _wrapped(f"  {key:<9}", value)
    for title, wordings in (("wordings", card.instructions), ("held-out wordings", card.held_out_instructions)):
        if wordings:
            yield f"  {title}"
            for wording in wordings:
                yield from _wrapped("    - ", wording)
    for i, example in enumerate(itertools.islice(source.examples(source.splits[0]), count)):
        rendered = cards.render(card, example)
        yield ""
        yield f"{source.splits[0]} example {i}"
        read = (card.instructions[i % len(card.instructions)], rendered.instruction, rendered.input)
        yield from _wrapped("  input   ", " ".join(part for part in read if part))
        yield from _wrapped("  target  ", rendered.target)
        if rendered.references != (rendered.target,):
            yield from _wrapped("  also    ", " | ".join(r for r in rendered.references if r != rendered.target))
        if rendered.options and rendered.options != card.options:
            yield from _wrapped("  options ", "; ".join(rendered.options))


def proportions(name: str, policy: str | None, cap: int | None, temperature: float) -> Iterable[str]:
    """What share of the training examples each type and each task of a mixture gives."""
    shares, how = _shares(name, policy, cap, temperature)
    by_type: Counter[str] = Counter()
    for task, share in shares.items():
        by_type[seqio_bridge.type_of(task)] += share
    tasks = Counter(seqio_bridge.type_of(task) for task in shares)
    yield f"{name}: {len(shares):,} tasks of {len(by_type)} types, {how}"
    yield ""
    rows = [[t, f"{tasks[t]:,}", f"{100 * share:.2f}%", f"{1e4 * share:,.0f}"] for t, share in by_type.most_common()]
    yield from _columns(["type", "tasks", "share", "of 10,000 examples"], rows)
    yield ""
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    if ordered[0][1] == ordered[-1][1]:
        share = ordered[0][1]
        yield f"Every task has the same share: {100 * share:.4f}%, {1e4 * share:.1f} of 10,000 examples."
        return
    ends = ordered if len(ordered) <= 12 else [*ordered[:5], None, *ordered[-5:]]
    rows = [
        [item[0], f"{100 * item[1]:.4f}%", f"{1e4 * item[1]:,.1f}"] if item else ["...", "", ""] for item in ends
    ]
    yield from _columns(["task, most often drawn first", "share", "of 10,000 examples"], rows)


def _shares(name: str, policy: str | None, cap: int | None, temperature: float) -> tuple[Mapping[str, float], str]:
    """The tasks' shares, and how they came about. Without a policy: the rates the mixture was registered with."""
    from zeroprompt_jax.data.mixture import rates
    from zeroprompt_jax.data.tokenise import find
    from zeroprompt_jax.data.vocabulary import load_vocabulary

    registered = seqio_bridge.find_mixture(name)
    if policy is None:
        how = "equal rates" if len(set(registered.values())) == 1 else "at the rates it was registered with"
        return rates(dict.fromkeys(registered, 1), "explicit", explicit=registered), how
    sizes = dict.fromkeys(registered, 1)
    if policy != "uniform":
        # Only these look at sizes, and counting makes every example.
        sources = {task: find(task, load_vocabulary("bytes"))[1] for task in registered}
        sizes = {task: sum(1 for _ in source.examples("train")) for task, source in sources.items()}
    how = f"policy {policy}"
    how += f", at most {cap:,} examples each" if cap is not None else ""
    how += f", temperature {temperature:g}" if policy == "temperature" else ""
    return rates(sizes, policy, cap=cap, temperature=temperature, explicit=registered), how


def _count(values: Iterable[str]) -> int:
    return len(set(values))


def _metrics(own: Iterable[cards.TaskCard]) -> list[str]:
    return sorted({metric for card in own for metric in card.metrics})


def _wrapped(lead: str, text: str) -> Iterable[str]:
    """`text` after `lead`, wrapped and indented under itself. Line breaks of the text stay."""
    indent = " " * len(lead)
    for i, line in enumerate(str(text).split("\n") or [""]):
        first = lead if i == 0 else indent
        yield from textwrap.wrap(line, WIDTH, initial_indent=first, subsequent_indent=indent) or [first.rstrip()]


def _columns(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: Sequence[int] = (0,),
    rule_before_last: bool = False,
) -> Iterable[str]:
    """Aligned columns: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        aligned = (f"{c:<{w}}" if i in text_columns else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths)))
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    yield line(heads)
    yield rule
    for i, row in enumerate(rows):
        if rule_before_last and i == len(rows) - 1:
            yield rule
        yield line(row)
