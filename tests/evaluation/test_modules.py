"""The module store: what is taken from it conditions as what the method makes, whatever batches, places and files."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import instructed
import jax
import numpy as np
import pytest
import tiny_t5
from zeroprompt_jax.data.batches import EvalSet, Features
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import evaluate as evaluation, modules
from zeroprompt_jax.evaluation.modules import SUFFIX, ModuleStore
from zeroprompt_jax.evaluation.predict import Predictor
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.generated import Adapter, LoRA, Prefix
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.models import decoding, t5

pytestmark = pytest.mark.usefixtures("compile_fast")
CONFIG = tiny_t5.config(num_encoder_layers=1, num_decoder_layers=2)
METHOD = instructed.Instructed()
VARIABLES = {"backbone": tiny_t5.params(CONFIG), "method": instructed.params(CONFIG)}
HINT = Hint((Prefix(2), Adapter(3), LoRA(2, ".*")))
METHODS = {
    "instructed": METHOD,
    "hint": HINT,
    "no_fusion": dataclasses.replace(HINT, fusion=False),
    "hypter": Hypter((Adapter(3), Prefix(2))),
}
LENGTH = 24
TASKS = instructed.instructions(6, LENGTH)  # of 14 to 24 tokens: two of the lengths that compile
ENCODER, DECODER = tiny_t5.tokens(rows=4)
TRACES = []  # grows whenever `outputs` is compiled


def store(capacity=4, variables=VARIABLES, config=CONFIG, method=METHOD, length=LENGTH, **options) -> ModuleStore:
    return ModuleStore(variables, config, method, length, capacity, **options)


def variables_of(method) -> dict:
    """Random, and large enough to matter."""
    if method is METHOD:
        return VARIABLES
    rng = np.random.default_rng(0)
    draw = lambda leaf: (1.2 * rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2:][0])).astype(np.float32)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), Setting(CONFIG)))
    return {**VARIABLES, "method": jax.tree.map(draw, shapes)}


@functools.partial(tiny_t5.jit, static_argnames=("strategy", "method"))
def outputs(variables, batch, strategy=None, method=METHOD):
    """Logits, or answers with their scores, with the method's own conditioning or what a store attached."""
    TRACES.append(strategy)
    backbone = t5.Backbone(CONFIG, variables["backbone"])
    conditioning = modules.condition(variables, batch, method, backbone)
    if strategy is None:
        return backbone(ENCODER, DECODER, conditioning).logits
    return tuple(decoding.generate(backbone, ENCODER, conditioning, strategy, 4))


def uncached(tasks, strategy=None):
    return outputs(VARIABLES, {"instruction_tokens": TASKS[list(tasks)]}, strategy=strategy)


def cached(kept, tasks, strategy=None):
    return outputs(VARIABLES, kept.attach({"instruction_tokens": TASKS[list(tasks)]}), strategy=strategy)


def near(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


MIXED = (0, 3, 1, 0)


@pytest.mark.parametrize("name", METHODS)
def test_cached_equals_uncached_in_batches_that_mix_tasks(name):
    method, variables = METHODS[name], variables_of(METHODS[name])
    kept = store(method=method, variables=variables)
    told = lambda tasks: {"instruction_tokens": TASKS[list(tasks)]}
    run = lambda batch, strategy=None: outputs(variables, batch, strategy=strategy, method=method)
    want = run(told(MIXED))
    near(run(kept.attach(told(MIXED))), want)
    near(run(kept.attach(told(MIXED))), want)  # now from the bank
    assert kept.generated == 3
    alone = (3, 3, 3, 3)  # the bank's slice of one task serves all rows
    one = run(kept.attach(told(alone)))
    near(one, run(told(alone)))
    assert kept.generated == 3
    assert np.abs(one - want).max() > 1e-2, "instructions must matter"
    for strategy in {"instructed": (decoding.Greedy(), decoding.Beam(2)), "hint": (decoding.Greedy(),)}.get(name, ()):
        near(run(kept.attach(told(MIXED)), strategy), run(told(MIXED), strategy))


def test_what_leaves_the_bank_comes_back_and_nothing_compiles():
    kept = store(capacity=3)
    for tasks in ((0, 1, 2, 0), (3, 4, 5, 3)):
        kept.attach({"instruction_tokens": TASKS[list(tasks)]})
    assert kept.generated == 6
    # The least recent leave first: now 3, then 4.
    near(cached(kept, (0, 5, 1, 0)), uncached((0, 5, 1, 0)))
    near(cached(kept, (5, 5, 3, 4)), uncached((5, 5, 3, 4)))
    assert kept.generated == 6
    sizes = modules.generate_step._cache_size(), kept._write._cache_size(), len(TRACES)
    more = instructed.instructions(6, LENGTH, seed=1)
    for rows in (more[[0, 1, 2, 0]], more[[3, 4, 5, 3]], TASKS[:3], more[:3]):
        outputs(VARIABLES, kept.attach({"instruction_tokens": np.resize(rows, (4, LENGTH))}), strategy=None)
    assert kept.generated == 12
    assert (modules.generate_step._cache_size(), kept._write._cache_size(), len(TRACES)) == sizes
    with pytest.raises(UserError, match="4 different instructions, more than the 3"):
        kept.places(TASKS[:4])
    with pytest.raises(UserError, match="25 tokens, more than the module store's 24"):
        kept.places(np.ones((1, 25), np.int32))


def test_the_host_keeps_the_tasks_asked_for_lately():
    kept, none = store(capacity=3, host_capacity=2), store(capacity=3, host_capacity=0)
    for tasks in ((0, 1, 2, 0), (3, 4, 5, 3)):  # 0, 1, 2 leave the bank in turn, and 0 the host's memory too
        for each in (kept, none):
            each.places(TASKS[list(tasks)])
    near(cached(kept, (1, 1, 2, 2)), uncached((1, 1, 2, 2)))
    assert kept.generated == none.generated == 6
    near(cached(kept, (0, 2, 0, 2)), uncached((0, 2, 0, 2)))
    near(cached(none, (0, 2, 0, 2)), uncached((0, 2, 0, 2)))
    assert (kept.generated, none.generated) == (7, 8)


def test_a_bank_that_grows_keeps_its_tasks():
    kept = store(capacity=2)
    kept.places(TASKS[[0, 1]])
    kept.grow(4)
    kept.grow(3)
    assert kept.capacity == 4 and str(kept).startswith("4 tasks of 0.0")
    near(cached(kept, (0, 1, 2, 3)), uncached((0, 1, 2, 3)))
    near(cached(kept, MIXED), uncached(MIXED))
    assert kept.generated == 4 and kept.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(kept.bank))


@pytest.mark.parametrize("step", ["_write", "_take"])
def test_an_interrupt_leaves_no_task_with_anothers_modules(step, monkeypatch):
    kept = store(capacity=3)
    kept.places(TASKS[:3])
    original, calls = getattr(kept, step), []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(kept, step, interrupted)
        kept.places(TASKS[3:4])
        with pytest.raises(KeyboardInterrupt):
            kept.places(TASKS[4:5])
    for tasks in ((1, 2, 3, 1), (4, 0, 4, 0), (5, 5, 5, 5), MIXED):
        near(cached(kept, tasks), uncached(tasks))
    assert sorted(kept._places.values()) == [0, 1, 2]


def test_padding_and_the_length_of_the_store_change_nothing():
    kept = store(length=40)
    wide = np.pad(TASKS[list(MIXED)], ((0, 0), (0, 16)))
    near(outputs(VARIABLES, kept.attach({"instruction_tokens": wide})), uncached(MIXED))


def test_size_is_known_before_anything_is_made():
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        kept = store(capacity=5, dtype=dtype)
        assert kept.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(kept.bank)) == 5 * kept.task_bytes
        assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.bank)} == {dtype, "bool"}
        c, P, R = CONFIG, instructed.P, instructed.R
        D, L, E, HK = c.emb_dim, c.num_decoder_layers, c.num_encoder_layers, c.num_heads * c.head_dim
        values = L * (2 * (P + LENGTH) * HK + 3 * (D + HK) * R + 3 * HK) + E * 2 * D * R + P * D
        assert kept.task_bytes == width * values + L * (P + LENGTH)  # and the mask of cross-attention's prefix


def test_half_precision_is_near():
    want, got = uncached(MIXED), cached(store(dtype="bfloat16"), MIXED)
    difference = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-6 < difference < 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_serve_later_stores(tmp_path, dtype):
    first = store(directory=tmp_path, dtype=dtype)
    want = cached(first, MIXED)
    assert first.generated == len(list(tmp_path.iterdir())) == 3
    later = store(directory=tmp_path, dtype=dtype, capacity=3)
    near(cached(later, MIXED), want, atol=0)
    assert later.generated == 0
    cached(later, (2, 4, 5, 2))
    near(cached(later, MIXED), want, atol=0)
    assert later.generated == 3


def test_files_of_another_model_or_task_are_never_used(tmp_path):
    kept = store(directory=tmp_path)
    want = cached(kept, (0, 0, 0, 0))
    (file,) = tmp_path.iterdir()
    moved = {**VARIABLES, "method": {**VARIABLES["method"], "scale": np.float32([0.6])}}
    norm = {**VARIABLES["backbone"], "decoder": {**VARIABLES["backbone"]["decoder"]}}
    norm["decoder"]["decoder_norm"] = {"scale": 2 * norm["decoder"]["decoder_norm"]["scale"]}
    for other in (
        store(directory=tmp_path, variables=moved),
        store(directory=tmp_path, variables={**VARIABLES, "backbone": norm}),
        store(directory=tmp_path, config=dataclasses.replace(CONFIG, relpos_max_distance=20)),
        store(directory=tmp_path, method=instructed.Instructed(fusion=False)),
        store(directory=tmp_path, dtype="bfloat16"),
        store(directory=tmp_path, length=32),
    ):
        task = TASKS[0][TASKS[0] > 0].tobytes()
        assert other.path(task) != kept.path(task) and other._load(task) is None
        other.path(task).write_bytes(file.read_bytes())
        assert other._load(task) is None, "a file under another's name"
        other.path(task).unlink()
    file.write_bytes(file.read_bytes()[:-10])  # cut short: made again, and mended
    again = store(directory=tmp_path)
    near(cached(again, (0, 0, 0, 0)), want, atol=0)
    assert again.generated == 1 and store(directory=tmp_path)._load(task) is not None


def test_bad_stores_are_named():
    for options, words in [
        ({"dtype": "float16"}, "dtype of a module store 'float16'"),
        ({"capacity": 0}, "capacity is 0"),
        ({"method": Full()}, "method Full reads no instruction"),
    ]:
        with pytest.raises(UserError, match=words):
            store(**options)


FEATURES = Features(inputs=64, targets=5, instructions=24, instruct_inputs=False)
TEXTS = ["ab bcd", "cab", "dad ca abba", "x", "abba ab", "ca"]
NAMES = ["words", "long", "words", "own", "long", "words"]


@pytest.fixture
def predictor(config, variables, vocabulary):
    variables = {**variables, "method": instructed.params(config)}
    told = {"words": "Do words.", "long": "Please long now.", "own": "Choose."}
    return Predictor(config, variables, METHOD, vocabulary, FEATURES, told, batch_size=4)


def test_a_predictor_generates_each_task_once(predictor, tmp_path, monkeypatch):
    kept = dataclasses.replace(predictor, module_store=str(tmp_path))
    got, scores = kept.predict(TEXTS, NAMES), kept.score(TEXTS, ["ab", "ca"], NAMES)
    assert kept.modules.generated == 3 and len(list(tmp_path.glob(f"*{SUFFIX}"))) == 3
    later = dataclasses.replace(kept)
    assert later.predict(TEXTS, NAMES) == got and later.modules.generated == 0
    monkeypatch.setattr(instructed.Instructed, "reads_instructions", False)
    plain = predictor.predict(TEXTS, NAMES)
    assert [p.text for p in got] == [p.text for p in plain]
    np.testing.assert_allclose([p.score for p in got], [p.score for p in plain], atol=1e-5)
    # Sums of log-probabilities, up to -60, where float32 itself is spaced by 4e-6.
    np.testing.assert_allclose(scores, predictor.score(TEXTS, ["ab", "ca"], NAMES), rtol=2e-6, atol=1e-5)
    with pytest.raises(UserError, match="module_store is set, but the method Instructed"):
        dataclasses.replace(predictor, module_store=str(tmp_path))


def test_a_predictors_bank_is_as_large_as_its_calls_need(predictor):
    told = {f"task{i}": f"Say {i}." for i in range(6)}
    many = dataclasses.replace(predictor, instructions=told, batch_size=8)
    first = many.predict(TEXTS[:1], "task0")
    assert many.modules.capacity == 4
    got = many.predict(TEXTS, list(told))
    assert many.modules.capacity == 8 and many.modules.generated == 6 and got[0].text == first[0].text
    half = dataclasses.replace(many, module_capacity=6, module_dtype="bfloat16")
    half.predict(TEXTS, list(told))
    assert half.modules.capacity == 6 and half.modules.task_bytes < 0.6 * many.modules.task_bytes
    with pytest.raises(UserError, match="6 different instructions, more than the 2"):
        dataclasses.replace(many, module_capacity=2).predict(TEXTS, list(told))
    for field, value in (("module_capacity", 4), ("module_dtype", "bfloat16")):
        with pytest.raises(UserError, match=f"{field} is set, but the method Full reads no instruction"):
            dataclasses.replace(many, method=Full(), **{field: value})


def test_evaluation_generates_each_instruction_once(config, variables, vocabulary, store, monkeypatch):
    variables = {**variables, "method": instructed.params(config)}
    settings = evaluation.Evaluate(batch_size=8, max_examples_per_task=6, control=False)
    groups = {"seen": ["words"]}
    run = lambda: evaluation.evaluate(variables, config, METHOD, store, groups, "test", FEATURES, vocabulary, settings)
    made = []
    monkeypatch.setattr(modules, "ModuleStore", lambda *a, **k: made.append(ModuleStore(*a, **k)) or made[-1])
    got = run()
    told = EvalSet(store, groups["seen"], "test", FEATURES, max_examples=6, seed=settings.seed)
    count = len(np.unique(next(told.batches(len(told)))["instruction_tokens"], axis=0))
    assert made[0].generated == count
    monkeypatch.setattr(instructed.Instructed, "reads_instructions", False)
    want = run()
    assert len(made) == 1 and count == 3  # the held-out wordings
    assert got.tasks[0]["score"] == want.tasks[0]["score"]
    assert got.tasks[0]["loss"] == pytest.approx(want.tasks[0]["loss"], abs=1e-5)


@pytest.mark.slow
def test_eight_devices_serve_what_one_serves():
    script = Path(__file__).with_name("eight_devices.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(script.parent.parent / "training"), *sys.path])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("devices") == 8
    bank = found.pop("eight models")  # ranks of 4 and 2 do not divide over them, heads do
    assert bank["encoder.mlp.adapter.down"] == [None] * 4 and bank["encoder.self_attention.prefix.key"][3] == "model"
    for name, case in found.items():
        for run in case.values():
            # One task more than the bank holds leaves it, and is read back from the host instead of generated again.
            assert run["difference"] <= 1e-5 and run["generated"] == (5 if name == "mixed" else 3), found
    # Heads and ranks over `model`; of the bank no task is divided, of what a batch takes the rows are. L and G come first.
    places = {
        "decoder.cross_attention.prefix.key": (None, "model", None),
        "encoder.self_attention.prefix.value": (None, "model", None),
        "encoder.mlp.adapter.down": (None, "model"),
        "encoder.mlp.adapter.down_bias": ("model",),
        "encoder.mlp.adapter.up_bias": (None,),
        "decoder.mlp.adapter.up": ("model", None),
        "decoder.self_attention.lora.query.a": (None, "model"),
        "decoder.self_attention.lora.query.b": ("model", None),
    }
    for path, behind in places.items():
        for name, rows in (("mixed", ["data", "fsdp"]), ("one task", None)):
            run = found[name]["(2, 2, 2)"]
            assert run["bank"][path] == [None, None, *behind], path
            assert run["taken"][path] == [None, rows, *behind], path
