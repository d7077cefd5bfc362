"""Writes a run's backbone as a directory in Hugging Face layout: config, weights and vocabulary."""

import argparse
import shutil
from pathlib import Path

from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    runs.add_arguments(parser)
    parser.add_argument("--output", required=True, help="a directory, made when missing")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the weights in the file")


def run(args: argparse.Namespace) -> int:
    settings = runs.load(args)
    from zeroprompt_jax import experiment
    from zeroprompt_jax.data.vocabulary import load_vocabulary
    from zeroprompt_jax.interop import huggingface

    backbone = experiment.restore(settings, args.checkpoint).variables["backbone"]
    huggingface.write_t5(args.output, backbone, settings.model, args.dtype)
    vocabulary = load_vocabulary(settings.data.vocabulary).path
    if vocabulary:
        target = Path(args.output) / "spiece.model"
        if not target.exists() or not target.samefile(vocabulary):
            shutil.copyfile(vocabulary, target)
    print(f"{args.output}: {', '.join(sorted(path.name for path in Path(args.output).iterdir()))}")
    return 0
