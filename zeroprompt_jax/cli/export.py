"""Writes a run's trained tasks as files without the backbone, which `zeroprompt infer --task_file` reads; or its backbone."""

import argparse

from zeroprompt_jax.cli import runs
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    runs.add_arguments(parser)
    parser.add_argument("--task", action="append", default=[], help="a trained task; may be repeated")
    parser.add_argument("--all", action="store_true", help="all tasks that the run trained on")
    parser.add_argument(
        "--format",
        default="task",
        choices=["task", "peft", "npy", "hf"],
        help="task: a safetensors file that names its backbone (default); peft: a Hugging Face PEFT adapter's folder; npy: "
        "a prompt as google-research/prompt-tuning writes it; hf: no task but the backbone, as a Hugging Face folder",
    )
    parser.add_argument(
        "--whole", action="store_true", help="keep what tasks share beside the task's factors, instead of their product"
    )
    parser.add_argument(
        "--output", required=True, help="FILE.safetensors, FILE.npy or PEFT's folder of one task; of several, a folder"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the format hf's weights")


def run(args: argparse.Namespace) -> int:
    if args.format != "hf" and bool(args.task) == args.all:
        raise UserError("zeroprompt export needs --task NAME or --all, and not both.")
    if args.format == "hf" and (args.task or args.all or args.whole):
        raise UserError("--format hf exports the backbone, which belongs to no task: leave --task, --all and --whole out.")
    settings = runs.load(args)
    from zeroprompt_jax import export

    runs.begin()
    if args.format == "hf":
        print(", ".join(map(str, export.export_backbone(settings, args.output, args.dtype, args.checkpoint))))
        return 0
    tasks = None if args.all else args.task
    written = export.export_run(settings, args.output, tasks, args.format, args.whole, args.checkpoint, args.module)
    shown = str(written[0]) if len(written) == 1 else f"{len(written):,} tasks in {args.output}"
    print(f"{shown} ({args.format})")
    return 0
