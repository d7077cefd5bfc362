"""Trains an experiment, evaluates it and reports. The same command resumes a stopped run, and reports a finished one."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax import experiment
    from zeroprompt_jax.training import partitioning

    settings = config.make("Experiment")
    runs.begin()
    partitioning.split_cpu(settings.mesh, *experiment.divided(settings).values())
    title = " ".join(["zeroprompt train", *(f"--gin_file={name}" for name in args.gin_file)])
    experiment.train(settings, config.resolved(), f"{title} ({settings.train.steps:,} steps)")
    return 0
