"""Trains models of several sizes on more and more tasks at fixed compute, over seeds, and tests them on tasks that none
saw; the same command continues a stopped study. With --shard several independent jobs share its runs."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "task_scaling")
    runs.add_shard(parser, "runs")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax import experiment
    from zeroprompt_jax.search import records, scaling
    from zeroprompt_jax.training import partitioning

    shard = records.parse_shard(args.shard)
    study = config.make("ScalingStudy")
    runs.begin()
    every = list(study.sizes.values())
    partitioning.split_cpu(every[0].mesh, *(size for made in every for size in experiment.divided(made).values()))
    scaling.run(study, shard, " ".join(["zeroprompt scale", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
