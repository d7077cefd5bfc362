"""Who may be at work in a run's folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.training import partitioning, run_folder

HOLDER = """
import sys
from pathlib import Path
from zeroprompt_jax.training import run_folder
with run_folder.alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_alone_until_that_ends_or_is_killed(tmp_path):
    root = tmp_path / "run"
    for end in (lambda p: os.kill(p.pid, signal.SIGKILL), lambda p: p.stdin.close()):
        other = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"Another process is at work in MODEL_DIR {root};"):
            with run_folder.alone(root):
                pass
        with run_folder.alone(root, ".another"):  # another shard's
            pass
        end(other)
        other.wait()
        with run_folder.alone(root):
            pass


def test_an_error_gives_the_folder_up(tmp_path):
    with pytest.raises(ZeroDivisionError), run_folder.alone(tmp_path):
        1 / 0
    with run_folder.alone(tmp_path):
        with pytest.raises(UserError, match="Another process"), run_folder.alone(tmp_path):
            pass


def test_other_processes_of_a_run_take_nothing(tmp_path, monkeypatch):
    with run_folder.alone(tmp_path):
        monkeypatch.setattr(partitioning, "is_first", lambda: False)
        with run_folder.alone(tmp_path), run_folder.alone(tmp_path / "none"):
            assert not (tmp_path / "none").exists()


def test_file_systems_without_locks_are_let_through(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_folder.alone(tmp_path), run_folder.alone(tmp_path):
        pass
