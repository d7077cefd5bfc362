"""Carries trained prompts to another backbone with the same vocabulary, without training; or sweeps over models (--sweep)."""

import argparse
import sys
from pathlib import Path

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs
from zeroprompt_jax.errors import UserError

RECYCLERS = {
    "v2v-lin": "recyclers.Linear",
    "lin-comb": "recyclers.Combination",
    "v2v-nn": "recyclers.Network",
    "procrustes": "recyclers.Procrustes",
    "anchors": "recyclers.Anchors",
}
_UNRELATED = 0.05  # share of the variance: tables whose rows do not belong together stay below it
_BACKBONE = (
    "packaged:NAME, a directory in Hugging Face layout, OWNER/NAME on the Hugging Face hub, a run's MODEL_DIR, or a .npy "
    "file of embeddings"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", help="a task file, a .npy file of a prompt, or a run's MODEL_DIR")
    parser.add_argument("output", nargs="?", help="a file of the same kind; of a run's several tasks, a folder")
    parser.add_argument("--to", help=f"the other backbone: {_BACKBONE}")
    parser.add_argument(
        "--from", dest="origin", help="the backbone that the prompts were trained on; a run knows its own"
    )
    parser.add_argument(
        "--task", action="append", default=[], help="a task of the run; may be repeated. By default all"
    )
    parser.add_argument("--vocabulary", help="of both backbones; by default each one's own")
    parser.add_argument("--recycler", default="v2v-lin", choices=RECYCLERS, help="the kind of map (default: v2v-lin)")
    parser.add_argument("--map", help="a file that keeps the fitted map: used where it is there, else written")
    parser.add_argument(
        "--sweep", action="store_true", help="instead, measure maps between the models that --gin_file configures"
    )
    parser.add_argument("--module", action="append", default=[], help="a task module to import; may be repeated")
    config.add_arguments(parser, "recycling")


def run(args: argparse.Namespace) -> int:
    given = [name for name in ("source", "output", "to", "origin", "vocabulary", "map") if getattr(args, name)]
    if args.sweep:
        if given or args.task:
            raise UserError("zeroprompt recycle --sweep takes everything from --gin_file: leave the other options out.")
        return _sweep(args)
    if not {"source", "output", "to"} <= set(given):
        raise UserError("zeroprompt recycle needs SOURCE OUTPUT --to BACKBONE, or --sweep.")
    config.load(args.gin_file, args.gin_bindings)
    settings = config.make(RECYCLERS[args.recycler]), config.make("recyclers.EnglishWords")
    from zeroprompt_jax import recycle

    runs.begin()
    source = runs.at(args.source) if Path(args.source).is_dir() else args.source
    if isinstance(source, str) and args.task:
        raise UserError("--task chooses among a run's tasks; the source here is a file.")
    if not isinstance(source, str):
        source.data.register(args.module)
    # A run's configuration replaces the one before, so each is made before the next is read.
    origin = recycle.home(_backbone(args.origin), args.vocabulary) if args.origin else None
    target = recycle.home(_backbone(args.to), args.vocabulary)
    paths, fitted = recycle.recycle(
        source, args.output, target, origin, *settings, tasks=args.task or None, kept=args.map
    )
    shown = str(paths[0]) if len(paths) == 1 else f"{len(paths):,} tasks in {args.output}"
    tested = "" if fitted.explained is None else f", which explains {fitted.explained:.1%} of other words' embeddings"
    print(f"{shown} ({args.recycler} on {len(fitted.ids):,} words{tested})")
    if fitted.explained is not None and fitted.explained <= _UNRELATED:
        print(
            "Warning: the map says no more of other words' embeddings than their mean does. Either the models share "
            "nothing that it can use, or their token ids do not mean the same tokens.",
            file=sys.stderr,
        )
    return 0


def _backbone(name: str):
    """A run's experiment, or what `recycle.home` reads itself."""
    return runs.at(name) if (Path(name) / "config.gin").is_file() else name


def _sweep(args: argparse.Namespace) -> int:
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.search import recycling_study
    from zeroprompt_jax.training import partitioning

    study = config.make("RecyclingStudy")
    runs.begin()
    partitioning.split_cpu(
        study.base.mesh, study.rows, study.pretraining.train.batch_size, study.base.evaluate.batch_size
    )
    recycling_study.run(
        study, " ".join(["zeroprompt recycle --sweep", *(f"--gin_file={name}" for name in args.gin_file)])
    )
    return 0
