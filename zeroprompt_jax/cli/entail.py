"""Compares ways to train tasks that are put as entailment, from few labels, by LM-BFF's protocol; the same command continues a
stopped study. With --input answers a file by what an arm trained."""

import argparse

from zeroprompt_jax import config
from zeroprompt_jax.cli import runs
from zeroprompt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser, "entailment")
    parser.add_argument(
        "--input",
        help='.jsonl, lines such as {"task": "glue/sst2", "sentence": "a fine film"}, or .tsv with a header line of these '
        "names: of any of the study's tasks, all answered in the same batches",
    )
    parser.add_argument("--output", help="JSONL file of answers; what it already answers is not answered again")
    parser.add_argument("--arm", help="which arm answers (default: the first that does not train the encoder)")
    parser.add_argument(
        "--split", type=int, help="seed of the split whose training answers (default: each task's best by dev accuracy)"
    )


def run(args: argparse.Namespace) -> int:
    if (args.input is None) != (args.output is None) or (args.input is None and (args.arm or args.split is not None)):
        raise UserError("zeroprompt entail answers a file with --input FILE --output FILE; --arm and --split are for that.")
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.search import entailment_answers, entailment_study

    study = config.make("EntailmentStudy")
    runs.begin()
    if args.input is not None:
        count = entailment_answers.answer(study, args.input, args.output, args.arm, args.split)
        print(f"{count:,} row{'s' * (count != 1)} answered; {args.output}")
        return 0
    entailment_study.run(study, " ".join(["zeroprompt entail", *(f"--gin_file={name}" for name in args.gin_file)]))
    return 0
