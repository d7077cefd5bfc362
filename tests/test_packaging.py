"""What is installed: bounded dependencies, the folders that move into the package, and no name that shadows another."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[\w.-]+")


@pytest.fixture(scope="module")
def setup_arguments():
    """The keyword arguments setup.py gives to setuptools."""
    code = "import json, setuptools; setuptools.setup = lambda **k: print(json.dumps(k)); exec(open('setup.py').read())"
    done = subprocess.run(
        [sys.executable, "-c", f"__file__ = 'setup.py'; {code}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_every_dependency_has_both_bounds_and_an_index_name(setup_arguments):
    extras = setup_arguments["extras_require"]
    assert set(extras) == {"tpu", "gpu", "beam", "test", "parity"}
    everything = [*setup_arguments["install_requires"], *(line for lines in extras.values() for line in lines)]
    for line in everything:
        assert re.fullmatch(r"[\w.\[\]-]+>=[\d.]+,<[\d.]+", line), line
    assert not [line for line in setup_arguments["install_requires"] if re.match("torch|transformers|peft", line)]
    assert setup_arguments["python_requires"] == ">=3.11,<3.14"


def test_lock_file_holds_every_direct_dependency_within_its_bounds(setup_arguments):
    lines = (ROOT / ".ci" / "requirements.lock").read_text().splitlines()
    locked = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    direct = [*setup_arguments["install_requires"], *setup_arguments["extras_require"]["test"]]
    for line in direct:
        name, low, high = re.fullmatch(r"([\w.-]+)>=([\d.]+),<([\d.]+)", line.lower()).groups()
        assert numbers(low) <= numbers(locked[name]) < numbers(high), line
    assert not {"torch", "transformers", "peft", "zeroprompt-jax"} & set(locked)


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)]


def test_installed_command_and_version():
    import zeroprompt_jax

    (entry,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "zeroprompt"]
    from zeroprompt_jax.cli.main import main

    assert entry.load() is main
    assert metadata.version("zeroprompt_jax") == zeroprompt_jax.__version__


def test_config_folder_does_not_shadow_the_gin_library():
    assert (ROOT / "gin").is_dir() and not list((ROOT / "gin").rglob("*.py"))
    code = "import gin, zeroprompt_jax.tasks; print(gin.__file__); gin.parse_config"
    for path in ("sys.path.insert(0, '')", "sys.path.append('')"):
        code_here = f"import sys; {path}; {code}"
        done = subprocess.run([sys.executable, "-c", code_here], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and str(ROOT / "gin") not in done.stdout, done.stderr


def test_wheel_holds_tasks_and_configs(tmp_path):
    """Builds from a copy, so that the tree stays as it is."""
    for name in ("zeroprompt_jax", "tasks", "gin"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run([*build, str(tmp_path / "copy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("gin", "zeroprompt_jax/gin"), ("tasks", "zeroprompt_jax/tasks")):
        for suffix in (".gin", ".model", ".py"):
            for file in (ROOT / folder).rglob(f"*{suffix}"):
                assert f"{inside}/{file.relative_to(ROOT / folder).as_posix()}" in held, file
    assert "zeroprompt_jax/gin/models/t5_1_1_xl.gin" in held
    for file in ("README.md", "config.json", "model.safetensors", "spiece.model"):
        assert f"zeroprompt_jax/pretrained/t5_tiny/{file}" in held
    assert any(name.endswith("LICENSE") for name in held)
    assert not [name for name in held if name.startswith(("gin/", "tasks/", "tests/"))]


def test_top_level_stays_tidy():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    allowed = "setup.py zeroprompt_jax gin tasks tests tpu_scripts README.md LICENSE .ci .gitignore".split()
    assert {line.split("/")[0] for line in done.stdout.splitlines()} <= set(allowed)


def test_plain_pytest_at_the_root_keeps_equal_names_apart_and_leaves_slow_tests_out(tmp_path):
    """On a tree of its own, with this project's conftest.py."""
    for folder in ("one", "two"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / "test_same.py").write_text(
            f"import pytest\n\ndef test_{folder}():\n    pass\n\n@pytest.mark.slow\ndef test_long():\n    assert False\n"
        )
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "setup.py").touch()

    def closing_line(*arguments):
        pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(pytest_here, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()[-1]

    assert "2 passed, 2 deselected" in closing_line()
    assert "2 failed, 2 passed" in closing_line("--runslow")
    assert "1 passed, 1 deselected" in closing_line("tests/two")
