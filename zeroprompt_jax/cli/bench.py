"""Times this machine: training steps of a model and of methods beside PEFT's, the memory that they are planned to take,
the training stream of many cached tasks beside stock SeqIO's, or the scoring of a population of wordings."""

import argparse
import json
import sys

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=["train", "methods", "memory", "data", "search"],
        help="train: full and prompt-only training side by side; methods: full training, prompt tuning, MPT and LoRA by "
        "AdamW in float32; memory: what XLA plans for full and prompt-only training, without running either; data: the "
        "stream; search: 64 wordings on 32 examples of 4 options beside bare forward passes",
    )
    config.add_arguments(parser)
    parser.add_argument("--batch", type=int, help="rows per batch (data, search: 64, else 8)")
    parser.add_argument("--inputs", type=int, default=128, help="encoder tokens")
    parser.add_argument("--targets", type=int, default=32, help="decoder tokens")
    parser.add_argument("--prompt", type=int, default=100, help="soft prompt length")
    parser.add_argument("--steps", type=int, default=5, help="train, methods, search: timed rounds; the median counts")
    parser.add_argument("--versus_peft", action="store_true", help="methods: the same steps with PEFT on torch in turn")
    parser.add_argument("--tasks", type=int, default=1000, help="data: number of cached tasks")
    parser.add_argument("--versus_seqio", action="store_true", help="data: measure stock SeqIO on the same tasks too")
    parser.add_argument("--seqio_tasks", type=int, help="data: only on so many (1,000 take it ten minutes)")


def run(args: argparse.Namespace) -> int:
    if args.seqio_tasks is not None and not args.versus_seqio:
        raise UserError("zeroprompt bench --seqio_tasks needs --versus_seqio.")
    if args.versus_peft and args.what != "methods":
        raise UserError("zeroprompt bench --versus_peft goes with methods.")
    for record in _MODES[args.what](args):
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
    from zeroprompt_jax.search import benchmark

    yield benchmark.measure(model, load_vocabulary("packaged:t5_tiny"), batch=args.batch or 64, rounds=args.steps)


_MODES = {"train": _train, "methods": _methods, "memory": _memory, "data": _data, "search": _search}
