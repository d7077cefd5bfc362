"""Times training steps of a model on this machine: full training and prompt-only training, side by side."""

import argparse
import json

from zeroprompt_jax import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["train"], help="what to time")
    config.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=128, help="encoder tokens")
    parser.add_argument("--targets", type=int, default=32, help="decoder tokens")
    parser.add_argument("--prompt", type=int, default=100, help="soft prompt length")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file or ["models/t5_1_1_small.gin"], args.gin_bindings)
    from zeroprompt_jax.training import benchmark

    model = config.make("T5Config")
    for record in benchmark.compare(model, args.batch, args.inputs, args.targets, args.prompt, args.steps):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
    return 0
