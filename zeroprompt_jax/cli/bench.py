"""Times this machine: training steps of a model, or the training stream of many cached tasks beside stock SeqIO's."""

import argparse
import json
import sys

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=["train", "data"], help="train: full and prompt-only training side by side; data: the stream"
    )
    config.add_arguments(parser)
    parser.add_argument("--batch", type=int, help="rows per batch (train: 8, data: 64)")
    parser.add_argument("--inputs", type=int, default=128, help="encoder tokens")
    parser.add_argument("--targets", type=int, default=32, help="decoder tokens")
    parser.add_argument("--prompt", type=int, default=100, help="train: soft prompt length")
    parser.add_argument("--steps", type=int, default=5, help="train: timed steps; the median counts")
    parser.add_argument("--tasks", type=int, default=1000, help="data: number of cached tasks")
    parser.add_argument("--versus_seqio", action="store_true", help="data: measure stock SeqIO on the same tasks too")
    parser.add_argument("--seqio_tasks", type=int, help="data: only on so many (1,000 take it ten minutes)")


def run(args: argparse.Namespace) -> int:
    if args.seqio_tasks is not None and not args.versus_seqio:
        raise UserError("zeroprompt bench --seqio_tasks needs --versus_seqio.")
    for record in _train(args) if args.what == "train" else _data(args):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
    return 0


def _train(args: argparse.Namespace):
    config.load(args.gin_file or ["models/t5_1_1_small.gin"], args.gin_bindings)
    from zeroprompt_jax.training import benchmark

    model = config.make("T5Config")
    return benchmark.compare(model, args.batch or 8, args.inputs, args.targets, args.prompt, args.steps)


def _data(args: argparse.Namespace):
    from zeroprompt_jax.data import benchmark

    shape = (args.batch or 64, args.inputs, args.targets)
    record = benchmark.measure(args.tasks, *shape)
    if args.versus_seqio:
        print(f"Own: {json.dumps(record)}. Now stock SeqIO.", file=sys.stderr, flush=True)
        record |= benchmark.measure_seqio(args.seqio_tasks or args.tasks, *shape)
        record["times_seqio"] = record["examples_per_s"] / record["seqio_examples_per_s"]
    yield record
