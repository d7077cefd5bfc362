"""Entailment: slots and heads per task, what they count, whose rows they change, and how they are served and kept."""

import dataclasses

import entailed
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roberta
from entailed import ABSENT, CONFIG, IDS, METHODS, TASKS, USED, WEIGHTS, per_task

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import entailment as serving
from zeroprompt_jax.methods.adapter import Adapter
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.bias import Bias
from zeroprompt_jax.methods.compacter import Compacter
from zeroprompt_jax.methods.entailment import Entailment, collapse, place_of_entailment
from zeroprompt_jax.methods.ia3 import IA3
from zeroprompt_jax.methods.initialisers import Tokens
from zeroprompt_jax.methods.lora import LoRA
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import roberta
from zeroprompt_jax.models.t5 import T5Config
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training import task_file
from zeroprompt_jax.training.fingerprint import fingerprint
from zeroprompt_jax.training.partitioning import RULES

EVERY = pytest.mark.parametrize("name", METHODS)
EMBEDDING = WEIGHTS["token_embedder"]["embedding"]
LABELS = CONFIG.labels


@EVERY
def test_every_parameter_is_a_tasks_own(name):
    method, known = per_task(name), {axis for axis, _ in RULES} | {None}
    for path, leaf in entailed.shapes(method).items():
        axes = method.logical_axes(path.removeprefix("method/"))
        assert len(axes) == leaf.ndim and axes[0] == "task" and set(axes) <= known and method.banked(path)
        assert leaf.shape[0] == TASKS and leaf.dtype == jnp.float32
    for path in ("nothing", "head/dense", "head/other/kernel", "beside/nothing", "slots/more"):
        with pytest.raises(KeyError):
            method.logical_axes(path)
    shared = jax.eval_shape(lambda: METHODS[name].init(jax.random.key(0), entailed.setting()))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shared)} == {1}


# RoBERTa large: D 1024, 24 layers, F 4096.
D, L, F = 1024, 24, 4096
HEAD = D * D + D + 2 * D + 2
COUNTS = {
    Entailment(9): 1_060_866,
    Entailment(4): 4 * D + HEAD,
    Entailment(24): 24 * D + HEAD,
    Entailment(9, train_slots=False): HEAD,
    Entailment(9, "shared"): 9 * D,
    Entailment(9, "copied"): 9 * D + D * D + D + 3 * D + 3,
    Entailment(0, beside=LoRA(4)): L * 2 * 4 * 2 * D + HEAD,
    Entailment(0, beside=LoRA(108)): L * 2 * 108 * 2 * D + HEAD,
    Entailment(0, beside=Adapter(64)): 2 * L * (2 * D * 64 + 64 + D) + HEAD,
    Entailment(0, beside=Compacter(64)): 2 * L * 3 * (D + 64) + 4**3 + HEAD,
    Entailment(0, beside=Bias()): L * (3 * D + F + D) + HEAD,
    Entailment(0, "shared", beside=IA3()): L * (2 * D + F),
}


def test_numbers_of_parameters_at_roberta_large():
    large = roberta.RobertaConfig(
        emb_dim=D, num_heads=16, mlp_dim=F, num_encoder_layers=L, pooled_head=True, labels=LABELS
    )
    weights = jax.eval_shape(lambda: roberta.init(large, jax.random.key(0)))

    def trained(method, tasks):
        make = lambda weights: method.init(jax.random.key(0), Setting(large, tuple(map(str, range(tasks))), weights))
        flat = states.flatten({"method": jax.eval_shape(make, weights), "backbone": weights})
        return states.count(states.split(flat, method.trainable)[0])

    for method, wanted in COUNTS.items():
        assert trained(method, 1) == wanted, method
        assert trained(dataclasses.replace(method, per_task=True), 5) == 5 * wanted, method
    encoder = states.count(states.flatten({k: v for k, v in weights.items() if not k.endswith("head")}))
    assert 0.00299 < COUNTS[Entailment(9)] / encoder < 0.003  # not the paper's 3 %


@pytest.mark.parametrize("name", ["efficient", "copied", "prompt", "head"])
def test_slots_that_begin_as_the_words_they_replace_change_nothing(name):
    """The discrete template: the same tokens, read from the vocabulary."""
    rows = entailed.batch(ids=np.zeros(6, np.int32))
    words = (7, 11, 30)
    for row, positions in zip(rows["encoder_input_tokens"], rows["slot_positions"]):
        row[positions] = words
    method = dataclasses.replace(METHODS[name], initialiser=Tokens((words,)))
    made = jax.device_get(states.flatten({"method": method.init(jax.random.key(1), entailed.setting(1))}))
    np.testing.assert_array_equal(made["method/slots"][0], EMBEDDING[list(words)])
    plain = dataclasses.replace(METHODS[name], slots=0)
    discrete = {path: leaf for path, leaf in made.items() if path != "method/slots"}
    wanted, _ = entailed.run(plain, discrete, rows)
    np.testing.assert_allclose(entailed.run(method, made, rows)[0], wanted, atol=1e-6)
    moved = made | {"method/slots": -made["method/slots"]}
    assert np.abs(entailed.run(method, moved, rows)[0] - wanted).max(1).min() > 1e-5
    rows["encoder_input_tokens"] = np.where(np.isin(np.arange(9), (1, 2, 3)), 5, rows["encoder_input_tokens"])
    np.testing.assert_allclose(entailed.run(method, made, rows)[0], wanted, atol=1e-6)  # whatever stands there


def test_extra_tokens_are_drawn_within_their_label_words_range():
    words = ((None, 4, None), (9,), (None,))
    made = np.asarray(Tokens(words, (4, 5, 6)).make(jax.random.key(0), entailed.setting(3), (3, 4, CONFIG.emb_dim)))
    np.testing.assert_array_equal(made[0, 1], EMBEDDING[4])
    np.testing.assert_array_equal(made[1, 0], EMBEDDING[9])
    assert (made[1, 1:] == 0).all() and (made[0, 3] == 0).all()  # no slot of the task
    for vectors, like in ((made[0, [0, 2]], 4), (made[2, 0], 6)):
        bound = np.abs(EMBEDDING[like]).max()
        assert 0.5 * bound < np.abs(vectors).max() <= bound
    assert not np.array_equal(made[0, 0], made[0, 2])
    make = lambda given, tasks=1, P=2: given.make(
        jax.random.key(0), entailed.setting(tasks), (tasks, P, CONFIG.emb_dim)
    )
    assert make(Tokens(((3, 4),)), 5).shape == (5, 2, CONFIG.emb_dim)
    for given, tasks, match in (
        (Tokens(((1,), (2,))), 3, "Tokens.words is of 2 tasks, and there are 3"),
        (Tokens(((None,),), (2, 3)), 3, "Tokens.like is of 2 tasks, and there are 3"),
        (Tokens(((1, 2, 3),)), 1, "Tokens.words has 3 tokens of a task, more than its 2 vectors"),
        (Tokens(((1, 32),)), 1, "Tokens has token id 32, and the backbone has 32 embeddings"),
    ):
        with pytest.raises(UserError, match=match):
            make(given, tasks)
    with pytest.raises(UserError, match="give Tokens.like"):
        Tokens(((None,),))


def test_tokens_that_share_a_slot_read_one_row():
    """Tied: two rows for three tokens; untied they would be three rows, two of which are alike."""
    method, rows = per_task("efficient"), entailed.batch()
    params = entailed.bank(method)
    slots = params["method/slots"]
    untied = params | {"method/slots": slots[:, [0, 1, 0]]}
    tied = {**rows, "slot_rows": np.broadcast_to(np.array([0, 1, 0], np.int32), rows["slot_positions"].shape)}
    wanted = entailed.run(method, untied, rows)[0]
    np.testing.assert_array_equal(entailed.run(method, params, tied)[0], wanted)
    assert np.abs(entailed.run(method, params, rows)[0] - wanted)[IDS == 0].max() > 1e-4


@pytest.mark.parametrize("slots", [0, 2, 4])
def test_any_number_of_extra_tokens(slots):
    """The token that a slot stands for is not read."""
    method = Entailment(slots)
    rows = entailed.batch(ids=np.zeros(6, np.int32))
    rows["slot_positions"] = np.broadcast_to(np.arange(1, slots + 1, dtype=np.int32), (6, slots))
    params = entailed.bank(method)
    assert ("method/slots" in params) == (slots > 0)
    first, _ = entailed.run(method, params, rows)
    replaced = {**rows, "encoder_input_tokens": rows["encoder_input_tokens"].copy()}
    replaced["encoder_input_tokens"][:, 1 : slots + 1] = 3
    np.testing.assert_array_equal(entailed.run(method, params, replaced)[0], first)


def test_entailment_is_found_by_name_and_keeps_its_probability():
    """Whatever the order of the classes: of MNLI's checkpoints some begin with contradiction."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (5, 3)).astype(np.float32)
    plain = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for place in range(3):
        two = np.asarray(jax.nn.softmax(collapse(logits, place)))
        np.testing.assert_allclose(two, np.stack([1 - plain[:, place], plain[:, place]], 1), atol=1e-6)
    rows, found = entailed.batch(ids=np.zeros(6, np.int32)), {}
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        config = dataclasses.replace(CONFIG, labels=tuple(LABELS[i].upper() for i in order))
        head = WEIGHTS["pooled_head"]
        classifier = {name: leaf[..., list(order)] for name, leaf in head["classifier"].items()}
        weights = {**WEIGHTS, "pooled_head": {**head, "classifier": classifier}}
        own = roberta.Backbone(config, weights)(rows["encoder_input_tokens"])
        wanted = jax.nn.softmax(own.class_logits)[:, place_of_entailment(config.labels)]
        for head in ("copied", "shared"):
            method = Entailment(0, head)
            setting = dataclasses.replace(entailed.setting(1, CONFIG), config=config, backbone=weights)
            params = states.flatten({"method": method.init(jax.random.key(0), setting)})
            found[order, head] = entailed.run(method, params, rows, config, weights)[1]
            np.testing.assert_allclose(found[order, head], wanted, atol=1e-5)
    for probability in found.values():
        np.testing.assert_allclose(probability, next(iter(found.values())), atol=1e-5)


def test_a_classifier_without_entailment_is_named():
    assert (
        place_of_entailment(("contradiction", "neutral", "ENTAILMENT")) == 2
        and place_of_entailment(("not_entailment", "entailment")) == 1
    )
    for labels, match in ((("LABEL_0", "LABEL_1"), "its labels are LABEL_0, LABEL_1"), ((), "it has no labels")):
        setting = dataclasses.replace(entailed.setting(), config=dataclasses.replace(CONFIG, labels=labels))
        for head in ("copied", "shared"):
            with pytest.raises(UserError, match=match):
                Entailment(3, head).init(jax.random.key(0), setting)
        Entailment(3).init(jax.random.key(0), setting)  # a head of its own needs none


@EVERY
def test_in_a_mixed_batch_every_task_is_as_alone(name):
    method, rows = per_task(name), entailed.batch()
    params = entailed.bank(method)
    mixed, _ = entailed.run(method, params, rows)
    for n in USED:
        mine = IDS == n
        alone, _ = entailed.run(method, params, {**rows, "task_ids": np.full_like(IDS, n)})
        np.testing.assert_array_equal(mixed[mine], alone[mine])  # the same program
        assert np.abs(mixed - alone)[~mine].max() > 1e-3
        single, _ = entailed.run(METHODS[name], entailed.slices(params, n), rows)  # and another, without task ids
        np.testing.assert_allclose(mixed[mine], single[mine], atol=1e-5)


@EVERY
def test_a_row_depends_on_itself_and_its_task_alone(name):
    method, rows = per_task(name), entailed.batch()
    params = entailed.bank(method)
    first, _ = entailed.run(method, params, rows)
    order = np.random.default_rng(3).permutation(len(IDS))
    permuted, _ = entailed.run(method, params, {key: column[order] for key, column in rows.items()})
    np.testing.assert_array_equal(permuted, first[order])
    for n in (1, ABSENT):
        other = {path: leaf.copy() for path, leaf in params.items()}
        for path, leaf in entailed.bank(method, seed=9).items():
            other[path][n] = leaf[n]
        changed, _ = entailed.run(method, other, rows)
        np.testing.assert_array_equal(changed[IDS != n], first[IDS != n])
        assert n == ABSENT or np.abs(changed - first)[IDS == n].max(1).min() > 1e-4
    if "method/slots" in params:  # what a task does not use of the widest task's slots
        padded = {path: leaf.copy() for path, leaf in params.items()}
        for n, used in USED.items():
            padded["method/slots"][n, used:] = 100.0
        np.testing.assert_array_equal(entailed.run(method, padded, rows)[0], first)


def test_serving_is_one_function_for_any_rows_and_knows_its_tasks():
    method, rows = per_task("efficient"), entailed.batch()
    params = entailed.bank(method)
    variables = {"backbone": WEIGHTS, "method": states.unflatten(params)["method"]}
    served = lambda rows: serving.probabilities(CONFIG, variables, method, rows, batch_size=5)
    compiled, found = serving._run._cache_size(), served(rows)
    np.testing.assert_allclose(found, entailed.run(method, params, rows)[1], atol=1e-6)
    for few in (slice(0, 1), slice(2, 7), slice(0, 0)):
        np.testing.assert_array_equal(served({key: column[few] for key, column in rows.items()}), found[few])
    assert serving._run._cache_size() == compiled + 1
    for wrong in (TASKS, -1):
        with pytest.raises(UserError, match=f"There is no task {wrong}: the bank holds 4 tasks"):
            served({**rows, "task_ids": np.where(IDS == 3, wrong, IDS)})


def test_a_task_is_kept_as_a_file_and_added_without_compiling(tmp_path):
    method, rows, home = per_task("efficient"), entailed.batch(), fingerprint(WEIGHTS)
    params = entailed.bank(method)
    paths = []
    for n in range(TASKS):
        own, part = task_file.slice_of(method, states.unflatten(params)["method"], n)
        vocabulary = {"spec": "bytes", "fingerprint": "bytes"}
        paths.append(tmp_path / f"{n}.safetensors")
        task_file.save(task_file.TaskFile({"name": f"task{n}"}, own, part, home, vocabulary, {}), paths[-1])
    trained = sum(leaf[0].size for leaf in params.values())
    assert 4 * trained < paths[0].stat().st_size < 4 * trained + 3000  # the task's own, and nothing of the backbone
    ids = np.array([0, 1, 0, 1, 1, 0, 0, 1], np.int32)
    rows = {**rows, "task_ids": ids}
    answers, compiled = [], []
    for count in (2, 4):
        bank = task_file.assemble(paths[:count], capacity=5)
        variables = {"backbone": WEIGHTS, "method": bank.params}
        answers.append(serving.probabilities(CONFIG, variables, bank.method, rows, batch_size=8))
        compiled.append(serving._run._cache_size())
        with pytest.raises(UserError, match="task 4 is not a number: the bank holds no task there"):
            serving.probabilities(
                CONFIG, variables, bank.method, {**rows, "task_ids": ids + 4 * (ids == 0)}, batch_size=8
            )
    assert compiled[0] == compiled[1]
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(answers[0], entailed.run(method, params, rows)[1], atol=1e-6)

    other = fingerprint(jax.tree.map(lambda leaf: leaf * 1.01, WEIGHTS))
    with pytest.raises(UserError, match="Task 'task0' was trained on another backbone"):
        task_file.check(task_file.read(paths[0]), other, "bytes")


def test_a_bank_beside_is_kept_in_the_file_too(tmp_path):
    method = per_task("adapter")
    own, part = task_file.slice_of(method, states.unflatten(entailed.bank(method))["method"], 1)
    file = task_file.TaskFile({"name": "a"}, own, part, fingerprint(WEIGHTS), {"spec": "", "fingerprint": ""}, {})
    task_file.save(file, tmp_path / "a.safetensors")
    found = task_file.read(tmp_path / "a.safetensors")
    assert found.method == METHODS["adapter"]
    jax.tree.map(np.testing.assert_array_equal, found.params, part)


def test_what_cannot_be_meant_is_told():
    for make, match in (
        (lambda: Entailment(-1), "Entailment.slots is -1"),
        (lambda: Entailment(3, "copy"), "Unknown Entailment.head 'copy'. Did you mean 'copied'"),
        (lambda: Entailment(3, fluency=-1), "cannot be negative"),
        (lambda: Entailment(3, beside=Entailment(3)), "Entailment.beside is Entailment; use a bank"),
        (lambda: Entailment(3, beside="lora"), "Entailment.beside is str"),
        (
            lambda: Entailment(3, beside=MPT(train_shared=False)),
            "Entailment.beside is MPT; use a bank of which all trains",
        ),
    ):
        with pytest.raises(UserError, match=match):
            make()
    with pytest.raises(UserError, match="this backbone is a T5Config"):
        Entailment(3).init(jax.random.key(0), Setting(T5Config()))
    with pytest.raises(UserError, match="fluency needs the masked-language-model head"):
        Entailment(3, fluency=1.0).init(jax.random.key(0), Setting(tiny_roberta.config(mlm_head=False)))
    rows = entailed.batch()
    for name in ("task_ids", "slot_positions"):
        with pytest.raises(UserError, match=name):
            lacking = {key: column for key, column in rows.items() if key != name}
            variables = {"backbone": WEIGHTS, **states.unflatten(entailed.bank(per_task("efficient")))}
            serving.probabilities(CONFIG, variables, per_task("efficient"), lacking)
    with pytest.raises(UserError, match="there is no backbone here"):
        Entailment(0, "copied").init(jax.random.key(0), Setting(CONFIG))


def test_a_prompt_may_stand_beside():
    """The head reads the first token, not the prompt."""
    method = Entailment(3, beside=Prompt(2))
    params, rows = entailed.bank(method), entailed.batch(ids=np.zeros(6, np.int32))
    found, _ = entailed.run(method, params, rows)
    other = params | {"method/beside/prompt": -params["method/beside/prompt"]}
    assert np.abs(entailed.run(method, other, rows)[0] - found).max(1).min() > 1e-4
    assert isinstance(dataclasses.replace(method, per_task=True).beside, Prompt)
