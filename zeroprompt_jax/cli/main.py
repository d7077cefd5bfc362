"""The command `zeroprompt VERB ...`. Each verb is a module of this package, imported when it is used."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import zeroprompt_jax
from zeroprompt_jax.errors import PeerLost, Stopped, UserError, nearest, sentence, unknown
from zeroprompt_jax.paths import place

VERBS = {
    "train": "train a model, evaluate it, and report a table and its picture; the same command resumes",
    "eval": "score a checkpoint on registered tasks",
    "infer": "read JSONL or TSV and write predictions and scores as JSONL, in order",
    "adapt": "compare methods on few-shot targets, with their source stages, over seeds",
    "entail": "compare ways to train tasks put as entailment from few labels, with the stages before, over splits",
    "compare": "compare experiments on the same tests over seeds, with the stages that they start from",
    "scale": "train sizes of model on more and more tasks at fixed compute, over seeds, and test on unseen ones",
    "search": "search better wordings of tasks by a genetic algorithm, with or without labels",
    "recycle": "carry trained prompts to another backbone with the same vocabulary, without training",
    "export": "write trained tasks as files of a few kB, for this package, PEFT or NumPy; or a backbone for transformers",
    "convert": "turn a backbone into another layout: Hugging Face, T5X or this package's checkpoint",
    "tasks": "list tasks and mixtures, their sampling proportions, and rendered examples",
    "cache": "tokenise tasks once into a store that training reads",
    "precompile": "compile an experiment for TPUs that are not there: does it fit, how fast, what costs most",
    "flops": "count what reading the instruction once saves over reading it with every input",
    "bench": "time training steps, answers, the data stream of many tasks and more, on this machine",
}


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as UserError, so that every mistake reads alike."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def parser_for(verb: str, part: str | None = None) -> argparse.ArgumentParser:
    """The parser of a verb, or of one of the PARTS that its module names. Imports the module."""
    module = importlib.import_module(f"zeroprompt_jax.cli.{verb}")
    words = ["zeroprompt", verb] + ([] if part is None else [part])
    about = module.__doc__ if part is None else module.PARTS[part]
    # Abbreviations would break a user's script as soon as a second option shares the prefix.
    parser = _Parser(prog=" ".join(words), description=about, allow_abbrev=False)
    module.add_arguments(parser, *words[2:])
    parser.set_defaults(run=module.run, **({} if part is None else {"part": part}))
    return parser


def _listed(names: Mapping[str, str]) -> list[str]:
    width = max(map(len, names))
    return [f"  {name:<{width}}  {what}" for name, what in names.items()]


def overview() -> str:
    """The text of `zeroprompt --help`."""
    return "\n".join(
        [
            "usage: zeroprompt VERB [options]",
            "",
            zeroprompt_jax.__doc__.strip(),
            "",
            *_listed(VERBS),
            "",
            "zeroprompt VERB --help tells a verb's options. The first thing to try:",
            "  zeroprompt train --gin_file=experiments/quickstart.gin",
        ]
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the verb and its options; `--gin.NAME=VALUE` joins `--gin_bindings`."""
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown("option" if verb.startswith("-") else "verb", verb, ["--help", "--version", *VERBS])
    module, part = importlib.import_module(f"zeroprompt_jax.cli.{verb}"), None
    if (parts := getattr(module, "PARTS", None)) is not None:
        part, *rest = rest or ["--help"]
        if part in ("-h", "--help"):
            lines = [f"usage: zeroprompt {verb} WHAT [options]", "", module.__doc__, "", *_listed(parts), ""]
            print("\n".join([*lines, f"zeroprompt {verb} WHAT --help tells the options of each."]))
            raise SystemExit(0)
        if part not in parts:
            raise unknown(f"part of zeroprompt {verb}", part, ["--help", *parts])
    parser = parser_for(verb, part)
    takes_config = any(action.dest == "gin_bindings" for action in parser._actions)
    bindings = []
    if takes_config:
        from zeroprompt_jax import config

        rest, bindings = config.split_arguments(rest)
    args, left_over = parser.parse_known_args(rest)
    if left_over:
        name = left_over[0].partition("=")[0]
        options = [option for action in parser._actions for option in action.option_strings]
        kind = "option" if name.startswith("-") else "argument"
        raise UserError(f"{parser.prog} has no {kind} '{name}'.{nearest(name, options)}")
    for option in ("model_dir", "output", "cache_dir"):
        if (path := getattr(args, option, None)) is not None:
            setattr(args, option, place(path, f"--{option}"))
    if takes_config:
        args.gin_bindings = [*args.gin_bindings, *bindings]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 2 after a mistake of the user's, told in one sentence; 75 when it was stopped and goes
    on when started again; 130 when interrupted. One of several processes that fails ends at once."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"zeroprompt_jax {zeroprompt_jax.__version__}")
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Modules in the user's own folder can be imported by configs. Last, so that they shadow nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        args = parse(argv)
        return args.run(args)
    except UserError as e:
        print(f"zeroprompt: error: {sentence(e)}", file=sys.stderr)
        return _leave(2)
    except Stopped as e:
        print(f"zeroprompt: {e}", file=sys.stderr)
        return _leave(75) if isinstance(e, PeerLost) else 75
    except KeyboardInterrupt:
        print("zeroprompt: interrupted", file=sys.stderr)
        return _leave(130)
    except BrokenPipeError:
        # The reader (head, less) has left; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as e:
        if said := _of_platform(e):
            print(f"zeroprompt: error: {said}", file=sys.stderr)
            return _leave(2)
        if not _several():
            raise
        from zeroprompt_jax.training import distributed

        if distributed.is_loss(e):
            print(f"zeroprompt: {distributed.loss(e)}; start all of them again.", file=sys.stderr)
            return _leave(75)
        traceback.print_exc()
        return _leave(1)


def _of_platform(error: Exception) -> str | None:
    if "jax" not in sys.modules:
        return None
    from zeroprompt_jax.training import platform

    return platform.complaint(error)


def _several() -> bool:
    """Whether this is one of several processes of a run."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """The exit code, returned in a run of one process; of several, this one ends here."""
    if _several():
        from zeroprompt_jax.training import distributed

        distributed.leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
