"""Answers a file of inputs, or a registered task, with a run's model: JSONL out, in order, resumable."""

import argparse

from zeroprompt_jax.cli import runs
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    runs.add_arguments(parser)
    parser.add_argument(
        "--input",
        help='.jsonl, lines such as {"input": ": a b", "task": "films", "options": ["good", "bad"]}, or .tsv with a header '
        "line of these names and options written good|bad. task and options may be left out; without a task the input "
        "is read as it stands, so it must hold its instruction",
    )
    parser.add_argument("--task", help="task of rows that name none; without --input, the task whose examples are read")
    parser.add_argument("--split", default="test", help="which examples of --task (default: test)")
    parser.add_argument(
        "--task_file",
        action="append",
        default=[],
        help="a trained task's file (zeroprompt export); may be repeated. Of the run only the backbone answers, with these "
        "tasks, in one batch",
    )
    parser.add_argument(
        "--module_store",
        help="folder for what a method that reads instructions makes of them, one file per task; later runs of the same "
        "model read it there",
    )
    parser.add_argument(
        "--module_capacity",
        type=int,
        help="tasks whose modules such a method keeps on the device at once, at least the distinct ones of a batch (default: "
        "as many as there are, up to a batch's rows)",
    )
    parser.add_argument(
        "--module_dtype", help="that they are kept in: float32 or bfloat16 (default: the model's, which loses nothing)"
    )
    parser.add_argument("--output", required=True, help="JSONL file; what it already answers is not answered again")


def run(args: argparse.Namespace) -> int:
    if not args.input and not args.task:
        raise UserError("zeroprompt infer needs --input FILE or --task NAME.")
    keeping = {name: getattr(args, name) for name in ("module_store", "module_capacity", "module_dtype")}
    if args.task_file and (given := [name for name, value in keeping.items() if value is not None]):
        raise UserError(f"--{given[0]} is for what a run's own method makes; tasks' files bring theirs: leave one out.")
    settings = runs.load(args)
    from zeroprompt_jax import answering, export

    runs.begin()
    made = export.predictor(settings, args.task_file, args.checkpoint) if args.task_file else None
    count = answering.infer_run(
        settings, args.output, args.input, args.task, args.split, args.module, args.checkpoint, made, **keeping
    )
    print(f"{count:,} row{'s' * (count != 1)} answered; {args.output}")
    return 0
