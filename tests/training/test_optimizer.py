"""Optimizers and schedules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.models import t5
from zeroprompt_jax.models.backbone import unstack_layers
from zeroprompt_jax.training import state as states
from zeroprompt_jax.training.optimizer import OPTIMIZERS, Optimizer, Schedule, over_leading_axis


def run(tx, params, gradients, steps: int = 5):
    """Parameters after `steps` updates with gradients(step)."""

    @small_model.jit
    def update(gradient, state, params):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = small_model.jit(tx.init)(params)
    for step in range(steps):
        params, state = update(gradients(step), state, params)
    return jax.device_get(params)


def noise(like, seed: int):
    """Gradients whose slices along the first axis differ in size by orders of magnitude."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        sizes = 10.0 ** -np.arange(leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
        return (rng.normal(size=leaf.shape) * sizes).astype(np.float32)

    return jax.tree.map(draw, like)


@pytest.mark.parametrize("inner", ["adafactor", "adamw", "clip"])
def test_over_leading_axis_is_a_run_per_slice(inner):
    tx = {
        "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
        "adamw": optax.adamw(0.1, weight_decay=0.1),
        "clip": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    }[inner]
    params = {"a": np.linspace(0.1, 2, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5), "b": np.ones((3, 2), np.float32)}
    gradients = lambda step: noise(params, step)
    together = run(over_leading_axis(tx), params, gradients)
    for i in range(3):
        cut = lambda tree: jax.tree.map(lambda x: x[i], tree)
        alone = run(tx, cut(params), lambda step: cut(gradients(step)))
        assert small_model.worst(cut(together), alone) < 1e-6
    if inner != "adamw":  # it works value by value; the others' statistics couple the slices
        assert small_model.worst(run(tx, params, gradients), together) > 1e-3


def test_over_leading_axis_of_nothing():
    tx = over_leading_axis(optax.adafactor(0.1))
    assert tx.update({}, tx.init({}), {})[0] == {}


@pytest.mark.parametrize("layers", [(2, 2), (2, 3)])
def test_adafactor_trains_scanned_layers_as_it_would_one_by_one(layers):
    # Widths of 128 and more are where optax factors the second moments.
    sizes = dict(emb_dim=128, mlp_dim=128, num_heads=2, head_dim=64, scan_layers=True)
    config = small_model.config(**sizes, num_encoder_layers=layers[0], num_decoder_layers=layers[1])
    shapes = states.flatten({"backbone": jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))})
    shapes = {path: leaf for path, leaf in shapes.items() if re.search("mlp|embedd|decoder_attention/out", path)}
    scanned, gradients = noise(shapes, 99), [noise(shapes, seed) for seed in range(5)]
    apart = lambda flat: states.flatten({"backbone": unstack_layers(states.unflatten(flat)["backbone"])})
    tx = Optimizer("adafactor", Schedule(0.1)).build(5)
    together = run(tx, scanned, lambda step: gradients[step])
    alone = run(tx, apart(scanned), lambda step: apart(gradients[step]))
    assert len(alone) > len(together) and small_model.worst(alone, apart(together)) < 1e-6
    if layers == (2, 2):
        naive = run(optax.adafactor(lambda step: 0.1), scanned, lambda step: gradients[step])
        assert small_model.worst(naive, together) > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"weight_decay": 0.1, "multipliers": {"t.*": 0.5}}]
)
def test_adafactor_is_optax_s(options):
    """Parameters above and below the least scale, factored and not."""
    params = {"table": (128, 130), "small": (4, 5), "tiny": (128, 128), "scale": (7,)}
    params = noise({path: np.zeros(shape) for path, shape in params.items()}, 99)
    params["tiny"] = params["tiny"] * np.float32(1e-5)
    gradients = [noise(params, seed) for seed in range(5)]
    ours = run(Optimizer("adafactor", Schedule(0.1), **options).build(5), params, lambda step: gradients[step])
    named = {"momentum": options.get("momentum"), "weight_decay_rate": options.get("weight_decay")}
    times = 0.5 if "multipliers" in options else 1.0
    slower = optax.stateless(lambda updates, _: {path: x * (times if path[0] == "t" else 1) for path, x in updates.items()})
    theirs = run(optax.chain(optax.adafactor(0.1, **named), slower), params, lambda step: gradients[step])
    assert small_model.worst(ours, theirs) < 1e-6 < 1e-3 < small_model.worst(ours, params)


def test_only_what_trains_needs_to_hold_layers():
    prompt = {"method/prompt": np.ones((3, 4), np.float32)}
    moved = run(Optimizer("adafactor", Schedule(0.1)).build(5), prompt, lambda step: noise(prompt, step))
    assert not np.array_equal(moved["method/prompt"], prompt["method/prompt"])


@pytest.mark.parametrize(
    "schedule, values",
    [
        (Schedule(2.0), {0: 2, 50: 2, 99: 2}),
        (Schedule(2.0, warmup_steps=10), {0: 0.2, 4: 1.0, 9: 2, 10: 2, 99: 2}),
        (Schedule(2.0, "linear", 20), {0: 0.1, 19: 2, 20: 2, 60: 1, 99: 2 / 80, 100: 0, 120: 0}),
        (Schedule(2.0, "linear"), {0: 2, 50: 1, 100: 0}),
        (Schedule(2.0, "cosine", 20), {19: 2, 20: 2, 40: 1 + np.cos(np.pi / 4), 60: 1, 100: 0}),
        (Schedule(2.0, "rsqrt", 25), {0: 0.08, 24: 2, 99: 1, 399: 0.5}),
        (Schedule(2.0, "rsqrt"), {0: 2, 3: 1, 99: 0.2}),
    ],
)
def test_schedules_at_key_steps(schedule, values):
    rate = schedule.build(100)
    for step, value in values.items():
        assert float(rate(jnp.int32(step))) == pytest.approx(value, rel=1e-5, abs=1e-7), step


def test_every_optimizer_follows_its_schedule():
    params = {"backbone/w": np.ones(4, np.float32)}
    for name in OPTIMIZERS:
        tx = Optimizer(name, Schedule(1.0, "linear")).build(1)  # whose rate is zero after the first step
        first, later = (run(tx, params, lambda step: noise(params, step), steps=n) for n in (1, 4))
        assert np.array_equal(first["backbone/w"], later["backbone/w"])
        assert not np.array_equal(first["backbone/w"], params["backbone/w"])
    moved = run(Optimizer("sgd", Schedule(1.0, "linear")).build(2), params, lambda step: params, steps=2)
    assert moved["backbone/w"] == pytest.approx(1 - 1 - 0.5)


def test_weight_decay_and_momentum_of_sgd():
    params = {"backbone/w": np.full(4, 2.0, np.float32)}
    none = {"backbone/w": np.zeros(4, np.float32)}
    decayed = run(Optimizer("sgd", Schedule(0.5), weight_decay=0.1).build(5), params, lambda step: none, steps=1)
    assert decayed["backbone/w"] == pytest.approx(2 - 0.5 * 0.1 * 2)
    one = {"backbone/w": np.ones(4, np.float32)}
    pushed = run(Optimizer("sgd", Schedule(0.5), momentum=0.5).build(5), params, lambda step: one, steps=2)
    assert pushed["backbone/w"] == pytest.approx(2 - 0.5 * (1 + 1.5))


def test_clip_norm_is_of_the_whole_gradient():
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    gradient = {"a": np.array([3, 0], np.float32), "b": np.array([4], np.float32)}
    for clip, scale in ((1.0, 0.2), (10.0, 1.0), (None, 1.0)):
        moved = run(Optimizer("sgd", Schedule(1.0), clip_norm=clip).build(1), params, lambda step: gradient, steps=1)
        assert moved["a"] == pytest.approx([-3 * scale, 0]) and moved["b"] == pytest.approx([-4 * scale])


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_nadamw():
    params = {"a/kernel": np.zeros((6, 8), np.float32), "embedding": np.zeros((5, 4), np.float32)}
    rng = np.random.default_rng(0)
    gradient = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in params.items()}
    moved = run(Optimizer("muon", Schedule(1.0)).build(5), params, lambda step: gradient, steps=1)
    spread = lambda x: np.divide(*np.linalg.svd(x, compute_uv=False)[[0, -1]])
    assert spread(gradient["a/kernel"]) > 3 > 1.7 > spread(moved["a/kernel"]), "three Newton-Schulz steps even them out"
    alone = run(optax.nadamw(1.0, weight_decay=0.0), params, lambda step: gradient, steps=1)
    assert moved["embedding"] == pytest.approx(alone["embedding"], abs=1e-6)


def test_muon_treats_the_layers_of_a_scanned_stack_one_by_one():
    stacked = {"encoder/layers/wi/kernel": np.ones((3, 4, 6), np.float32)}
    together = run(Optimizer("muon", Schedule(0.1)).build(5), stacked, lambda step: noise(stacked, step))
    for i in range(3):
        cut = lambda tree: jax.tree.map(lambda x: x[i], tree)
        alone = run(Optimizer("muon", Schedule(0.1)).build(5), cut(stacked), lambda step: cut(noise(stacked, step)))
        assert small_model.worst(cut(together), alone) < 1e-4


def test_multipliers_scale_the_rate_of_what_they_match():
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32), "ab": np.zeros(2, np.float32)}
    gradient = {path: np.ones(2, np.float32) for path in params}
    optimizer = Optimizer("sgd", Schedule(1.0), multipliers={"a": 0.5, ".?b": 0.0, "ab": 9.0})
    moved = run(optimizer.build(1), params, lambda step: gradient, steps=1)
    assert {path: float(x[0]) for path, x in moved.items()} == {"a": -0.5, "b": 0.0, "ab": 0.0}
    with pytest.raises(UserError, match="'c' matches no parameter"):
        Optimizer("sgd", multipliers={"c": 1.0}).build(1).init(params)
    with pytest.raises(UserError, match="cannot be negative"):
        Optimizer(multipliers={"a": -1.0})


@pytest.mark.parametrize("late", [True, False])
def test_second_moments_of_a_fresh_group_begin_anew_beside_those_of_an_old_one(late):
    """As HINT trains in T5X: the step count goes on at 1,100,000, and the fresh group's offset takes it off again."""
    old = {"backbone/encoder/layers/mlp/wo/kernel": np.full((2, 3, 4), 0.5, np.float32)}
    new = {"method/generator/attention/out/kernel": np.full((3, 4), 0.5, np.float32)}
    gradients = lambda step: noise({**old, **new}, step)
    optimizer = Optimizer("adafactor", Schedule(0.1), decay_offset=-1_100_000, decay_offsets={"method/.*": 0})
    optimizer = optimizer if late else Optimizer("adafactor", Schedule(0.1))
    found = run(optimizer.build(5), {**old, **new}, gradients)

    def alone(params, offset):
        """T5X's update: a count that begins at 1,100,000, and an offset that is taken off it."""
        counts = lambda x: x + 1_100_000 if x.dtype == jnp.int32 else x
        tx = optax.adafactor(0.1, decay_offset=offset)
        tx = over_leading_axis(tx) if params is old else tx
        begun = optax.GradientTransformation(lambda p: jax.tree.map(counts, tx.init(p)), tx.update)
        return run(begun, params, lambda step: {path: gradients(step)[path] for path in params})

    fresh, resumed = alone(new, 1_100_000), alone(old, 0)
    same = lambda wanted: small_model.worst({path: found[path] for path in wanted}, wanted)
    assert same(fresh) < 1e-6
    assert (same(resumed) < 1e-6) == late


def test_decay_offsets_are_checked():
    with pytest.raises(UserError, match="'c' matches no parameter"):
        Optimizer(decay_offsets={"c": 0}).build(1).init({"a": np.zeros(2, np.float32)})
    for name in ("adamw", "muon", "sgd"):
        for field, value in (("decay_offset", -5), ("decay_offsets", {"a": 0})):
            with pytest.raises(UserError, match=f"{field} is of adafactor; the optimizer {name} would ignore it"):
                Optimizer(name, **{field: value})
    with pytest.raises(UserError, match="decay_offset is 7; a run counts its steps from 0"):
        Optimizer(decay_offsets={"a": 7})


@pytest.mark.parametrize(
    "made, wrong, sentence",
    [
        (Optimizer, {"clip_norm": -1.0}, "Optimizer.clip_norm is -1.0; it must be above 0."),
        (Optimizer, {"clip_norm": 0.0}, "Optimizer.clip_norm is 0.0; it must be above 0."),
        (Optimizer, {"clip_norm": float("nan")}, "Optimizer.clip_norm is nan; it must be above 0."),
        (Optimizer, {"weight_decay": -0.1}, "Optimizer.weight_decay is -0.1; it must be at least 0."),
        (Optimizer, {"decay_rate": -0.1}, "Optimizer.decay_rate is -0.1; it must be at least 0."),
        (Optimizer, {"momentum": 1.0}, "Optimizer.momentum is 1.0; it must be at least 0 and below 1."),
        (Optimizer, {"name": "adamw", "b1": 1.5}, "Optimizer.b1 is 1.5; it must be at least 0 and below 1."),
        (Optimizer, {"name": "muon", "b2": -0.5}, "Optimizer.b2 is -0.5; it must be at least 0 and below 1."),
        (Schedule, {"peak": 0.0}, "Schedule.peak is 0.0; it must be above 0."),
        (Schedule, {"peak": -1e-3}, "Schedule.peak is -0.001; it must be above 0."),
        (Schedule, {"warmup_steps": -1}, "Schedule.warmup_steps is -1; it must be at least 0."),
    ],
)
def test_numbers_out_of_range(made, wrong, sentence):
    with pytest.raises(UserError) as e:
        made(**wrong)
    assert str(e.value) == sentence


def test_numbers_at_the_ends_of_their_ranges():
    Optimizer("sgd", Schedule(1e-9, warmup_steps=0), weight_decay=0.0, clip_norm=1e-9, momentum=0.0)
    Optimizer("adamw", b1=0.0, b2=0.0)


@pytest.mark.parametrize(
    "name, field, readers",
    [
        ("adafactor", "b1", "adamw and muon"),
        ("adafactor", "b2", "adamw and muon"),
        ("sgd", "b1", "adamw and muon"),
        ("adamw", "momentum", "adafactor and sgd"),
        ("muon", "momentum", "adafactor and sgd"),
        ("sgd", "decay_rate", "adafactor"),
    ],
)
def test_settings_that_the_optimizer_would_ignore(name, field, readers):
    with pytest.raises(UserError, match=f"Optimizer.{field} is of {readers}; the optimizer {name} would ignore it"):
        Optimizer(name, **{field: 0.5})
    Optimizer(readers.split(" and ")[0], **{field: 0.5})
    Optimizer(name, **{field: getattr(Optimizer(), field)})  # as the resolved configuration writes it


def test_unknown_names_and_impossible_warm_ups():
    with pytest.raises(UserError, match="Unknown optimizer 'adamv'. Did you mean 'adamw'?"):
        Optimizer("adamv")
    with pytest.raises(UserError, match="Unknown schedule 'cosin'. Did you mean 'cosine'?"):
        Schedule(kind="cosin")
    for kind in ("linear", "cosine"):
        with pytest.raises(UserError, match="Schedule.warmup_steps is 200, but training has only 100 steps: set .* to 10, "):
            Optimizer("adamw", Schedule(kind=kind, warmup_steps=200)).build(100)
    Optimizer("adamw", Schedule(kind="rsqrt", warmup_steps=200)).build(100)
