"""The data benchmark measures what it says, and the same texts on both sides."""

import json

import numpy as np
import pytest

from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data import benchmark

SHAPE = (64, 128, 32)


def test_the_command_prints_one_line(capsys):
    assert main(["bench", "data", "--tasks=5"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert list(record) == ["tasks", "start_s", "examples_per_s", "peak_rss_gib"]
    assert record["tasks"] == 5 and 0 < record["start_s"] < 5 and record["examples_per_s"] > 1000
    assert 0.01 < record["peak_rss_gib"] < 0.5  # numpy and the store, no tensorflow


def test_mistakes_are_named(capsys):
    assert main(["bench", "data", "--tasks=0"]) == 2
    assert "0 tasks" in capsys.readouterr().err
    assert main(["bench", "data", "--seqio_tasks=5"]) == 2
    assert "--versus_seqio" in capsys.readouterr().err


def test_a_child_that_fails_is_not_a_measurement(tmp_path):
    with pytest.raises(RuntimeError, match="serve process failed"):
        benchmark._child("serve", 2, tmp_path / "store", 0, 128, 32)


def test_both_sides_read_the_same_texts(tmp_path, monkeypatch):
    import seqio

    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(registry, "_REGISTRY", {})
    benchmark.register(3)
    data = benchmark._data(str(tmp_path), *SHAPE[1:])
    stream = data.stream(data.open(str(tmp_path), progress=False)[0], SHAPE[0])
    theirs = benchmark.seqio_batches(3, *SHAPE)

    def rows(batch):
        columns = [batch[f"{k}_tokens"] for k in ("encoder_input", "decoder_target", "decoder_input")]
        return {np.concatenate(row).tobytes() for row in zip(*columns, strict=True)}

    ours = set.union(*(rows(stream.batch(n)) for n in range(256)))
    assert len(ours) == 300  # 3 tasks of 100 examples
    for _ in range(10):
        batch = next(theirs)
        assert batch["encoder_input_tokens"].shape == (64, 128) and rows(batch) <= ours
    mixed_up = {**batch, "encoder_input_tokens": np.roll(batch["encoder_input_tokens"], 1, axis=0)}
    assert not rows(mixed_up) <= ours  # the comparison can fail


@pytest.mark.slow
def test_stock_seqio_is_measured():
    found = benchmark.measure_seqio(2, *SHAPE, seconds=0)
    assert list(found) == [f"seqio_{k}" for k in ("tasks", "start_s", "examples_per_s", "peak_rss_gib")]
    assert found["seqio_tasks"] == 2 and found["seqio_peak_rss_gib"] > 0.2
