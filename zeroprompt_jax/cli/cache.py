"""Renders and tokenises the tasks of a mixture once, into the store that training reads."""

import argparse
import dataclasses

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.paths import place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)
    parser.add_argument("--mixture", help="a mixture or task (default: all that the config trains and tests on)")
    parser.add_argument("--module", action="append", default=[], help="a task module to import; may be repeated")
    parser.add_argument(
        "--vocabulary",
        help="bytes, procedural, a SentencePiece FILE.model, a tokenizer.json, a directory in Hugging Face layout, "
        "packaged:NAME or OWNER/NAME on the hub; each may end in :EXTRA_IDS (default: the config's)",
    )
    parser.add_argument("--cache_dir", help="where the store lies (default: the config's)")
    parser.add_argument("--beam_staging", metavar="DIR", help="tokenise with Apache Beam, results passing through here")
    parser.add_argument(
        "--beam_option",
        action="append",
        default=[],
        metavar="FLAG",
        help="a Beam flag, such as --beam_option=--runner=DataflowRunner; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    if args.beam_option and not args.beam_staging:
        raise UserError("zeroprompt cache --beam_option needs --beam_staging DIRECTORY.")
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax.data.beam import Beam
    from zeroprompt_jax.data.pipeline import Data

    given = {"mixture": args.mixture, "vocabulary": args.vocabulary, "cache_dir": args.cache_dir}
    given = {name: value for name, value in given.items() if value is not None}
    if args.mixture:
        given["evaluation"] = {}
    if args.gin_file:
        data = config.make("Data", **given)
    elif args.mixture:
        data = Data(**given)
    else:
        raise UserError("zeroprompt cache needs --gin_file FILE or --mixture NAME.")
    model_dir = place(config.macro("MODEL_DIR") or "", "MODEL_DIR")
    directory = data.cache_dir or (f"{model_dir}/cache" if model_dir else None)
    if directory is None:
        raise UserError("zeroprompt cache needs --cache_dir DIRECTORY, or a config with MODEL_DIR or Data.cache_dir.")
    data = dataclasses.replace(data, modules=(*data.modules, *args.module))
    data.register()
    engine = Beam(args.beam_staging, args.beam_option) if args.beam_staging else None
    store, _ = data.open(directory.removesuffix("/cache") if data.cache_dir is None else directory, engine=engine)
    sizes = {split: sum(store.size(task, split) for task in store.tasks) for split in ("train", "test")}
    print(f"{len(store.tasks):,} tasks, {sizes['train']:,} train and {sizes['test']:,} test examples in {directory}")
    return 0
