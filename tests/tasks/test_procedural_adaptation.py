"""The adaptation pools: apart from the backbone's pool and from each other, large enough, and silent about the task."""

import collections
import dataclasses
import itertools

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import procedural, procedural_adaptation as adaptation

TRAINED = [s for s in procedural.SPECS.values() if s.pool == "train"]
SPECS = {
    side: [adaptation.spec_of(name) for name in cards.mixture(f"procedural_adaptation_{side}")]
    for side in adaptation.SIDES
}


@pytest.fixture(scope="module")
def rendered():
    """{side: {task: {split: [Rendered]}}}"""
    return {
        side: {
            name: {s: [cards.render(cards.card(name), e) for e in cards.source(name).examples(s)] for s in cards.SPLITS}
            for name in cards.mixture(f"procedural_adaptation_{side}")
        }
        for side in adaptation.SIDES
    }


def asked(spec):
    """What a task asks, whatever the order it is asked in."""
    return spec.type, spec.operation.name, frozenset(spec.arguments)


def answer(spec, text):
    try:
        return spec.operation.solve(text, spec.arguments)
    except (ValueError, KeyError, IndexError):
        return None


def test_no_pool_asks_what_another_asks():
    pools = [{asked(s) for s in specs} for specs in (TRAINED, SPECS["sources"], SPECS["targets"])]
    assert [len(p) for p in pools[1:]] == [24, 16]
    for a, b in itertools.combinations(pools, 2):
        assert not a & b
    # Negative control: a source that asks for a target's things in the other order would be seen.
    target = adaptation.spec_of("grammar/pair/opposite-adjective")
    assert asked(dataclasses.replace(target, arguments=target.arguments[::-1])) in pools[2]


def test_no_task_of_another_pool_gives_a_targets_answers(rendered):
    for target, splits in zip(SPECS["targets"], rendered["targets"].values(), strict=True):
        rows = [(r.input.removeprefix(": "), r.target) for r in splits["test"]]
        for other in [s for s in TRAINED + SPECS["sources"] if s.type == target.type]:
            assert any(answer(other, text) != want for text, want in rows), (target.name, other.name)


def test_no_input_of_a_target_is_a_sources(rendered):
    inputs = {
        side: {r.input for splits in tasks.values() for rows in splits.values() for r in rows}
        for side, tasks in rendered.items()
    }
    assert not inputs["sources"] & inputs["targets"]


def test_splits_are_large_and_share_no_input(rendered):
    for tasks in rendered.values():
        for name, splits in tasks.items():
            assert {s: len(rows) for s, rows in splits.items()} == {"train": 512, "validation": 64, "test": 100}, name
            assert len({r.input for rows in splits.values() for r in rows}) == 676, name


def test_inputs_bring_no_instruction_and_do_not_tell_the_task(rendered):
    """Most inputs have another answer under a task that the backbone knows: the input alone does not say which."""
    for side, tasks in rendered.items():
        for spec, (name, splits) in zip(SPECS[side], tasks.items(), strict=True):
            assert cards.card(name).instructions == ("",)
            others = [s for s in procedural.SPECS.values() if s.type == spec.type and asked(s) != asked(spec)]
            texts = [(r.input.removeprefix(": "), r.target) for r in splits["test"]]
            found = [any(answer(o, text) not in (None, want) for o in others) for text, want in texts]
            assert sum(found) > 0.9 * len(texts), name


def test_tasks_differ_in_kind(rendered):
    for side, types in (("sources", 21), ("targets", 16)):
        assert len({s.type for s in SPECS[side]}) == types
        closed = [name for name in rendered[side] if cards.card(name).options]
        assert len(closed) >= 4
        assert {"held_out_task", "held_out_type"} == {cards.card(name).pool for name in rendered[side]}
    shared = {s.type for s in SPECS["sources"]} & {s.type for s in SPECS["targets"]}
    assert len(shared) >= 14


def test_no_answer_is_nearly_always_right(rendered):
    for tasks in rendered.values():
        for name, splits in tasks.items():
            answers = collections.Counter(r.target for r in splits["test"])
            assert answers.most_common(1)[0][1] <= 70, name
