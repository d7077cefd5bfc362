"""Compares ways to adapt a backbone on few-shot targets, over seeds; the same command continues a stopped study."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "adaptation")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.search import adaptation
    from zeroprompt_jax.training import partitioning

    study = config.make("AdaptationStudy")
    runs.begin()
    rows = [arm.rows for arm in (*study.stages.values(), *study.arms.values())]  # of a task; a batch has a multiple
    partitioning.split_cpu(study.base.mesh, *rows, study.base.evaluate.batch_size)
    adaptation.run(study, " ".join(["zeroprompt adapt", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
