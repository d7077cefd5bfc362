"""Trains an experiment, evaluates it and reports. The same command resumes a stopped run, and reports a finished one."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs
from zeroprompt_jax.errors import UserError

# Their experiments are parts of them, and their folder is not a run's.
STUDIES = {
    "AdaptationStudy": "adapt",
    "Comparison": "compare",
    "EntailmentStudy": "entail",
    "ScalingStudy": "scale",
    "PromptSearch": "search",
    "RecyclingStudy": "recycle --sweep",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    for study, verb in STUDIES.items():
        if config.bound(study):
            raise UserError(f"This config is of a study ({study}), which is run by zeroprompt {verb}.")
    from zeroprompt_jax import experiment
    from zeroprompt_jax.training import partitioning

    settings = config.make("Experiment")
    runs.begin()
    partitioning.split_cpu(settings.mesh, *experiment.divided(settings).values())
    title = " ".join(["zeroprompt train", *(f"--gin_file={name}" for name in args.gin_file)])
    experiment.train(settings, config.resolved(), f"{title} ({settings.train.steps:,} steps)")
    return 0
