"""Counts what n examples of a task cost when its instruction is read once (HINT), beside concatenation: a table by part
and by the paper's formula, the break-even, and a picture of cost against n. Nothing is run."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError

# What a file of the user's own configures comes after, and wins.
DEFAULTS = ("models/t5_1_1_base.gin", "methods/hint.gin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)
    parser.add_argument("--examples", type=int, default=100, help="n, examples of one task (default: 100)")
    parser.add_argument("--instruction", type=int, required=True, help="tokens of the instruction, EOS included")
    parser.add_argument("--input", type=int, required=True, help="tokens of an input without its instruction, EOS included")
    parser.add_argument("--target", type=int, required=True, help="tokens of an answer, EOS included")
    parser.add_argument("--output", default="flops.png", help="the picture (default: flops.png)")


def run(args: argparse.Namespace) -> int:
    if not args.output.endswith(".png"):
        raise UserError(f"The picture '{args.output}' must end in .png.")
    config.load([*DEFAULTS, *args.gin_file], args.gin_bindings)
    model, method = config.make("T5Config"), config.make("Experiment", data=None, train=None).method
    from zeroprompt_jax.evaluation import ledger

    found = ledger.count(model, method, args.instruction, args.input, args.target)
    given = [*args.gin_file, *args.gin_bindings]
    print(f"Counted for {', '.join(DEFAULTS)}{', changed by ' + ', '.join(given) if given else ', the default'}.\n")
    print(ledger.table(found, args.examples), end="")
    ledger.picture(args.output, found, args.examples)
    print(f"Picture: {args.output}")
    return 0
