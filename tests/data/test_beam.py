"""Caching with Apache Beam's DirectRunner gives the store that one process gives."""

import json
import sys

import pytest

from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data import beam, cache, cards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError

BYTES = load_vocabulary("bytes")


@pytest.fixture
def direct():
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")


def spelled(name, split):
    for i in range(4):
        yield {"input": f"{name} {split} {i}", "target": "" if name == "empty" else str(i)}


class Spelled:
    """A source's function that can be pickled."""

    def __init__(self, name):
        self.name = name

    def __call__(self, split):
        return spelled(self.name, split)


def add(name, picklable=True):
    source = Spelled(name) if picklable else lambda split: spelled(name, split)
    cards.register(cards.TaskCard(name=name, type="t", instructions=(f"Do {name}.",)), cards.Source(source, "1"))
    return name


def build(directory, tasks, engine=None):
    cache.build(directory, tasks, BYTES, progress=False, workers=1, engine=engine)
    return [s["crc32"] for s in json.loads((directory / "index.json").read_text())["shards"].values()]


def test_the_store_is_that_of_one_process(direct, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(beam, "_GROUP", 4)
    names = [add(f"sent_{i}") for i in range(9)] + [add(f"local_{i}", picklable=False) for i in range(2)]
    engine = beam.Beam(str(tmp_path / "staging"), ["--runner=DirectRunner"])
    assert build(tmp_path / "beam", names, engine) == build(tmp_path / "own", names)
    assert "2 of 11 tasks could not be tokenised by Beam" in capsys.readouterr().err
    assert not list((tmp_path / "staging").iterdir())
    assert build(tmp_path / "other", names[::-1], engine) != build(tmp_path / "own", names)  # the comparison can fail


def test_what_a_killed_build_left_is_taken(direct, tmp_path, monkeypatch):
    monkeypatch.setattr(beam, "_GROUP", 3)
    names = [add(f"sent_{i}") for i in range(6)] + [add("empty")]
    engine = beam.Beam(str(tmp_path / "staging"))
    with pytest.raises(UserError, match="Task 'empty': the target ''"):
        build(tmp_path / "store", names, engine)
    assert len(list((tmp_path / "staging").iterdir())) == 3
    asked = []
    monkeypatch.setattr(beam, "request", lambda job, modules: asked.append(job.name))
    assert build(tmp_path / "store", names[:6], engine) == build(tmp_path / "own", names[:6])
    assert not asked and len(list((tmp_path / "staging").iterdir())) == 1
    cards.register(cards.card("sent_0"), cards.Source(Spelled("sent_0"), "2"), replace=True)
    build(tmp_path / "store", names[:6], engine)
    assert asked == ["sent_0"]  # the watch can see a request


def test_the_command(direct, tmp_path, capsys):
    names = [add(f"sent_{i}") for i in range(3)]
    cards.register_mixture("ours", names)
    command = ["cache", "--mixture=ours", f"--cache_dir={tmp_path / 'store'}", "--beam_option=--runner=DirectRunner"]
    assert main([*command, f"--beam_staging={tmp_path / 'staging'}"]) == 0
    assert capsys.readouterr().out.startswith("3 tasks, 12 train and 12 test examples in ")
    assert (tmp_path / "staging").is_dir() and cache.open_store(tmp_path / "store").tasks == tuple(names)
    assert main(command) == 2
    assert "--beam_option needs --beam_staging" in capsys.readouterr().err


def test_without_beam_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'zeroprompt_jax\[beam\]'"):
        beam.Beam("staging")
