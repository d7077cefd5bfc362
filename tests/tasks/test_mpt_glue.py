"""experiments/mpt_glue.gin and its stages: T5 base from a Hugging Face directory, GLUE's tasks, no other edit."""

import json
import math
import shutil

import pytest

from zeroprompt_jax import config, experiment as experiments, pretrained
from zeroprompt_jax.cli.main import main
from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError

BASE = {
    "model_type": "t5",
    "d_model": 768,
    "num_heads": 12,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
}
FIELDS = {
    **dict.fromkeys(("cola", "sst2"), ("sentence",)),
    **dict.fromkeys(("mrpc", "stsb", "rte"), ("sentence1", "sentence2")),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
}
T5_BASE = 'INITIAL_CHECKPOINT_PATH = "{}"'


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    yield
    config.load()


@pytest.fixture
def t5_base(tmp_path):
    """t5_base(**changes): a directory as the hub's t5-base has it, without the weights."""

    def make(**changes):
        folder = tmp_path / "t5-base"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**BASE, **changes}))
        shutil.copy(pretrained.directory("packaged:t5_tiny") / "spiece.model", folder)
        return folder

    return make


@pytest.fixture
def glue(tmp_path):
    """GLUE's eight sets as a local directory of a few rows."""
    for name, fields in FIELDS.items():
        (tmp_path / "sets" / name).mkdir(parents=True)
        for split, count in (("train", 12), ("validation", 6)):
            rows = [{**{f: f"the {f} {i} of {split}" for f in fields}, "label": i % 2} for i in range(count)]
            (tmp_path / "sets" / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "sets"


def test_a_directory_in_hugging_face_layout_is_all_that_is_asked_for(t5_base):
    with pytest.raises(UserError, match="^INITIAL_CHECKPOINT_PATH has no value"):
        config.load(["experiments/mpt_glue.gin"])
    config.load(["experiments/mpt_glue.gin"], [T5_BASE.format(t5_base())])
    made = config.make("Experiment")
    made.data.register()
    assert list(made.data.training()) == list(cards.mixture("mpt_glue")) and len(made.data.training()) == 8
    experiments.check_pretrained(made)
    model = experiments.abstract_model(made, made.mesh.build())
    # The shared prompt and a pair of factors for each task: 10,468 a task, as published.
    assert sum(math.prod(leaf.shape) for leaf in model.params.values()) == 100 * 768 + 8 * (100 + 768) == 8 * 10_468
    config.load(["experiments/mpt_glue.gin"], [T5_BASE.format(t5_base(feed_forward_proj="gated-gelu"))])
    with pytest.raises(UserError, match=r"T5Config.mlp_activations is \('relu',\), but the model in"):
        experiments.check_pretrained(config.make("Experiment"))


@pytest.mark.parametrize("stage, trained", [("teachers", 6 * 76_800), ("source", None)])
def test_the_stages_before(t5_base, stage, trained):
    config.load([f"experiments/mpt_glue_{stage}.gin"], [T5_BASE.format(t5_base())])
    made = config.make("Experiment")
    made.data.register()
    assert list(made.data.training()) == list(cards.mixture("mpt_sources"))
    if trained is None:  # distilled from what the stage before trains
        assert made.method.teachers == "runs/mpt_glue_teachers"
        with pytest.raises(UserError, match="MPT.teachers 'runs/mpt_glue_teachers' must be trained first"):
            experiments.abstract_model(made, made.mesh.build())
        return
    model = experiments.abstract_model(made, made.mesh.build())
    assert sum(math.prod(leaf.shape) for leaf in model.params.values()) == trained


def test_batches_hold_glue_as_numbered_classes(glue, tmp_path):
    folder = pretrained.directory("packaged:t5_tiny")
    bindings = [T5_BASE.format(folder), f'DATASETS_DIR = "{glue}"', f'CACHE_DIR = "{tmp_path}/cache"']
    config.load(["experiments/mpt_glue.gin"], bindings)
    data = config.make("Experiment").data
    data.register()
    store, vocabulary = data.open(str(tmp_path / "run"), progress=False)
    stream = data.stream(store, 16)
    seen = set()
    for n in range(12):
        batch = stream.batch(n)
        for row, (task, *_) in enumerate(stream.drawn(n)):
            given = vocabulary.decode(batch["encoder_input_tokens"][row])
            wanted = vocabulary.decode(batch["decoder_target_tokens"][row])
            name = task.removeprefix("mpt/")
            assert given.startswith(f"{name} {FIELDS[name][0]}: the {FIELDS[name][0]} ") and "of train" in given
            assert wanted in (("0.0", "1.0") if name == "stsb" else ("0", "1"))
            seen.add(task)
    assert seen == set(data.training())


@pytest.mark.slow
def test_it_trains_and_is_scored(glue, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {
        "INITIAL_CHECKPOINT_PATH": pretrained.directory("packaged:t5_tiny"),
        "DATASETS_DIR": glue,
        "TRAIN_STEPS": 2,
        "BATCH_SIZE": 8,
        "PROMPT_LENGTH": 4,
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8},
        "Schedule.warmup_steps": 1,
    }
    files = ["--gin_file=experiments/mpt_glue.gin", "--gin_file=models/t5_tiny.gin"]
    assert main(["train", *files, *(f"--gin.{name}={value}" for name, value in options.items())]) == 0
    table = capsys.readouterr().out
    assert all(kind in table for kind in ("acceptability", "paraphrase", "similarity", "textual entailment", "f1"))
