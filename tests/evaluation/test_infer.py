"""Inference over files, with a predictor that needs no model."""

import json

import pytest

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.evaluate import Evaluate
from zeroprompt_jax.evaluation.infer import infer, read_rows
from zeroprompt_jax.evaluation.predict import Prediction


class Shouting:
    """Answers a text with itself in capitals, and a seed other than 0; prefers the longest option, or by normalised
    length the shortest. The task `closed` has options."""

    def __init__(self):
        self.seen = []

    def predict(self, texts, tasks, strategy, seed):
        self.seen += zip(texts, tasks)
        return [Prediction(text.upper() + str(seed or ""), -float(len(text))) for text in texts]

    def score(self, texts, options, tasks, length_normalised):
        self.seen += zip(texts, tasks)
        sign = -1.0 if length_normalised else 1.0
        return [[sign * len(option) for option in row] for row in options]

    def options_of(self, name):
        return ("up", "down") if name == "closed" else ()


ROWS = [{"input": f"text {i}", "id": i} for i in range(10)]
ROWS[3] |= {"options": ["no", "maybe", "yes"]}
ROWS[5] |= {"task": "own"}
ROWS[6] |= {"input": "line\u2028separator\x85 and\nnewline \N{SNOWMAN}"}
ROWS[8] |= {"options": ["a", "bb"], "task": "own"}


def run(rows, output, predictor=None, **options):
    return infer(predictor or Shouting(), rows, output, progress=False, **options)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_answers_are_in_order_with_their_rows(tmp_path, chunk):
    predictor = Shouting()
    assert run(ROWS, tmp_path / "new" / "out.jsonl", predictor, task="given", chunk=chunk) == 10
    found = read(tmp_path / "new" / "out.jsonl")
    for row, answer in zip(ROWS, found, strict=True):
        assert row.items() <= answer.items()
        if "options" in row:
            assert answer["scores"] == [float(len(o)) for o in row["options"]]
            assert answer["prediction"] == max(row["options"], key=len) and answer["score"] == max(answer["scores"])
        else:
            assert answer["prediction"] == row["input"].upper() and answer["score"] == -len(row["input"])
            assert "scores" not in answer
    assert sorted(predictor.seen) == sorted((row["input"], row.get("task", "given")) for row in ROWS)


def test_rows_are_answered_as_evaluation_does_it(tmp_path):
    rows = [{"input": "a", "task": "closed"}, {"input": "b", "task": "closed", "options": ["x", "yz"]}, {"input": "c"}]

    def answers(name, **settings):
        run(rows, tmp_path / name, settings=Evaluate(**settings))
        return [row["prediction"] for row in read(tmp_path / name)]

    assert answers("as_it_is") == ["down", "yz", "C"]
    assert answers("normalised", length_normalised=True) == ["up", "x", "C"]
    assert answers("free", rank_options=False, seed=3) == ["A3", "yz", "C3"]  # a row's own list is a wish
    assert "options" not in read(tmp_path / "as_it_is")[0] and "scores" in read(tmp_path / "as_it_is")[0]


def test_resuming_after_any_truncation_gives_the_same_file(tmp_path):
    output = tmp_path / "out.jsonl"
    run(ROWS, output)
    whole = output.read_bytes()
    for cut in (*range(0, len(whole), 97), len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        done = whole[:cut].count(b"\n")
        predictor = Shouting()
        assert run(ROWS, output, predictor, chunk=2) == 10 - done == len(predictor.seen)
        assert output.read_bytes() == whole
    assert run(ROWS, output) == 0


def test_answers_to_another_input_are_not_continued(tmp_path):
    output = tmp_path / "out.jsonl"
    run(ROWS[:4], output)
    whole = output.read_bytes()
    other = [*ROWS[:2], {"input": "another"}, ROWS[3]]
    with pytest.raises(UserError, match="line 3: it answers another input file; choose another output"):
        run(other, output)
    with pytest.raises(UserError, match="line 4: it answers another input file"):
        run([*ROWS[:3], {**ROWS[3], "options": ["yes", "no"]}], output)
    with pytest.raises(UserError, match="line 3: it answers another input file"):
        run(ROWS[:2], output)
    assert output.read_bytes() == whole
    assert run(ROWS, output) == 6  # more rows after the same ones are no other input


def test_answered_rows_can_be_answered_again(tmp_path):
    """A file that infer wrote is an input too, and its old predictions give way."""
    run(ROWS, tmp_path / "first.jsonl")
    rows = [{**row, "prediction": "old", "score": 0.0} for row in read_rows(tmp_path / "first.jsonl")]
    assert run(rows, tmp_path / "second.jsonl") == 10 and run(rows, tmp_path / "second.jsonl") == 0
    assert read(tmp_path / "second.jsonl")[0]["prediction"] == "TEXT 0"


@pytest.mark.parametrize("content", [b"notes of mine\nmore\n", b'["a list"]\n', b"\xff\xfe\n"])
def test_an_output_of_another_kind_is_left_alone(tmp_path, content):
    output = tmp_path / "notes.txt"
    output.write_bytes(content)
    with pytest.raises(UserError, match="line 1: it answers another input file"):
        run(ROWS, output)
    assert output.read_bytes() == content


def test_pairs_of_halves_are_characters(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"input": "\\ud83d\\ude00"}\n')
    rows = read_rows(tmp_path / "a.jsonl")
    assert rows == [{"input": "\N{GRINNING FACE}"}] and run(rows, tmp_path / "out.jsonl") == 1


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    for output, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "out.jsonl", "its folder is a file")):
        with pytest.raises(UserError, match=rf"The output '{output}' cannot be written \({why}\)\."):
            run(ROWS, output)


def test_jsonl_and_tsv_read_alike(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"input": "one \\"quoted\\"", "task": "t", "options": ["x", "y z"]}\n\n{"input": "two", "n": "1"}\n', "utf-8"
    )
    (tmp_path / "a.tsv").write_text('input\ttask\toptions\tn\none "quoted"\tt\tx|y z\t\ntwo\t\t\t1\n', "utf-8")
    rows = read_rows(tmp_path / "a.jsonl")
    assert rows == read_rows(tmp_path / "a.tsv")
    assert rows == [{"input": 'one "quoted"', "task": "t", "options": ["x", "y z"]}, {"input": "two", "n": "1"}]


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("a.txt", b"", "ends in '.txt'; give .jsonl or .tsv"),
        ("a.jsonl", b'{"input": "a"}\n\n{"input": \n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", b'["a"]\n', "a.jsonl, line 1: list where an object with 'input' belongs"),
        ("a.jsonl", b'{"input": "a"}\n{"inptu": "a"}\n', "line 2: the row has no text under 'input'. It has 'inptu'. Did you mean 'input'?"),
        ("a.jsonl", b'{"input": 3}\n', "line 1: the row has no text under 'input'"),
        ("a.jsonl", b'{"input": "a", "options": "x|y"}\n', "line 1: 'options' is not a list of texts"),
        ("a.jsonl", b'{"input": "a", "options": []}\n', "line 1: 'options' is empty"),
        ("a.jsonl", b'{"input": "a", "task": 3}\n', "line 1: 'task' is not text"),
        ("a.jsonl", b'{"input": "\xff"}\n', "cannot be read"),
        ("a.jsonl", b'{"input": "a"}\n{"input": "a \\ud83d"}\n', "line 2: it holds half a character (U+D83D)"),
        ("a.jsonl", b'{"input": "a", "more": [{"\\udc00": 1}]}\n', "line 1: it holds half a character (U+DC00)"),
        ("a.tsv", b"text\ttask\na\tb\n", "has no column 'input'"),
        ("a.tsv", b"", "has no column 'input'"),
        ("a.tsv", b"input\n" + b"a" * 200_000 + b"\n", "cannot be read"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / name)
    assert sentence in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "missing.jsonl")
