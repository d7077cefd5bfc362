"""Two processes of `zeroprompt train`: one is asked to stop, or killed, and the run goes on from what it said it saved."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from zeroprompt_jax.training import checkpoint, distributed

SCRIPT = Path(__file__).with_name("stopped_process.py")
KILLS = int(os.environ.get("ZEROPROMPT_TEST_KILLS", "3"))
CONFIG = """
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = 100000
Experiment.data = @Data()
Experiment.train = @Train()
Experiment.model = @T5Config()
Experiment.method = @methods.Full()
Experiment.optimizer = @Optimizer()
Data.mixture = "all"
Data.feature_lengths = {"inputs": 24, "targets": 8}
Data.vocabulary = "bytes"
Train.model_dir = %MODEL_DIR
Train.steps = %TRAIN_STEPS
Train.batch_size = 8
Train.log_every = 1
Train.save_every = 7
T5Config.vocab_size = 384
T5Config.emb_dim = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.mlp_dim = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
T5Config.dtype = "float32"
T5Config.dropout_rate = 0.1
T5Config.scan_layers = False
Optimizer.name = "sgd"
Optimizer.schedule = @Schedule()
Schedule.peak = 0.01
"""
ASKED = r"zeroprompt: SIGTERM stopped this run; step ([\d,]+) of 100,000 is saved"
GOES_ON = "and the same command, on all, goes on."


def number(text):
    return int(text.replace(",", ""))


class Process:
    """A process of a run, and the lines that it prints, with what it says is saved."""

    def __init__(self, folder, index, count, port, steps, more):
        told = {"ADDRESS": f"localhost:{port}", "COUNT": str(count), "INDEX": str(index)}
        told = {getattr(distributed, name): value for name, value in told.items()}
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **told, **more}
        command = [sys.executable, str(SCRIPT), "train", "--gin_file=run.gin", "--gin.MODEL_DIR=run"]
        self._process = subprocess.Popen(
            [*command, f"--gin.TRAIN_STEPS={steps}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stderr:
            self.lines += re.split("[\r\n]+", line)

    def saved(self):
        """The steps that it said are saved."""
        return [number(step) for step in re.findall(r"Saved step ([\d,]+)\.", "\n".join(self.lines))]

    def until_saved(self, seconds=300):
        deadline = time.monotonic() + seconds
        while not self.saved():
            assert time.monotonic() < deadline and self._process.poll() is None, "\n".join(self.lines[-40:])
            time.sleep(0.05)

    def send(self, number):
        self._process.send_signal(number)

    def end(self, seconds=300):
        """Its exit code and what it said, once it has ended."""
        code = self._process.wait(timeout=seconds)
        self._reader.join()
        return code, "\n".join(self.lines)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def processes(folder, count, steps=100_000, **more):
    """more: of their environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (folder / "run.gin").write_text(CONFIG)
    started = [Process(folder, index, count, port, steps, more) for index in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def finish(folder, count, steps):
    with processes(folder, count, steps) as started:
        for process in started:
            code, said = process.end()
            assert code == 0, said[-3000:]


def parameters(folder):
    """Of the newest checkpoint, on the host."""
    where = checkpoint.find(str(folder / "run"))
    shapes = checkpoint.saved_shapes(where)
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return int(where.name), {k: np.asarray(v) for k, v in checkpoint.load_params(str(where), wanted).items()}


def check_like_uninterrupted(folder, other, steps):
    """The run in `folder`, stopped or not, ended as one that a single process trained without a stop in `other`."""
    finish(other, 1, steps)
    (last, found), (_, wanted) = parameters(folder), parameters(other)
    assert last == steps and found.keys() == wanted.keys()
    for path in wanted:
        worst = np.abs(found[path] - wanted[path]).max()
        assert worst <= 1e-5 * np.abs(wanted[path]).max(), (path, worst)
    logged = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [*range(1, steps + 1)]


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_and_one_alone_goes_on(tmp_path):
    """The first of two processes is asked; then a single process ends the run."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped.mkdir(), whole.mkdir()
    with processes(stopped, 2) as both:
        both[0].until_saved()
        both[1].send(signal.SIGTERM)
        ends = [process.end() for process in both]
    assert [code for code, _ in ends] == [75, 75], ends
    (step,) = {number(re.search(ASKED, said)[1]) for _, said in ends}  # both at the same step
    assert parameters(stopped)[0] == step
    finish(stopped, 1, step + 3)
    check_like_uninterrupted(stopped, whole, step + 3)


@pytest.mark.slow
def test_killing_a_process_at_random_moments_loses_no_saved_step(tmp_path):
    """ZEROPROMPT_TEST_KILLS times; then the run ends as if nothing had been."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    draw, saved = random.Random(0), 0
    for _ in range(KILLS):
        with processes(killed, 2, TEST_HEARTBEAT="10") as both:
            both[0].until_saved()
            time.sleep(draw.uniform(0, 2))
            victim = draw.randrange(2)
            both[victim].send(signal.SIGKILL)
            ends = [process.end(60) for process in both]
        assert ends[victim][0] == -signal.SIGKILL
        code, said = ends[1 - victim]
        # Ours where Python hears of it; JAX's own where it waits in its coordination service.
        told = {75: GOES_ON, -signal.SIGABRT: "another task died"}
        assert code in told and told[code] in said, (code, said[-3000:])
        if saved:
            assert number(re.search(r"Resuming run at step ([\d,]+) of", ends[0][1])[1]) >= saved
        saved = max(both[0].saved())
    assert parameters(killed)[0] >= saved
    steps = parameters(killed)[0] + 5
    finish(killed, 2, steps)
    check_like_uninterrupted(killed, whole, steps)
