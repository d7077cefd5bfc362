"""Multitask prompt tuning: its prompts, what a target starts from, and what is distilled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods import mpt
from zeroprompt_jax.methods.base import Run, Setting
from zeroprompt_jax.methods.distillation import Distillation
from zeroprompt_jax.methods.initialisers import Uniform
from zeroprompt_jax.methods.mpt import MPT
from zeroprompt_jax.methods.prompt import Prompt
from zeroprompt_jax.models import t5
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import Optimizer, Schedule
from zeroprompt_jax.training.step import Loss, make_train_step

CONFIG = small_model.config()
TASKS = ("a", "b", "c")
P, D = 4, CONFIG.emb_dim


def factors(K: int, R: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 0.5, (K, P, R)).astype(np.float32), rng.normal(1, 0.5, (K, R, D)).astype(np.float32)


def setting(run: Run | None = None, tasks=TASKS) -> Setting:
    return Setting(CONFIG, tasks, run=None if run is None else lambda path: run)


def source(R: int = 1) -> Run:
    u, v = factors(3, R)
    shared = np.random.default_rng(9).normal(size=(P, D)).astype(np.float32)
    return Run({"shared": shared, "u": u, "v": v}, ["x", "y", "z"])


def shapes(config: t5.T5Config, method: MPT, tasks: int) -> int:
    found = jax.eval_shape(lambda: method.init(jax.random.key(0), Setting(config, ["t"] * tasks)))
    trained, _ = states.split(states.flatten({"method": found}), method.trainable)
    return states.count(trained)


def test_counts_at_t5_base():
    base = t5.T5Config(emb_dim=768, num_heads=12, mlp_dim=2048, num_encoder_layers=12, num_decoder_layers=12)
    method = MPT(initialiser=Uniform())
    assert shapes(base, method, 1) == 100 * 768 + 100 + 768 == 77_668
    assert shapes(base, method, 8) == 8 * 10_468  # eight targets that share P*
    assert shapes(base, dataclasses.replace(method, train_shared=False), 1) == 868
    assert shapes(base, dataclasses.replace(method, rank=3), 1) == 76_800 + 3 * 868


@pytest.mark.parametrize("R", [1, 2, 4])
def test_prompts_are_gains_of_the_shared_prompt(R):
    u, v = factors(3, R)
    shared = source().params["shared"]
    made = mpt.prompts(shared, u, v)
    want = np.stack([sum(np.diag(u[k, :, r]) @ shared @ np.diag(v[k, r]) for r in range(R)) for k in range(3)])
    np.testing.assert_allclose(made, want, rtol=1e-5)
    # A pair's sign and scale are arbitrary.
    np.testing.assert_allclose(mpt.prompts(shared, -3 * u, v / -3), made, rtol=1e-5)
    np.testing.assert_allclose(mpt.prompts(shared, np.ones((3, P, 1)), np.ones((3, 1, D))), [shared] * 3)


def test_first_prompts_are_near_the_shared_one_and_pefts_are_near_nothing():
    for R in (1, 3):
        u, v = mpt.near_one(jax.random.key(0), 5, 100, 64, R)
        product = np.asarray(u @ v)
        assert abs(product.mean() - 1) < 0.01 and 0.01 < product.std() < 0.05
        assert np.ptp(product[:, 0, 0]) > 0  # tasks and ranks are told apart
    product = np.asarray(jnp.matmul(*mpt.near_zero(jax.random.key(0), 5, 100, 64, 1)))
    assert 3e-4 < product.std() < 5e-4


@pytest.mark.parametrize("R", [1, 3])
def test_starts_from_source_tasks(R):
    u, v = factors(6, R)
    rng = np.random.default_rng(1)
    gauge = rng.choice([-1, 1], (6, 1, R)) * np.exp(rng.normal(size=(6, 1, R)))
    other = (u * gauge).astype(np.float32), (v / gauge.swapaxes(1, 2)).astype(np.float32)
    np.testing.assert_allclose(other[0] @ other[1], u @ v, rtol=1e-4, atol=1e-5)  # the same updates
    for name, start in mpt.STARTS.items():
        a, b = (np.matmul(*start(*pair)) for pair in ((u, v), other))
        if name == "mean":
            assert np.abs(a - b).max() > 0.3  # what the published mean depends on
        else:
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    mean = (u @ v).mean(0)
    left, values, right = np.linalg.svd(mean, full_matrices=False)
    best = (left[:, :R] * values[:R]) @ right[:R]
    np.testing.assert_allclose(np.matmul(*mpt.svd_of_mean(u, v)), best, rtol=1e-4, atol=1e-5)
    # Equal tasks are their own mean, however it is taken.
    same = np.repeat(u[:1], 4, 0), np.repeat(v[:1], 4, 0)
    for start in mpt.STARTS.values():
        np.testing.assert_allclose(np.matmul(*start(*same)), u[0] @ v[0], rtol=1e-3, atol=1e-4)


def test_a_target_starts_from_its_source():
    run = source()
    p = run.params
    made = lambda **options: MPT(length=P, source="run", **options).init(jax.random.key(0), setting(run, ("new", "more")))
    for start in ("mean", "gauge_fixed", "svd", "ones", "random", "task:y"):
        found = made(start=start)
        np.testing.assert_array_equal(found["shared"], p["shared"])
        assert found["u"].shape == (2, P, 1) and found["v"].shape == (2, 1, D)
    np.testing.assert_array_equal(made(start="task:y")["u"][1], p["u"][1])
    np.testing.assert_allclose(made(start="ones")["u"] @ made(start="ones")["v"], 1)
    np.testing.assert_allclose(made(start="mean")["v"][0], p["v"].mean(0), rtol=1e-6)
    with pytest.raises(UserError, match="Did you mean 'y'|x, y, z"):
        made(start="task:yy")
    with pytest.raises(UserError, match=r"'shared' has shape \[4, 16\]"):
        MPT(length=5, source="run").init(jax.random.key(0), setting(run))
    with pytest.raises(UserError, match="no parameter 'shared'"):
        MPT(length=P, source="run").init(jax.random.key(0), setting(Run({"prompt": p["u"]}, [])))
    with pytest.raises(UserError, match="MPT.start"):
        MPT(start="average")
    with pytest.raises(UserError, match="MPT.factors"):
        MPT(factors="pefts")


@pytest.fixture(scope="module")
def teachers():
    prompts = np.random.default_rng(3).normal(size=(3, 6, D)).astype(np.float32)  # longer than the student's
    return Run({"prompt": prompts}, ["c", "a", "b"])


def test_teachers_are_found_by_name(teachers):
    method = MPT(length=P, teachers="run", initialiser=Uniform())
    found = method.init(jax.random.key(0), setting(teachers))["teacher"]
    np.testing.assert_array_equal(found, teachers.params["prompt"][[1, 2, 0]])
    with pytest.raises(UserError, match="task among MPT.teachers 'd'"):
        method.init(jax.random.key(0), setting(teachers, ("a", "d")))


@pytest.mark.parametrize("option", ["teachers", "source"])
def test_a_stage_before_the_one_it_needs_is_told_that_ones_config(option):
    def missing(path):
        raise UserError(f"No checkpoint at '{path}'.")

    early = dataclasses.replace(setting(), run=missing)
    trains = f"experiments/mpt_{option}.gin trains one"
    words = f"MPT.{option} 'runs/one' must be trained first, as {trains}: No checkpoint at 'runs/one'."
    with pytest.raises(UserError, match=f"^{words}$"):
        MPT(length=P, initialiser=Uniform(), **{option: "runs/one"}).init(jax.random.key(0), early)
    assert config.find(f"experiments/mpt_{option}.gin").is_file()


@pytest.fixture(scope="module")
def flat():
    return small_model.flat(CONFIG)


@pytest.fixture(scope="module")
def batch():
    return {**small_model.batch(), "task_ids": np.array([0, 1, 2, 1, 0, 0, 2, 1], np.int32)}


def terms(flat, batch, settings, teacher, student):
    """The distillation terms of an MPT whose prompts are exactly `student` [3, P, D]."""
    method = MPT(length=student.shape[1], rank=student.shape[1], teachers="run", distillation=settings)
    # Of full rank, so that any prompts can be written.
    shared = np.ones(student.shape[1:], np.float32)
    u = np.repeat(np.eye(student.shape[1], dtype=np.float32)[None], 3, 0)
    params = {"shared": shared, "u": u, "v": student, "teacher": teacher}
    weights = batch["decoder_loss_weights"]
    data = {**batch, "decoder_loss_weights": weights / weights.sum()}

    @small_model.jit
    def run(params, data):
        backbone = t5.Backbone(CONFIG, states.unflatten(flat)["backbone"])
        made = method.condition(params, data, backbone)
        outputs = backbone(data["encoder_input_tokens"], data["decoder_input_tokens"], made, hidden=True)
        return method.losses(params, data, outputs, backbone), outputs

    return jax.device_get(run(params, data))


def test_a_student_that_is_its_teacher_loses_nothing(flat, batch, teachers):
    prompts = teachers.params["prompt"]
    for layers in ("last", "all"):
        found, _ = terms(flat, batch, Distillation(layers=layers), prompts, prompts)
        assert set(found) == {"distil_logits", "distil_hidden"} and all(abs(x) < 1e-6 for x in found.values())
        other, _ = terms(flat, batch, Distillation(layers=layers), prompts, prompts[::-1].copy())
        assert all(x > 1e-3 for x in other.values())
    only, _ = terms(flat, batch, Distillation(hidden=0.0), prompts, prompts)
    assert set(only) == {"distil_logits"}


def test_distillation_against_numpy(flat, batch, teachers):
    prompts, T = teachers.params["prompt"], 2.0
    student = prompts[::-1].copy()
    settings = Distillation(logits=0.5, hidden=0.25, temperature=T)
    found, out = terms(flat, batch, settings, prompts, student)
    _, taught = terms(flat, batch, settings, prompts, prompts)
    weights = batch["decoder_loss_weights"].astype(np.float64)

    def log_softmax(x):
        x = x.astype(np.float64) / T
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(taught.logits), log_softmax(out.logits)
    kl = ((np.exp(p) * (p - q)).sum(-1) * weights).sum() / weights.sum()
    assert found["distil_logits"] == pytest.approx(0.5 * T**2 * kl, rel=1e-4)

    unit = lambda x: x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True))
    total = 0.0
    for name, mask in (("encoder_hidden", batch["encoder_input_tokens"] > 0), ("decoder_hidden", weights > 0)):
        a, b = (unit(getattr(o, name)[-1])[:, -mask.shape[1] :] for o in (out, taught))
        per_row = ((a - b) ** 2).mean(-1)
        per_row = (per_row * mask).sum(-1) / mask.sum(-1)
        total += (per_row * weights.sum(-1)).sum() / weights.sum() / 2
    assert found["distil_hidden"] == pytest.approx(0.25 * total, rel=1e-3)


def trained(flat, batch, method, run=None, steps=4, rates=(0.3, 0.4), start=None):
    own = method.init(jax.random.key(0), setting(run)) if start is None else start
    variables = {**flat, **states.flatten({"method": jax.device_get(own)})}
    params, frozen = states.split(variables, method.trainable)
    optimizer = Optimizer("adamw", Schedule(rates[0]), multipliers={"method/[uv]": rates[1] / rates[0]})
    tx = optimizer.build(steps, method.banked)
    step = small_model.jit(make_train_step(CONFIG, method, tx, Schedule(rates[0]).build(steps), Loss(z_loss=0.0)))
    state = states.create(params, tx)
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
    return params, jax.device_get(state), jax.device_get(metrics), frozen


def test_source_training_moves_the_prompt_and_its_factors_and_no_teacher(flat, batch, teachers):
    method = MPT(length=P, teachers="run", initialiser=Uniform())
    before, state, metrics, frozen = trained(flat, batch, method, teachers)
    assert set(before) == {"method/shared", "method/u", "method/v"} and "method/teacher" in frozen
    assert all((state.params[name] != before[name]).any() for name in before)
    assert metrics["loss/distil_logits"] > 0 and metrics["loss/distil_hidden"] > 0
    # Without weight, distillation changes nothing, step for step.
    none = dataclasses.replace(method, distillation=Distillation(logits=0.0, hidden=0.0))
    plain = dataclasses.replace(method, teachers=None)
    _, a, *_ = trained(flat, batch, none, teachers)
    _, b, *_ = trained(flat, batch, plain)
    assert small_model.worst(a.params, b.params) < 1e-6
    assert small_model.worst(state.params, b.params) > 1e-3


def test_a_group_with_a_rate_of_zero_stays(flat, batch):
    method = MPT(length=P, initialiser=Uniform())
    before, state, *_ = trained(flat, batch, method, rates=(0.3, 0.0))
    assert all(np.array_equal(state.params[f"method/{n}"], before[f"method/{n}"]) for n in "uv")
    assert (state.params["method/shared"] != before["method/shared"]).all()


def test_a_target_added_later_leaves_the_others_alone(flat, batch):
    """With P* frozen, training one task moves no other's factors, nor the shared prompt."""
    method = MPT(length=P, initialiser=Uniform(), train_shared=False)
    only = {**batch, "task_ids": np.full(8, 1, np.int32)}
    before, state, _, frozen = trained(flat, only, method)
    assert set(before) == {"method/u", "method/v"}
    for name in before:
        moved = (state.params[name] != before[name]).reshape(3, -1).any(1)
        assert moved.tolist() == [False, True, False]


def test_factors_of_one_are_prompt_tuning(flat, batch):
    """u = v = 1 is the shared prompt itself, also to the gradient."""
    prompt = source().params["shared"]
    rows = {**batch, "task_ids": np.zeros(8, np.int32)}
    ones = {"shared": prompt, "u": np.ones((1, P, 1), np.float32), "v": np.ones((1, 1, D), np.float32)}
    method = MPT(length=P, per_task=False)
    _, mine, mine_metrics, _ = trained(flat, rows, method, rates=(0.1, 0.0), start=ones)
    plain = Prompt(length=P)
    params, frozen = states.split({**flat, "method/prompt": prompt[None]}, plain.trainable)
    tx = Optimizer("adamw", Schedule(0.1)).build(4, plain.banked)
    step = small_model.jit(make_train_step(CONFIG, plain, tx, Schedule(0.1).build(4), Loss(z_loss=0.0)))
    state = states.create(params, tx)
    for _ in range(4):
        state, metrics = step(state, frozen, rows)
    assert metrics["loss"] == pytest.approx(mine_metrics["loss"], rel=1e-5)
    np.testing.assert_allclose(mine.params["method/shared"], state.params["method/prompt"][0], atol=1e-5)


def test_copies_train_one_by_one(flat, batch):
    """Targets side by side, each with its own copy of P*, are targets one after the other."""
    method = MPT(length=P, source="run", copies=True)
    assert shapes(CONFIG, dataclasses.replace(method, source=None, initialiser=Uniform()), 3) == 3 * (P * D + P + D)
    _, together, *_ = trained(flat, batch, method, source())
    for task in range(3):
        rows = batch["task_ids"] == task
        mine = {name: value[rows] for name, value in batch.items()} | {"task_ids": np.zeros(rows.sum(), np.int32)}
        start = MPT(length=P, source="run").init(jax.random.key(0), setting(source(), ("t",)))
        _, alone, *_ = trained(flat, mine, MPT(length=P, per_task=False), start=start)
        np.testing.assert_allclose(together.params["method/shared"][task], alone.params["method/shared"], atol=1e-4)
        np.testing.assert_allclose(together.params["method/u"][task], alone.params["method/u"][0], atol=1e-4)
