"""Soft prompts composed of factors: what tasks share, what unseen tasks read, what of it trains."""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model
import tiny_t5
from cases import CONFIG

from zeroprompt_jax import config as configs
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.initialisers import SampledVocabulary
from zeroprompt_jax.methods.soft_prompt import COMBINE, SoftPrompt
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import make_train_step

TRAINED = {
    "a": ("sentiment", "films", "no\nyes"),
    "b": ("sentiment", "shops", "no\nyes"),
    "c": ("entailment", "films", "no\nyes"),
    "d": ("entailment", "news", "maybe\nno\nyes"),
    "e": ("summary", "news", ""),
}
UNSEEN = {
    "seen_values": ("entailment", "shops", ""),  # all known, never together
    "new_domain": ("sentiment", "law", "no\nyes"),
    "new_type": ("ranking", "law", "first\nlast"),
}
FACTS = {task: dict(zip(("type", "domain", "labels"), facts)) for task, facts in (TRAINED | UNSEEN).items()}
SETTING = Setting(CONFIG, tuple(TRAINED), facts=FACTS)
FACTORS = ("shared", "task", "type", "domain")  # four divide the tiny model's width
METHOD = SoftPrompt(3, FACTORS, width=5)
EVERY = pytest.mark.parametrize("combine", COMBINE)
D, F, P = CONFIG.emb_dim, len(FACTORS), 3


def method(**changes):
    return dataclasses.replace(METHOD, **changes)


@functools.cache
def parameters(method, seed=0):
    """Values that look trained: no two slices are alike."""
    made = jax.eval_shape(lambda: method.init(jax.random.key(0), SETTING))
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, leaf.shape).astype(np.float32) for name, leaf in made.items()}


def ids(method, *tasks):
    places = method.places(SETTING)
    return np.array([places[task] for task in tasks], np.int32)


def prompts(method, *tasks, params=None):
    """[tasks, P', D]."""
    params = method.extend(parameters(method) if params is None else params, SETTING)
    batch = {"task_ids": ids(method, *tasks)} if tasks else {}
    return np.asarray(method.condition(params, batch, None).encoder.prompt)


def composed(combine, slices, base):
    """A prompt from its factors' slices, position by position and feature by feature."""
    if combine == "prepend":
        return np.array([vector for one in slices for vector in one])
    if combine == "add":
        return np.array([[sum(float(one[p, d]) for one in slices) for d in range(D)] for p in range(P)])
    if combine == "concatenate":
        return np.array([[float(one[p, e]) for one in slices for e in range(D // F)] for p in range(P)])
    made = [[sum(float(base[p] @ one[:-1, d] + one[-1, d]) for one in slices) for d in range(D)] for p in range(P)]
    return np.array(made)


@EVERY
def test_a_trained_tasks_prompt_is_composed_of_its_factors_slices(combine):
    own = method(combine=combine)
    params, found = parameters(own), prompts(own, *TRAINED)
    assert found.shape == (5, F * P if combine == "prepend" else P, D)
    # Unknown slices first, then each factor's values in alphabetical order; what is shared has no values.
    first = {"task": F, "type": F + 5, "domain": F + 8}
    order = {"task": "abcde", "type": ["entailment", "sentiment", "summary"], "domain": ["films", "news", "shops"]}
    assert params["parts"].shape[0] == F + 5 + 3 + 3
    for row, task in enumerate(TRAINED):
        value = {"task": task, **FACTS[task]}
        slots = [0, *(first[factor] + order[factor].index(value[factor]) for factor in FACTORS[1:])]
        wanted = composed(combine, params["parts"][slots], params.get("base"))
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)
        others = composed(combine, params["parts"][[0, *slots[2:], slots[1]]], params.get("base"))
        assert np.abs(others - wanted).max() > 0.1 or combine in ("add", "project")  # their sums have no order


@EVERY
def test_every_factor_is_reached_by_gradients_and_nothing_else(combine):
    own = method(combine=combine)
    read = ids(own, "a", "d")
    weight = np.random.default_rng(1).normal(size=prompts(own, "a", "d").shape)

    def value(params):
        return jnp.sum(own.condition(params, {"task_ids": read}, None).encoder.prompt * weight)

    gradient = jax.device_get(jax.grad(value)(parameters(own)))
    moved = np.abs(gradient["parts"]).max((1, 2)) > 1e-3
    assert set(np.flatnonzero(moved)) == set(read.ravel().tolist())
    assert (gradient["parts"][~moved] == 0).all()
    assert combine != "project" or (np.abs(gradient["base"]) > 1e-3).all()


def test_without_factors_the_model_is_the_plain_one():
    none, batch = SoftPrompt(factors=()), cases.batch()
    assert none.init(jax.random.key(0), SETTING) == {} and none.trainable == (r"backbone/.*",) and not none.per_task
    plain = tiny_t5.logits(CONFIG, batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    np.testing.assert_array_equal(cases.logits(none, {}, batch), plain)


def test_a_factor_of_zeros_adds_nothing_to_a_sum():
    params = dict(parameters(METHOD))
    types = set(ids(METHOD, *TRAINED)[:, 2])
    params["parts"] = params["parts"] * ~np.isin(np.arange(len(params["parts"])), list(types))[:, None, None]
    fewer = method(factors=("shared", "task", "domain"))
    kept = [0, 1, 3, *range(F, F + 5), *range(F + 8, F + 11)]
    wanted = prompts(fewer, *TRAINED, params={"parts": params["parts"][kept]})
    np.testing.assert_allclose(prompts(METHOD, *TRAINED, params=params), wanted, atol=1e-6)
    assert np.abs(prompts(METHOD, *TRAINED) - wanted).max() > 0.1
    # Before the input instead, zeros are vectors that attention reads: the identity is one of sums alone.
    assert prompts(method(combine="prepend"), "a", params=params).shape[1] == F * P


def test_tasks_that_share_a_value_share_its_slice_and_new_combinations_need_none():
    places = {task: dict(zip(FACTORS, row)) for task, row in METHOD.places(SETTING).items()}
    assert places.keys() == FACTS.keys()
    for one in FACTS:
        for other in FACTS:
            assert places[one]["shared"] == places[other]["shared"] == 0
            for factor in ("type", "domain"):
                same = FACTS[one][factor] == FACTS[other][factor]
                if same or {one, other} <= TRAINED.keys():
                    assert (places[one][factor] == places[other][factor]) == same
    unseen = places["seen_values"]
    assert (unseen["type"], unseen["domain"]) == (places["c"]["type"], places["b"]["domain"])
    # Composed of factors that training saw, it reads what training moved: no unknown slice, whatever the policy.
    two = [method(factors=("type", "domain", "labels"), combine="add", unseen=unseen) for unseen in ("unknown", "mean")]
    assert ids(two[0], "seen_values").tolist() == ids(two[1], "seen_values").tolist()
    assert ids(two[0], "seen_values").min() >= 3
    np.testing.assert_array_equal(prompts(two[0], "seen_values"), prompts(two[1], "seen_values"))


def test_an_unseen_task_reads_the_unknown_slices_of_what_is_new():
    assert ids(METHOD, "new_domain").tolist() == [[0, 1, METHOD.places(SETTING)["a"][2], 3]]
    assert ids(METHOD, "new_type").tolist() == [[0, 1, 2, 3]]
    np.testing.assert_array_equal(prompts(METHOD), prompts(METHOD, "new_type"))  # as a text of no task does
    assert METHOD.extend(parameters(METHOD), SETTING) is parameters(METHOD)


@EVERY
def test_or_the_mean_of_its_type(combine):
    own, params = method(combine=combine, unseen="mean"), parameters(method(combine=combine, unseen="mean"))
    table = ids(own, *TRAINED)
    longer = own.extend(params, SETTING)
    np.testing.assert_array_equal(np.asarray(longer["parts"])[: len(params["parts"])], params["parts"])

    def wanted(like, known):
        rows = [row for row, task in zip(table, TRAINED) if task in like]
        slices = [np.mean([params["parts"][row[f]] for row in rows], 0) for f in range(F)]
        for factor, slot in known.items():
            slices[FACTORS.index(factor)] = params["parts"][slot]
        return composed(combine, slices, params.get("base"))

    places = own.places(SETTING)
    cases_of = {
        "seen_values": wanted("cd", {"type": places["c"][2], "domain": places["b"][3]}),
        "new_domain": wanted("ab", {"type": places["a"][2]}),
        "new_type": wanted("abcde", {}),
    }
    found = prompts(own, *cases_of)
    for row, task in enumerate(cases_of):
        np.testing.assert_allclose(found[row], cases_of[task], atol=1e-5)
    np.testing.assert_allclose(prompts(own)[0], cases_of["new_type"], atol=1e-5)
    assert np.abs(found - prompts(dataclasses.replace(own, unseen="unknown"), *cases_of)).max() > 0.1
    assert np.abs(found[1] - wanted("cd", {"type": places["a"][2]})).max() > 0.1  # not another type's
    # What was trained on reads the same under every policy, and forgetting to extend is no silent clamp.
    np.testing.assert_array_equal(prompts(own, *TRAINED), prompts(dataclasses.replace(own, unseen="unknown"), *TRAINED))
    with pytest.raises(UserError, match="There is no task"):
        own.condition(params, {"task_ids": ids(own, "new_domain")}, None)


def test_a_prompt_per_task_alone_has_the_mean_of_its_types_prompts():
    own = SoftPrompt(P, "task", unseen="mean")
    found = prompts(own, "a", "b", "seen_values", "new_domain", "new_type", "c", "d", "e")
    np.testing.assert_allclose(found[3], found[:2].mean(0), atol=1e-6)
    np.testing.assert_allclose(found[2], found[5:7].mean(0), atol=1e-6)
    np.testing.assert_allclose(found[4], found[[0, 1, 5, 6, 7]].mean(0), atol=1e-6)


def test_the_order_of_tasks_changes_nothing():
    turned = dataclasses.replace(SETTING, tasks=tuple(reversed(SETTING.tasks)), facts=dict(reversed(FACTS.items())))
    for own in (METHOD, method(unseen="mean", combine="project")):
        assert own.places(turned) == own.places(SETTING)
        init = lambda setting, own=own: own.init(jax.random.key(3), setting)
        assert small_model.same_bits(init(turned), init(SETTING))
        params = parameters(own)
        for a, b in zip(own.extend(params, turned).values(), own.extend(params, SETTING).values()):
            np.testing.assert_allclose(a, b, atol=1e-6)
    # A task fewer has its own slice fewer, and the others keep theirs.
    fewer = METHOD.places(dataclasses.replace(SETTING, tasks=tuple("abcd")))
    assert fewer["e"][1] == 1 and METHOD.places(SETTING)["e"][1] == F + 4


def test_rows_depend_on_their_own_task():
    tasks = ["a", "new_domain", "d", "new_type", "a", "seen_values"]
    batch = {name: column[:6] for name, column in cases.batch().items()}
    params = {"method/parts": np.asarray(parameters(METHOD)["parts"])}
    found = cases.logits(METHOD, params, {**batch, "task_ids": ids(METHOD, *tasks)})
    swapped = cases.logits(METHOD, params, {**batch, "task_ids": ids(METHOD, *["a"] * 6)})
    same = np.array([task == "a" for task in tasks])
    np.testing.assert_array_equal(found[same], swapped[same])
    assert (np.abs(found - swapped).max((1, 2))[~same] > 1e-3).all()


def test_dropout_leaves_out_task_ids():
    rows = np.tile(ids(METHOD, *TRAINED), (200, 1))
    draw = lambda rate, seed=0: np.asarray(
        method(dropout=rate).draw({"task_ids": rows}, jax.random.key(seed))["task_ids"]
    )
    np.testing.assert_array_equal(draw(0.0), rows)
    np.testing.assert_array_equal(draw(1.0), np.tile(np.arange(F), (1000, 1)))
    some = draw(0.3)
    dropped = some != rows
    assert (some[dropped] == np.tile(np.arange(F), (1000, 1))[dropped]).all()
    assert not dropped[:, 0].any()  # what all share is never left out
    np.testing.assert_allclose(dropped[:, 1:].mean(0), 0.3, atol=0.06)
    assert np.corrcoef(dropped[:, 1], dropped[:, 2])[0, 1] < 0.2  # factors are left out independently
    np.testing.assert_array_equal(draw(0.3), some)
    assert (draw(0.3, 1) != some).any()


STEPS = 4
TX = Optimizer("adamw", Schedule(1e-2), weight_decay=0.1)


@functools.cache
def trained(dropout, train_backbone=True, accumulate=1):
    """(first, last, losses): states of a short training on tasks a, b and c, all tasks' slices being there."""
    own = method(dropout=dropout, combine="project", train_backbone=train_backbone)
    tx = TX.build(STEPS, own.banked)
    flat = {**cases.backbone(), **{f"method/{name}": leaf for name, leaf in parameters(own).items()}}
    params, frozen = states.split(flat, own.trainable)
    batch = small_model.batch(9, T=7, S=6, vocab=CONFIG.vocab_size) | {"task_ids": ids(own, *"abcabcabc")}
    step = tiny_t5.jit(make_train_step(CONFIG, own, tx, TX.schedule.build(STEPS), accumulate=accumulate))
    first = states.create(params, tx)
    state, losses = first, []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    return jax.device_get(first), jax.device_get(state), losses


def moved(first, last):
    """Which slices moved by a bit, in the bank and in its optimizer's state."""

    def leaves(state):
        bank = state.opt_state.inner_states["bank"].inner_state.inner
        return [state.params["method/parts"], *(x for x in jax.tree.leaves(bank) if np.ndim(x) > 1)]

    return [
        set(np.flatnonzero([(x[n] != y[n]).any() for n in range(len(x))])) for x, y in zip(leaves(first), leaves(last))
    ]


def test_backbone_and_prompts_train_together():
    first, last, losses = trained(0.0)
    assert losses[-1] < losses[0] - 0.05
    read = set(ids(METHOD, *"abc").ravel().tolist())
    assert all(slices == read for slices in moved(first, last))  # weight decay and moments leave the others alone
    assert set(range(1, F)).isdisjoint(read)  # without dropout nothing trains for unseen tasks
    for path, leaf in first.params.items():
        assert (last.params[path] != leaf).any(), path


def test_with_every_id_left_out_the_unknown_prompt_alone_trains():
    first, last, losses = trained(1.0)
    assert losses[-1] < losses[0] - 0.05
    assert all(slices == set(range(F)) for slices in moved(first, last))


def test_with_some_left_out_both_do():
    first, last, _ = trained(0.5)
    assert moved(first, last)[0] == set(ids(METHOD, *"abc").ravel().tolist()) | set(range(F))
    _, again, _ = trained(0.5, accumulate=3)  # which are left out is drawn for the whole batch
    assert moved(first, again) == moved(first, last)
    assert max(np.abs(again.params[path] - leaf).max() for path, leaf in last.params.items()) < 1e-4


def test_the_backbone_may_stay_frozen():
    first, last, losses = trained(0.0, train_backbone=False)
    assert first.params.keys() == {"method/parts", "method/base"} and losses[-1] < losses[0]
    assert (last.params["method/base"] != first.params["method/base"]).any()


def test_prompts_start_from_tokens():
    table = np.random.default_rng(0).normal(size=(CONFIG.vocab_size, D)).astype(np.float32)
    setting = dataclasses.replace(SETTING, backbone={"token_embedder": {"embedding": table}})
    made = method(initialiser=SampledVocabulary()).init(jax.random.key(0), setting)["parts"]
    assert all((table == vector).all(1).any() for vector in np.asarray(made).reshape(-1, D))
    with pytest.raises(UserError, match="SampledVocabulary makes vectors of 16 features; to concatenate, they need 4"):
        method(initialiser=SampledVocabulary(), combine="concatenate").init(jax.random.key(0), setting)


VARIANTS = {
    "factors=()": SoftPrompt(factors=()),
    "factors=('shared',)": SoftPrompt(factors=("shared",)),
    "factors=('task',)": SoftPrompt(factors=("task",)),
    **{f"combine='{combine}'": SoftPrompt(combine=combine) for combine in COMBINE},
    "unseen='mean'": SoftPrompt(unseen="mean"),
    "train_backbone=False": SoftPrompt(train_backbone=False),
}


def test_the_variants_that_its_file_tells_of_can_be_configured():
    files = ["experiments/quickstart.gin", "methods/soft_prompt.gin"]
    try:
        for binding, wanted in VARIANTS.items():
            configs.load(files, [f"methods.SoftPrompt.{binding}"])
            assert configs.make("Experiment").method == wanted
        configs.load([files[0], "methods/soft_prompt_composed.gin"], ["Data.instruct_inputs = False"])
        made = configs.make("Experiment")
        assert made.method == SoftPrompt(factors=("type", "domain", "labels"))  # and no hard prompt beside it
        assert not made.data.features().instruct_inputs
    finally:
        configs.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": ("tpye",)}, "Did you mean 'type'"),
        ({"factors": ("type", "type")}, "repeats a factor"),
        ({"combine": "sum"}, "Unknown SoftPrompt.combine 'sum'"),
        ({"unseen": "none"}, "Unknown SoftPrompt.unseen 'none'"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"length": 0}, "length and width of at least 1, not 0 and 5"),
        ({"factors": (), "train_backbone": False}, "nothing to train"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        method(**changes)


def test_features_must_divide():
    with pytest.raises(UserError, match="cannot concatenate 3 factors to vectors of 16 features"):
        method(factors=FACTORS[1:], combine="concatenate").init(jax.random.key(0), SETTING)


def test_an_optimizer_that_clips_in_a_bank_trains_it_too():
    own = method(combine="add")
    params = {f"method/{name}": jnp.asarray(leaf) for name, leaf in parameters(own).items()}
    for name in ("adafactor", "muon"):
        tx = Optimizer(name, Schedule(1e-2), clip_norm=1.0).build(2, own.banked)
        present = np.arange(len(params["method/parts"])) % 2 == 0
        updates, _ = tx.update(params, tx.init(params), params, present=present)
        new = optax.apply_updates(params, updates)["method/parts"]
        assert set(np.flatnonzero((new != params["method/parts"]).any((1, 2)))) == set(np.flatnonzero(present))
