"""Compares experiments on the same tests over seeds, with the stages that they start from; the same command continues a
stopped comparison. With --shard several independent jobs share its seeds."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "hint")
    runs.add_shard(parser, "seeds")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax import experiment
    from zeroprompt_jax.search import comparison, records
    from zeroprompt_jax.training import partitioning

    shard = records.parse_shard(args.shard)
    study = config.make("Comparison")
    runs.begin()
    every = [*study.stages.values(), *study.arms.values()]
    partitioning.split_cpu(every[0].mesh, *(size for made in every for size in experiment.divided(made).values()))
    comparison.run(study, shard, " ".join(["zeroprompt compare", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
