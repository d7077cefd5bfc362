"""The table, results.json and picture of an experiment."""

import dataclasses
import json
import os

import pytest
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.evaluation.report import Row

ROWS = [
    Row("seen_tasks", "dates", 0.9, 0.1, tasks=1, families={"weekday"}, examples=20),
    Row("unseen_tasks", "dates", 0.8, 0.2, tasks=3, families={"weekday", "month"}, shuffled=0.25, examples=60),
    Row("unseen_tasks", "sorting", 0.4, 0.1, tasks=1, families={"weekday", "words"}, shuffled=0.05, examples=20),
    Row("unseen_types", "entailment", 0.3, 0.5, tasks=2, families=2, examples=40),
]
FACTS = {"seeds": [0], "minutes": 9.5, "train_tasks": 1000}


def test_means_are_over_tasks_and_families_are_counted_once():
    whole = report.mean(ROWS, "unseen_tasks")
    assert whole.score == pytest.approx((3 * 0.8 + 0.4) / 4)  # 0.6 if it were over types
    assert whole.baseline == pytest.approx((3 * 0.2 + 0.1) / 4)
    assert whole.shuffled == pytest.approx((3 * 0.25 + 0.05) / 4)
    assert (whole.tasks, whole.family_count, whole.examples) == (4, 3, 80)
    assert report.mean(ROWS, "unseen_types").shuffled is None
    assert report.mean(ROWS, "unseen_types").family_count == 2


def test_a_score_that_some_types_lack_is_averaged_over_the_others():
    rows = [Row("a", "x", 1, 0, 1, 1, more={"rougeL": 0.5}), Row("a", "y", 0, 0, 3, 1)]
    assert report.mean(rows, "a").more == {"rougeL": 0.5}
    assert "rougeL" in report.table(rows)


def test_table_lists_every_type_in_order_and_aligned():
    text = report.table(ROWS, metric="exact_match", notes=["A note of the run."])
    lines = text.splitlines()
    # Groups by how hard they are, types best first.
    order = [text.index(word) for word in ("Unseen types", "Unseen tasks", "dates", "sorting", "Seen tasks")]
    assert order == sorted(order)
    numbers = [line for line in lines if line.endswith(("20", "40", "60", "80")) and not line.startswith("Uns")]
    assert len(numbers) == len(ROWS) + 3 and len({len(line) for line in numbers}) == 1
    assert "70.0      17.5  +52.5      20.0      4         3        80" in text
    assert "A note of the run." in text


def test_labels_are_printed_beside_every_score_where_known(tmp_path):
    rows = [dataclasses.replace(row, labels=80.0 if row.group == "seen_tasks" else 0.0) for row in ROWS]
    text = report.table(rows)
    counts = [line.split()[-4] for line in text.splitlines() if line.endswith(("20", "40", "60", "80"))]
    assert "labels" in text.splitlines()[0] and sorted(counts) == ["0"] * 5 + ["80", "80"]
    assert report.results(rows)["unseen_tasks"]["labels"] == 0
    assert "labels" not in report.table(ROWS) and "labels" not in report.results(ROWS)["unseen_tasks"]


def test_table_says_when_a_group_is_not_above_its_baseline():
    assert "Unseen types: NOT above the baseline (-20.0 points)." in report.table(ROWS)
    assert "NOT" not in report.table([row for row in ROWS if row.group != "unseen_types"])


def test_results_json(tmp_path):
    printed = report.write(tmp_path / "run", ROWS, title="zeroprompt train, 100 steps", **FACTS)
    data = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(data)[:3] == ["unseen_types", "unseen_tasks", "seen_tasks"]
    assert data["unseen_tasks"]["score"] == pytest.approx(0.7)
    assert data["unseen_tasks"]["baseline"] == pytest.approx(0.175)
    assert data["unseen_tasks"]["tasks"] == 4 and data["unseen_tasks"]["families"] == 3
    assert data["unseen_tasks"]["types"]["sorting"]["score"] == 0.4
    assert {k: data[k] for k in FACTS} == FACTS
    assert (tmp_path / "run" / "table.txt").read_text() == printed


def test_picture_is_drawn_and_grows_with_its_rows(tmp_path):
    from matplotlib.image import imread

    many = [Row("unseen_tasks", f"a_type_with_a_long_name_{i}", i / 30, 0.2, 3, 1) for i in range(30)]
    report.picture(tmp_path / "few.png", ROWS, title="few")
    report.picture(tmp_path / "many.png", many, title="many " * 40)
    few, much = imread(tmp_path / "few.png"), imread(tmp_path / "many.png")
    assert much.shape[0] > few.shape[0] > 300 and few.shape[1] == much.shape[1]
    assert few[..., :3].std() > 0.05  # not blank


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    report.write(tmp_path, ROWS, title="first")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["results.json", "results.png", "table.txt"]

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        report.write(tmp_path, ROWS[:1], title="second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_says_that_a_run_is_finished_is_written_last(tmp_path, monkeypatch):
    """Killed at any write, a run has results.json and so counts as finished only where all else is there."""
    replace, left = os.replace, []

    def stopped(partial, path):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(partial, path)

    monkeypatch.setattr(report.os, "replace", stopped)
    for writes in range(3):
        left += [None] * writes
        with pytest.raises(KeyboardInterrupt):
            report.write(tmp_path / str(writes), ROWS, title="stopped")
        assert len(list((tmp_path / str(writes)).iterdir())) == writes
        assert not (tmp_path / str(writes) / "results.json").exists()


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="No rows"):
        report.table([])
