"""Searches better wordings for tasks by a genetic algorithm; the same command continues a stopped search."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "genetic_search")


def run(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.search import prompt_search

    study = config.make("PromptSearch")
    runs.begin()
    prompt_search.run(study, " ".join(["zeroprompt search", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
