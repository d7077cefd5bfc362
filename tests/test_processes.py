"""Two processes of two devices each, and four of one, train, evaluate and resume as one process does."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from zeroprompt_jax import experiment
from zeroprompt_jax.data import cards
from zeroprompt_jax.training import checkpoint
from zeroprompt_jax.training.partitioning import Mesh

SCRIPT = Path(__file__).with_name("processes.py")


def load():
    spec = importlib.util.spec_from_file_location("processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def together(what, root, count=2):
    """Runs processes to their end; their reports, and what they printed as `out` and `err`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, str(SCRIPT), what, port, str(index), str(count), str(root)] for index in range(count)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    all_of_them = [subprocess.Popen(command, **options) for command in commands]
    try:
        said = [process.communicate(timeout=600) for process in all_of_them]
    finally:
        for process in all_of_them:
            process.kill()
    assert [process.returncode for process in all_of_them] == [0] * count, "\n".join(err[-3000:] for _, err in said)
    reports = [json.loads((root / f"{what}_{index}.json").read_text()) for index in range(count)]
    return [{**report, "out": out, "err": err} for report, (out, err) in zip(reports, said)]


@pytest.fixture(scope="module")
def shared():
    """The script as a module, with its tasks registered; the real registry is left alone."""
    module = load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "_TASKS", {})
        patch.setattr(cards, "_MIXTURES", {})
        module.register()
        yield module


@pytest.fixture(scope="module")
def rows(shared, tmp_path_factory):
    return together("rows", tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    """(folder with the runs `one`, `two`, `one_then_two` and `two_then_one`; each process' report; one's evaluation)"""
    root, before = tmp_path_factory.mktemp("runs"), jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    alone = experiment.train(shared.made(root, "one", mesh=Mesh(data=1)), "a = 1\n")
    shared.at_step_two(root / "one", "one_then_two")
    reports = together("train", root)
    shared.at_step_two(root / "two", "two_then_one")
    experiment.train(shared.made(root, "two_then_one", mesh=Mesh(data=1)), "a = 1\n")
    jax.config.update("jax_disable_most_optimizations", before)
    return root, reports, alone


def test_the_mesh_says_whose_rows_they_are(rows):
    assert [report["plain"] for report in rows] == [[*range(8)], [*range(8, 16)]]
    assert [report["interleaved"] for report in rows] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_rows_of_processes_make_up_the_batch_on_the_mesh(rows):
    for report in rows:
        assert report["streams"] == dict.fromkeys(("padded", "packed", "buckets", "grouped"), True)


def test_what_cannot_run_on_processes_is_named(rows):
    groups = "Instruction groups per micro-batch: 2 does not divide over data × fsdp = 2 × 2 devices; 4 would."
    for report in rows:
        assert report["groups"] == groups
        assert report["predictor"] == "Answering texts needs one process; this run has 2."


def saved(folder):
    """The newest checkpoint's parameters, read by this one process."""
    shapes = checkpoint.saved_shapes(checkpoint.find(str(folder)))
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return {k: np.asarray(v) for k, v in checkpoint.load_params(str(folder), wanted).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "one_then_two", "two_then_one"])
def test_parameters_are_those_of_one_process(run, name):
    root, _, _ = run
    found, wanted = saved(root / name), saved(root / "one")
    early = saved(root / "one" / "checkpoints" / "2")
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-6, rtol=0, err_msg=path)
    assert max(np.abs(wanted[path] - early[path]).max() for path in wanted) > 1e-3  # two steps are far more than that


@pytest.mark.slow
def test_four_processes_go_on_where_one_was(shared, run):
    root, _, alone = run
    shared.at_step_two(root / "one", "one_then_four")
    for report in together("resume", root, 4):
        assert report["processes"] == 4 and report["summary"] == pytest.approx(alone.summary(), abs=1e-5)
    found, wanted = saved(root / "one_then_four"), saved(root / "one")
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-6, rtol=0, err_msg=path)


@pytest.mark.slow
def test_each_process_makes_its_own_rows_only(run):
    assert all(report["rows"] == [8] * 4 for report in run[1])


@pytest.mark.slow
def test_only_the_first_process_writes_and_prints(run):
    root, (first, second), _ = run
    report = {"config.gin", "metrics.jsonl", "predictions.jsonl", "table.txt", "results.json", "results.png"}
    assert report <= {path.name for path in (root / "two").iterdir()}
    outside = [path for path in second["written"] if not path.startswith("two/checkpoints/")]
    assert outside == [] and any("metrics.jsonl" in path for path in first["written"])
    assert "Picture: " in first["out"] and "Train: 3 tasks" in first["err"] and "cpu, data 2 × fsdp 2" in first["err"]
    # Gloo's threads write into each other's lines.
    said = [line for line in second["out"].splitlines() if line.strip() and "[Gloo]" not in line and "peer ranks" not in line]
    assert said == [] and "Train:" not in second["err"] and "examples/s" not in second["err"]
    assert first["again"] is second["again"] is None  # it was finished


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "one_then_two", "two_then_one"])
def test_metrics_and_evaluation_are_those_of_one_process(run, name):
    root, reports, alone = run
    assert all(report["summary"] == pytest.approx(alone.summary(), abs=1e-5) for report in reports)
    times = ("seconds", "examples_per_second")

    def lines(folder):
        read = [json.loads(line) for line in (root / folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k.split("/")[0] not in times} for line in read]

    found, wanted = lines(name), lines("one")
    assert len(found) == len(wanted) == 7  # four steps, and evaluations at 0, 2 and the end
    for a, b in zip(found, wanted):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
