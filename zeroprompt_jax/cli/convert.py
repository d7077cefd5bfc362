"""Turns a backbone into another layout (Hugging Face, T5X, this package's checkpoint), checking weights and logits."""

import argparse
from pathlib import Path

from zeroprompt_jax.cli import runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="a directory in Hugging Face layout, a T5X checkpoint (gs:// too), a run's MODEL_DIR, packaged:NAME, or "
        "OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument("destination", help="a new folder; for T5X best called checkpoint_STEP")
    parser.add_argument(
        "--format",
        required=True,
        choices=["hf", "t5x", "t5x_scanned", "zeroprompt"],
        help="hf: config.json and model.safetensors; t5x: the layout of the published T5X models; t5x_scanned: that of "
        "T5X's scalable_t5; zeroprompt: this package's checkpoint. Train.initial_checkpoint_path takes each of them",
    )
    parser.add_argument(
        "--no_logits",
        action="store_true",
        help="compare the weights alone, in little memory: for logits the whole model is loaded, as float32",
    )


def run(args: argparse.Namespace) -> int:
    folder = Path(args.source)
    # T5X's model folders hold a config.gin too.
    is_run = (folder / "config.gin").is_file() and (folder / "checkpoints").is_dir()
    source = runs.at(args.source) if is_run else args.source
    from zeroprompt_jax import convert

    made = convert.convert(source, args.destination, args.format, not args.no_logits)
    told = f"{args.destination} ({args.format}): {made.parameters:,} parameters in {made.arrays:,} arrays, bit-equal"
    if made.by is not None:
        told += f"; logits differ by at most {made.difference:.1g} ({' against '.join(made.by)})"
    print(told)
    if made.assumed:
        said = " and ".join(f"{name} {value!r}" for name, value in made.assumed.items())
        print(f"config.json says {said}, as the published models have, for the source does not tell: correct it there.")
    return 0
