"""Times this machine: training steps of a model and of methods beside PEFT's, the memory that they are planned to take,
answers to a known task's inputs, the training stream of many cached tasks beside stock SeqIO's, the scoring of wordings, or the
fitting of maps that recycle prompts."""

import argparse
import json
import sys

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=list(_BENCHMARKS),
        help="; ".join(f"{name}: {what}" for name, (_, what) in _BENCHMARKS.items()),
    )
    config.add_arguments(parser)
    parser.add_argument("--batch", type=int, help="rows per batch (data, search: 64, serving: 1, else 8)")
    parser.add_argument("--inputs", type=int, default=128, help="encoder tokens")
    parser.add_argument("--targets", type=int, default=32, help="decoder tokens")
    parser.add_argument("--prompt", type=int, default=100, help="soft prompt length")
    parser.add_argument(
        "--steps", type=int, default=5, help="train, methods, serving, search: timed rounds; the median counts"
    )
    parser.add_argument("--output", help="serving: the picture (default: serving.png)")
    parser.add_argument("--versus_peft", action="store_true", help="methods: the same steps with PEFT on torch in turn")
    parser.add_argument("--tasks", type=int, default=1000, help="data: number of cached tasks")
    parser.add_argument("--versus_seqio", action="store_true", help="data: measure stock SeqIO on the same tasks too")
    parser.add_argument("--seqio_tasks", type=int, help="data: only on so many (1,000 take it ten minutes)")


def run(args: argparse.Namespace) -> int:
    if args.seqio_tasks is not None and not args.versus_seqio:
        raise UserError("zeroprompt bench --seqio_tasks needs --versus_seqio.")
    if args.versus_peft and args.what != "methods":
        raise UserError("zeroprompt bench --versus_peft goes with methods.")
    if args.output is not None and args.what != "serving":
        raise UserError("zeroprompt bench --output goes with serving.")
    measure, _ = _BENCHMARKS[args.what]
    for record in measure(args):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
    return 0


def _model(args: argparse.Namespace, size: str):
    config.load(args.gin_file or [f"models/t5_1_1_{size}.gin"], args.gin_bindings)
    return config.make("T5Config")


def _train(args: argparse.Namespace):
    model = _model(args, "small")
    from zeroprompt_jax.training import benchmark

    return benchmark.compare(model, args.batch or 8, args.inputs, args.targets, args.prompt, args.steps)


def _methods(args: argparse.Namespace):
    model = _model(args, "small")
    from zeroprompt_jax.training import benchmark

    wanted = {
        "full": ("methods.Full", {}),
        "prompt": ("methods.Prompt", {"length": args.prompt}),
        "mpt": ("methods.MPT", {"length": args.prompt}),
        "lora": ("methods.LoRA", {"rank": 8}),  # of query and value, its default
    }
    made = {name: config.make(kind, **given) for name, (kind, given) in wanted.items() if kind in config.CONFIGURABLES}
    shape = (args.batch or 8, args.inputs, args.targets)
    return benchmark.methods(model, made, *shape, args.steps, args.versus_peft)


def _memory(args: argparse.Namespace):
    model = _model(args, "base")
    from zeroprompt_jax.training import benchmark

    return benchmark.memory(model, args.prompt, args.batch or 8, args.inputs, args.targets)


def _serving(args: argparse.Namespace):
    # What a file of the user's own configures comes after, and wins.
    config.load(["models/t5_1_1_small.gin", "methods/hint.gin", *args.gin_file], args.gin_bindings)
    model, method = config.make("T5Config"), config.make("Experiment", data=None, train=None).method
    from zeroprompt_jax.evaluation import benchmark

    records, batch = [], args.batch or 1
    for record in benchmark.serving(model, method, batch, args.inputs, args.targets, args.steps):
        records.append(record)
        yield record
    rows = "1 row" if batch == 1 else f"{batch} rows"
    title = f"One more batch of a known task: {rows}, {args.inputs} input and {args.targets} target tokens"
    benchmark.picture(args.output or "serving.png", records, title)


def _recycling(args: argparse.Namespace):
    from zeroprompt_jax.search import recycling_benchmark

    return recycling_benchmark.measure()


def _data(args: argparse.Namespace):
    from zeroprompt_jax.data import benchmark

    shape = (args.batch or 64, args.inputs, args.targets)
    record = benchmark.measure(args.tasks, *shape)
    if args.versus_seqio:
        print(f"Own: {json.dumps(record)}. Now stock SeqIO.", file=sys.stderr, flush=True)
        record |= benchmark.measure_seqio(args.seqio_tasks or args.tasks, *shape)
        record["times_seqio"] = record["examples_per_s"] / record["seqio_examples_per_s"]
    yield record


def _search(args: argparse.Namespace):
    model = _model(args, "small")
    from zeroprompt_jax.data.vocabulary import load_vocabulary
    from zeroprompt_jax.search import prompt_benchmark

    rows = args.batch or 64
    yield prompt_benchmark.measure(model, load_vocabulary("packaged:t5_tiny"), batch=rows, rounds=args.steps)


_BENCHMARKS = {
    "train": (_train, "full and prompt-only training side by side"),
    "methods": (_methods, "full training, prompt tuning, MPT and LoRA by AdamW in float32"),
    "memory": (_memory, "what XLA plans for full and prompt-only training, without running either"),
    "serving": (_serving, "one more example of a known task at several instruction lengths, beside concatenation"),
    "data": (_data, "the stream of many tasks"),
    "search": (_search, "64 wordings on 32 examples of 4 options beside bare forward passes"),
    "recycling": (_recycling, "maps from 4,000 embeddings of T5 base to those of T5 large"),
}
