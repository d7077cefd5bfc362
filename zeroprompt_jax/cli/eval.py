"""Scores a run's checkpoint on registered tasks and mixtures; by default on those it was configured to be tested on."""

import argparse

from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    runs.add_arguments(parser)
    parser.add_argument("--mixture", action="append", default=[], help="a mixture or task to score; may be repeated")
    parser.add_argument("--split", default="test", help="which examples (default: test)")
    parser.add_argument("--output", help="folder of the table, picture and predictions (default: MODEL_DIR/eval)")


def run(args: argparse.Namespace) -> int:
    settings = runs.load(args)
    from zeroprompt_jax import experiment

    runs.begin()
    experiment.evaluate_run(settings, args.mixture, args.module, args.split, args.output, args.checkpoint)
    return 0
