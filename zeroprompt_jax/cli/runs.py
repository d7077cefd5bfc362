"""What verbs share: the options of those that read a finished or running run, and how those that compute begin."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError, nearest


def begin() -> None:
    """Before JAX is first used: joins the run's other processes, if there are any, and keeps what will be compiled."""
    from zeroprompt_jax.training import compilation_cache, distributed

    compilation_cache.keep()
    distributed.start()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_dir",
        help="MODEL_DIR of a run; its config.gin says what the model is. By default that which --gin_file gives",
    )
    parser.add_argument("--checkpoint", help="a step directory; by default the run's newest")
    parser.add_argument("--module", action="append", default=[], help="a task module to import; may be repeated")
    config.add_arguments(parser)


def add_shard(parser: argparse.ArgumentParser, share: str) -> None:
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help=f"do job I's {share} of N jobs, I from 1 to N; each job writes its own records, and any of them, or the study "
        "without this option, reports all that lie in MODEL_DIR (default: 1/1)",
    )


def load(args: argparse.Namespace):
    """The run's experiment, with the command line's config files and bindings over its own; without --model_dir, what
    these configure."""
    if args.model_dir is None:
        if not args.gin_file:
            raise UserError("Which run? Give its --model_dir, or the --gin_file that it was trained with.")
        config.load(args.gin_file, args.gin_bindings)
        return config.make("Experiment")
    return at(args.model_dir, args.gin_file, args.gin_bindings)


def at(model_dir: str, gin_files: Sequence[str] = (), bindings: Sequence[str] = ()):
    """The experiment of the run in a MODEL_DIR."""
    saved = Path(model_dir) / "config.gin"
    if not saved.is_file():
        near = [p.parent.name for p in Path(model_dir).parent.glob("*/config.gin")]
        raise UserError(f"'{model_dir}' is no run: it has no config.gin.{nearest(Path(model_dir).name, near)}")
    config.load([str(saved), *gin_files], bindings)
    experiment = config.make("Experiment")
    # The run may have been moved, or be read from another folder than the one it was started in.
    train = dataclasses.replace(experiment.train, model_dir=model_dir)
    return dataclasses.replace(experiment, train=train)
