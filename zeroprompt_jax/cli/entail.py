"""Compares ways to train tasks that are put as entailment, from few labels, by LM-BFF's protocol; the same command continues a
stopped study."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "entailment")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.search import entailment_study

    study = config.make("EntailmentStudy")
    runs.begin()
    entailment_study.run(study, " ".join(["zeroprompt entail", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
