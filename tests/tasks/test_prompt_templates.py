"""Prompt templates: what the hypernetwork and the encoder read of each, and the files they come from."""

import json
import tarfile

import pytest

from zeroprompt_jax import config
from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import prompt_templates
from zeroprompt_jax.tasks.prompt_templates import masked

V = load_vocabulary("bytes")
ROWS = [{"premise": f"it rains {i}", "hypothesis": f"{i} drops fall", "label": i % 2} for i in range(8)]
CHOICES = [{"premise": "it rains", "choice1": "wet", "choice2": "dry", "label": i % 2} for i in range(8)]
TEMPLATES = {
    "rte": {
        "type": "entailment",
        "pool": "held_out_type",
        "templates": {
            "does": {
                "input": "Does {premise} entail {hypothesis}? {options}",
                "answers": {"0": "yes", "1": "no"},
            },
            "true": {"input": "{premise} Is it true: {hypothesis}?", "answers": {"0": "true", "1": "false"}},
        },
    },
    "copa": {
        "templates": {
            "so": {"input": "{premise}, so? {options}", "answers": {"0": "{choice1}", "1": "{choice2}"}},
            "write": {"input": "What if {premise}?", "target": "It is {choice1}."},
        },
    },
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})


@pytest.fixture
def register(tmp_path, registry):
    """register(templates, **options): of datasets 'rte' and 'copa'."""
    for name, rows in (("rte", ROWS), ("copa", CHOICES)):
        (tmp_path / name).mkdir()
        for split, part in (("train", rows[:6]), ("validation", rows[6:])):
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)) + "\n")

    def make(templates=TEMPLATES, **options):
        file = tmp_path / "templates.json"
        file.write_text(templates if isinstance(templates, str) else json.dumps(templates))
        prompt_templates.register_directory(tmp_path, file, **options)

    return make


def rendered(name, split="train"):
    return [cards.render(cards.card(name), e) for e in cards.source(name).examples(split)]


def test_fields_are_masked_and_nothing_else():
    template = "Does {premise} entail {hypothesis!s:>3}? {{Say}} {options}"
    assert masked(template) == "Does [MASK] entail [MASK]? {Say} [MASK]"
    assert masked(template, "<extra_id_0>", ("yes", "no")) == "Does <extra_id_0> entail <extra_id_0>? {Say} yes; no"
    assert masked("no field") == "no field"


def test_a_template_is_a_task_whose_instruction_is_masked(register):
    register()
    assert set(cards.mixture("prompt_templates_unseen_types")) == {
        "prompt_templates/rte/does",
        "prompt_templates/rte/true",
    }
    assert set(cards.mixture("prompt_templates_train")) == {
        "prompt_templates/copa/so",
        "prompt_templates/copa/write",
    }
    card = cards.card("prompt_templates/rte/does")
    assert card.instructions == ("Does [MASK] entail [MASK]? yes; no",)
    assert (card.type, card.family, card.options) == ("entailment", "prompt_templates/rte", ("yes", "no"))
    assert cards.source(card.name).splits == ("train", "test")
    (first, second) = rendered(card.name, "test")
    assert first.input == "Does it rains 6 entail 6 drops fall? yes; no"
    assert (first.target, second.target, first.instruction) == ("yes", "no", "")


def test_options_of_a_row_are_masked_and_free_answers_are_templates(register):
    register()
    card = cards.card("prompt_templates/copa/so")
    assert card.instructions == ("[MASK], so? [MASK]",) and card.options == ()
    first, second = rendered(card.name)[:2]
    assert first.input == "it rains, so? wet; dry"
    assert (first.target, second.target) == ("wet", "dry") and first.options == ("wet", "dry")
    assert rendered("prompt_templates/copa/write")[0].target == "It is wet."


def test_the_encoder_may_be_given_the_bare_fields(register):
    register(given="fields", mask="<extra_id_0>", name="bare")
    assert cards.card("bare/rte/does").instructions == ("Does <extra_id_0> entail <extra_id_0>? yes; no",)
    assert rendered("bare/rte/does")[0].input == "it rains 0 0 drops fall"
    assert rendered("bare/copa/so")[0].input == "it rains wet; dry"
    # Of one dataset, templates that name the same fields in the same order are told apart by the instruction alone.
    assert rendered("bare/rte/true")[0].input == rendered("bare/rte/does")[0].input


@pytest.mark.parametrize("given", prompt_templates.GIVEN)
def test_batches_hold_the_template_apart_from_the_input(register, tmp_path, given):
    register(given=given)
    names = list(cards.mixture("prompt_templates_unseen_types"))
    store = cache.build(tmp_path / "store", names, V, progress=False)
    features = Features(inputs=64, targets=8, instructions=48, instruct_inputs=False)
    stream = TrainStream(store, dict.fromkeys(names, 1.0), features, 4, seed=0)
    batch = stream.batch(0)
    for i, (task, example, _, _) in enumerate(stream.drawn(0)):
        assert V.decode(batch["instruction_tokens"][i]) == cards.card(task).instructions[0]
        wanted = rendered(task)[example]
        assert V.decode(batch["encoder_input_tokens"][i]) == wanted.input
        assert V.decode(batch["decoder_target_tokens"][i]) == wanted.target
        assert ("[MASK]" in wanted.input, " entail " in wanted.input) == (False, given == "prompt" and "does" in task)


def test_registering_again_replaces_and_changes_the_fingerprint(register, tmp_path):
    register()
    before = cards.source("prompt_templates/rte/does").fingerprint
    register(given="fields")
    assert "entail" not in cards.card("prompt_templates/rte/does").input_template
    assert cards.source("prompt_templates/rte/does").fingerprint == before, "the rows are the same"
    with (tmp_path / "rte" / "train.jsonl").open("a") as f:
        f.write(json.dumps(ROWS[0]) + "\n")
    register()
    assert cards.source("prompt_templates/rte/does").fingerprint != before


def test_gin_can_name_it(register, tmp_path):
    register()
    templates = tmp_path / "templates.json"
    config.load(
        [],
        [
            "Data.mixture = 'named_train'",
            "Data.modules = [@prompt_templates.register_directory]",
            f"prompt_templates.register_directory.path = {str(tmp_path)!r}",
            f"prompt_templates.register_directory.templates = {str(templates)!r}",
            "prompt_templates.register_directory.name = 'named'",
        ],
    )
    data = config.make("Data")
    data.register()
    assert set(data.training()) == {"named/copa/so", "named/copa/write"}


def changed(**entries):
    return {"rte": {**TEMPLATES["rte"], **entries}}


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object of datasets"),
        ({"rte": {}}, "has no object of 'templates' for 'rte'"),
        ({"none": {"templates": {}}}, "none has neither train.jsonl"),
        (changed(kind="entailment"), "Unknown entry of 'rte' in .*: 'kind'"),
        (changed(templates={"a": {"inputs": "{premise}"}}), "'inputs'.* Did you mean 'input'"),
        (changed(templates={"a": []}), "a template of 'rte' that is not an object"),
        (changed(templates={"a": {"input": "{premise}"}}), "either 'answers', an object, or 'target'"),
        (changed(templates={"a": {"input": "{premise", "target": "x"}}), "'rte/a' that is not a format string"),
        (changed(templates={"a": {"input": "What?", "target": "{label}"}}), "'rte/a' names no field"),
        (changed(pool="test"), "pool 'test' is not one of"),
    ],
)
def test_wrong_files_are_refused(register, templates, message):
    with pytest.raises(UserError, match=message):
        register(templates)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"label": "gold"}, r"train.jsonl, line 1, template 'rte/a': the row has no field 'gold'; it has premise, hyp"),
        ({}, "line 2, template 'rte/a': the label '1' has no answer; there are 0, 2"),
    ],
)
def test_rows_that_cannot_be_answered_are_named(register, entries, message):
    templates = {"a": {"input": "{premise}", "answers": {"0": "yes", "2": "no"}}}
    register(changed(templates=templates, **entries))
    with pytest.raises(UserError, match=message):
        rendered("prompt_templates/rte/a")


def test_wrong_arguments_are_refused(register):
    with pytest.raises(UserError, match="Unknown way to give an input 'prompts'. Did you mean 'prompt'"):
        register(given="prompts")
    with pytest.raises(UserError, match="cannot be read"):
        prompt_templates.register_directory(".", "nowhere.json")


def test_real_sets(shared_data, registry, tmp_path):
    """Four sets that T0 is tested on, under a template each."""
    archive = shared_data / "classification.tar.xz"
    if not archive.exists():
        pytest.skip(f"no {archive.name} in {shared_data}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    pair = {"0": "Yes", "1": "No"}
    templates = {
        "rte": {"templates": {"a": {"input": "{premise} Does it follow that {hypothesis}?", "answers": pair}}},
        "cb": {"templates": {"a": {"input": "{premise} So {hypothesis}?", "answers": {**pair, "2": "Maybe"}}}},
        "copa": {
            "templates": {
                "a": {"input": "{premise} {question}? {options}", "answers": {"0": "{choice1}", "1": "{choice2}"}}
            }
        },
        "winogrande": {
            "label": "answer",
            "templates": {
                "a": {"input": "{sentence} What is _? {options}", "answers": {"1": "{option1}", "2": "{option2}"}}
            },
        },
    }
    (tmp_path / "templates.json").write_text(json.dumps(templates))
    prompt_templates.register_directory(tmp_path / "classification", tmp_path / "templates.json")
    for name, card in ((n, cards.card(n)) for n in cards.task_names()):
        row = next(iter(cards.source(name).examples("test")))
        example = cards.render(card, row)
        assert len(rendered(name, "train")) >= 200 and len(rendered(name, "test")) >= 50
        assert "[MASK]" in card.instructions[0] and "[MASK]" not in example.input
        assert example.target in example.options and len(example.options) >= 2
        assert str(row.get("premise", row.get("sentence"))) in example.input
