"""Times this machine."""

import argparse
import json
import sys

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError


PARTS = {
    "train": "full and prompt-only training side by side",
    "methods": "full training, prompt tuning, MPT and LoRA by AdamW in float32",
    "memory": "what XLA plans for full and prompt-only training, without running either",
    "serving": "one more example of a known task at several instruction lengths, beside concatenation",
    "data": "the stream of many tasks",
    "search": "64 wordings on 32 examples of 4 options beside bare forward passes",
    "recycling": "maps from 4,000 embeddings of T5 base to those of T5 large",
}

_SHAPE = {
    "batch": (8, "rows per batch"),
    "inputs": (128, "encoder tokens"),
    "targets": (32, "decoder tokens"),
}
_PROMPT = {"prompt": (100, "soft prompt length")}
_ROUNDS = {"steps": (5, "timed rounds, of which the median counts")}
# Options that are numbers: what each is when it is not given, and its help.
_NUMBERS = {
    "train": _SHAPE | _PROMPT | _ROUNDS,
    "methods": _SHAPE | _PROMPT | _ROUNDS,
    "memory": _SHAPE | _PROMPT,
    "serving": _SHAPE | _ROUNDS | {"batch": (1, "rows per batch")},
    "data": _SHAPE | {"batch": (64, "rows per batch"), "tasks": (1000, "cached tasks")},
    "search": _ROUNDS | {"batch": (64, "rows per batch")},
    "recycling": {},
}


def add_arguments(parser: argparse.ArgumentParser, part: str) -> None:
    for name, (value, what) in _NUMBERS[part].items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default: {value:,})")
    if part == "serving":
        parser.add_argument("--output", default="serving.png", help="the picture (default: serving.png)")
    if part == "methods":
        parser.add_argument("--versus_peft", action="store_true", help="the same steps with PEFT on torch in turn")
    if part == "data":
        parser.add_argument("--versus_seqio", action="store_true", help="measure stock SeqIO on the same tasks too")
        parser.add_argument("--seqio_tasks", type=int, help="but only on so many (1,000 take it ten minutes)")
    if part not in ("data", "recycling"):
        config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.part == "data" and args.seqio_tasks is not None and not args.versus_seqio:
        raise UserError("zeroprompt bench data --seqio_tasks needs --versus_seqio.")
    for record in _MEASURES[args.part](args):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
    return 0


def _model(args: argparse.Namespace, size: str):
    config.load(args.gin_file or [f"models/t5_1_1_{size}.gin"], args.gin_bindings)
    return config.make("T5Config")


def _train(args: argparse.Namespace):
    model = _model(args, "small")
    from zeroprompt_jax.training import benchmark

    return benchmark.compare(model, args.batch, args.inputs, args.targets, args.prompt, args.steps)


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
    shape = (args.batch, args.inputs, args.targets)
    return benchmark.methods(model, made, *shape, args.steps, args.versus_peft)


def _memory(args: argparse.Namespace):
    model = _model(args, "base")
    from zeroprompt_jax.training import benchmark

    return benchmark.memory(model, args.prompt, args.batch, args.inputs, args.targets)


def _serving(args: argparse.Namespace):
    # What a file of the user's own configures comes after, and wins.
    config.load(["models/t5_1_1_small.gin", "methods/hint.gin", *args.gin_file], args.gin_bindings)
    model, method = config.make("T5Config"), config.make("Experiment", data=None, train=None).method
    from zeroprompt_jax.evaluation import benchmark

    records, batch = [], args.batch
    for record in benchmark.serving(model, method, batch, args.inputs, args.targets, args.steps):
        records.append(record)
        yield record
    rows = "1 row" if batch == 1 else f"{batch} rows"
    title = f"One more batch of a known task: {rows}, {args.inputs} input and {args.targets} target tokens"
    benchmark.picture(args.output, records, title)


def _recycling(args: argparse.Namespace):
    del args
    from zeroprompt_jax.search import recycling_benchmark

    return recycling_benchmark.measure()


def _data(args: argparse.Namespace):
    from zeroprompt_jax.data import benchmark

    shape = (args.batch, args.inputs, args.targets)
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

    vocabulary = load_vocabulary("packaged:t5_tiny")
    yield prompt_benchmark.measure(model, vocabulary, batch=args.batch, rounds=args.steps)


_MEASURES = {
    "train": _train,
    "methods": _methods,
    "memory": _memory,
    "serving": _serving,
    "data": _data,
    "search": _search,
    "recycling": _recycling,
}
