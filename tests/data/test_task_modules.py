"""Which module is at fault when a task module cannot be imported."""

import sys

import pytest

from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.data.task_modules import import_module, packaged
from zeroprompt_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("films", "There is no task module 'films': Python looks in the current folder and in PYTHONPATH"),
        ("films.py", "There is no task module 'films.py': "),
        ("./films_tasks.py", "There is no task module './films_tasks.py': "),
        ("films_tasks.py", "and films.py is written as films"),
        ("zeroprompt_jax.task.films", "There is no task module 'zeroprompt_jax.task.films': "),
        ("zeroprompt_jax.tasks.procedurl", "Did you mean 'zeroprompt_jax.tasks.procedural'?"),
        ("", "There is no task module ''"),
        # What is there, but imports what is not.
        ("films_tasks", "Task module 'films_tasks' cannot be imported (No module named 'films')."),
        ("package.tasks", "Task module 'package.tasks' cannot be imported (No module named 'package.task')."),
        ("without_name", "Task module 'without_name' cannot be imported (cannot import name 'films' from 'json'"),
    ],
)
def test_the_right_module_is_blamed(tmp_path, monkeypatch, name, sentence):
    (tmp_path / "films_tasks.py").write_text("import films")
    (tmp_path / "without_name.py").write_text("from json import films")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "tasks.py").write_text("import package.task")
    monkeypatch.syspath_prepend(tmp_path)
    for command in (import_module, lambda name: Data("mixture", modules=(name,)).register()):
        with pytest.raises(UserError) as e:
            command(name)
        assert sentence in str(e.value)
    for made in ("films_tasks", "package", "without_name"):
        sys.modules.pop(made, None)


def test_another_mistake_in_a_task_module_stays_its_own(tmp_path, monkeypatch):
    (tmp_path / "wrong_tasks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        import_module("wrong_tasks")


def test_packaged_modules_are_listed():
    assert "zeroprompt_jax.tasks.procedural" in packaged()
