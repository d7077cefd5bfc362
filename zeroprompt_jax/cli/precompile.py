"""Compiles an experiment's steps for a TPU slice that is not there: whether they fit into its memory, their predicted
time, what the chips exchange, and their costliest operations. Needs libtpu (the extra [tpu]) and no TPU."""

import argparse
import json
import os

from zeroprompt_jax import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)
    parser.add_argument(
        "--topology",
        required=True,
        help="the slice's chips, such as v5e:2x4, or its accelerator type, such as v5litepod-8 or v5p-128",
    )
    parser.add_argument("--slices", type=int, default=1, help="so many slices, joined by the data centre's network")
    parser.add_argument("--mesh", help="sizes of mesh axes, such as data:16,model:4 (default: the config's Mesh)")
    parser.add_argument(
        "--step", action="append", default=[], help="train, score, decode or modules; may be repeated (default: all)"
    )
    parser.add_argument("--output", default="precompile.json", help="the report as JSON (default: precompile.json)")


def run(args: argparse.Namespace) -> int:
    # Also on a machine with TPUs: they are not needed, and may be at work.
    os.environ["JAX_PLATFORMS"] = "cpu"
    config.load(args.gin_file, args.gin_bindings)
    from zeroprompt_jax import precompile
    from zeroprompt_jax.evaluation import report
    from zeroprompt_jax.training.chips import Topology
    from zeroprompt_jax.training.partitioning import Mesh

    topology = Topology.parse(args.topology, args.slices)
    mesh = {} if args.mesh is None else {"mesh": Mesh.parse(args.mesh)}
    experiment = config.make("Experiment", **mesh)
    plans = precompile.plan(experiment, topology, args.step)
    print(precompile.table(plans, topology), end="")
    title = " ".join(["zeroprompt precompile", *(f"--gin_file={name}" for name in args.gin_file)])
    found = precompile.record(plans, experiment, topology, f"{title} --topology={args.topology}")
    report.save_text(args.output, json.dumps(found, indent=1) + "\n")
    print(f"Report: {args.output}")
    return 0 if all(one.fits for one in plans) else 1
