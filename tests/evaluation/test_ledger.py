"""The FLOPs ledger against what XLA counts, and the serving step's cost against the instruction's length."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from zeroprompt_jax.cli import main as cli
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import benchmark, ledger, predict
from zeroprompt_jax.evaluation.modules import ModuleStore
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.full import Full
from zeroprompt_jax.methods.hint import Hint
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.models import decoding, flops, t5

CONFIG = t5.T5Config(
    vocab_size=64,
    emb_dim=64,
    num_heads=2,
    head_dim=48,
    mlp_dim=96,
    num_encoder_layers=2,
    num_decoder_layers=1,
    dropout_rate=0.0,
    dtype="float32",
    scan_layers=False,
)
KINDS = (generated.Prefix(4), generated.Adapter(8))
HINT = Hint(KINDS)


@functools.cache
def shapes(method, config=CONFIG):
    def make():
        key = jax.random.key(0)
        backbone = t5.init(config, key)
        return {"backbone": backbone, "method": method.init(key, Setting(config, backbone=backbone))}

    return jax.eval_shape(make)


def counted(function, *args, **static) -> float:
    analysis = function.lower(*args, **static).cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize(
    "method",
    [HINT, Hint((generated.LoRA(8), generated.Prompt(3))), Hint((), True), Hint(KINDS, False), Hypter()],
    ids=["hint", "lora", "no hypernetwork", "no fusion", "hypter"],
)
def test_a_tasks_cost_agrees_with_xla(method):
    """Instruction to modules: hyperencoder and generator, then the fused keys and values."""
    found = ledger.count(CONFIG, method, 40, 24, 8)
    tokens = np.ones((1, 40), np.int32)

    @jax.jit
    def make(variables):
        backbone = t5.Backbone(CONFIG, variables["backbone"])
        return method.condition(variables["method"], {"instruction_tokens": tokens}, backbone)

    encoder = jax.jit(lambda v: t5.Backbone(CONFIG, v["backbone"]).encode(tokens))
    assert counted(encoder, shapes(method)) == pytest.approx(found.task["hyperencoder"], rel=0.15)
    assert ("fused keys and values" in found.task) == ("fused instruction" in found.example) == method.fusion
    # Each part alone: in their sum a small one could be missing.
    alone = counted(make, shapes(method)) - counted(encoder, shapes(method))
    assert alone == pytest.approx(found.task.get("generator", 0), rel=0.15, abs=1)


def serving(method, length: int, targets: int = 2):
    """The lowered serving step: answers to four inputs of known tasks, modules taken from a bank."""
    store = ModuleStore(shapes(method), CONFIG, method, length, capacity=2)
    batch = {"encoder_input_tokens": np.ones((4, 24), np.int32), "row_seeds": np.zeros(4, np.uint32)}
    batch |= {"modules": store.bank, "module_places": np.zeros(4, np.int32)}
    wanted = {"strategy": decoding.Greedy(), "max_length": targets, "eos_id": 1}
    return predict._generate.lower(shapes(method), batch, config=CONFIG, method=method, **wanted)


def flop(analysed) -> float:
    analysis = analysed.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lowered", "compiled"])
def test_one_more_example_of_a_known_task_does_not_cost_more_for_a_longer_instruction(compiled):
    lengths = (16, 128, 1024)

    def cost(method):
        steps = [serving(method, length) for length in lengths]
        return [flop(step.compile() if compiled else step) for step in steps]

    assert len(set(cost(Hint(KINDS, fusion=False)))) == 1
    fused = cost(HINT)
    # Of the loop over tokens XLA counts one turn, so two tokens of each answer are counted: the first and that of a turn.
    terms = [4 * ledger.count(CONFIG, HINT, length, 24, 2).example["fused instruction"] for length in lengths]
    for i in (1, 2):
        assert fused[i] - fused[0] == pytest.approx(terms[i] - terms[0], rel=0.05)
    read = [flops.forward(CONFIG, 4, length + 24, 2) for length in lengths]
    assert read[2] - read[0] > 50 * (fused[2] - fused[0]), "concatenation, the control, grows with the instruction"


def test_break_even_is_the_first_number_of_examples_that_pays():
    found = ledger.count(CONFIG, HINT, 64, 16, 4)
    n = found.break_even
    assert n > 1 and found.cost(n) < found.concatenation(n) and found.cost(n - 1) >= found.concatenation(n - 1)
    assert found.concatenated == flops.forward(CONFIG, 1, 79, 4), "one EOS less than apart"
    assert found.paper_cost(1) == found.parameters * 80 and found.paper_concatenation(2) == found.parameters * 158
    assert found.paper_cost(100) == found.parameters * (64 + 1600)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes(HINT)["backbone"]))
    assert dataclasses.replace(found, concatenated=sum(found.example.values())).break_even is None
    text = ledger.table(found, 100)
    for line in ("hyperencoder", "generator", "fused keys and values", "adapters", f"from {n:,} examples"):
        assert line in text
    assert f"{found.cost(100) / found.concatenation(100):.3f} of concatenation" in text


def test_mistakes_are_named():
    for arguments, words in [
        ((Full(), 8, 8, 8), "hypernetworks, Hint and Hypter; the method is Full"),
        ((HINT, 0, 8, 8), "instruction length is 0"),
    ]:
        with pytest.raises(UserError, match=words):
            ledger.count(CONFIG, *arguments)
    with pytest.raises(UserError, match="reads no instruction"):
        next(benchmark.serving(CONFIG, Method()))


SMALL = [
    *("--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1", "--gin.T5Config.vocab_size=64"),
    *("--gin.T5Config.emb_dim=16", "--gin.T5Config.mlp_dim=16", "--gin.T5Config.num_heads=2"),
    *("--gin.T5Config.head_dim=8", "--gin.PREFIX_LENGTH=2", "--gin.ADAPTER_RANK=2"),
]


def test_the_verb_prints_the_table_and_draws(tmp_path, capsys):
    picture = tmp_path / "new" / "cost.png"
    argv = ["flops", "--examples=50", "--instruction=40", "--input=8", "--target=4", f"--output={picture}", *SMALL]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("Counted for models/t5_1_1_base.gin, methods/hint.gin, changed by T5Config.num_encoder_")
    assert "50 examples" in out and "paper's formula" in out and picture.stat().st_size > 10_000
    assert cli.main(["flops", "--instruction=4", "--input=8", "--target=4", "--output=cost.pdf"]) == 2
    assert cli.main([*argv, "--gin.Experiment.method=@methods.Full()"]) == 2
    assert "must end in .png" in (err := capsys.readouterr().err) and "the method is Full" in err


@pytest.mark.slow
def test_serving_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.serving, "__defaults__", (*benchmark.serving.__defaults__[:-1], (16, 32)))
    argv = [
        "bench",
        "serving",
        "--inputs=8",
        "--targets=2",
        "--steps=1",
        f"--output={tmp_path / 'serving.png'}",
        *SMALL,
    ]
    assert cli.main(argv) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["instruction"] for r in records] == [16, 32]
    assert all(r["known_s"] > 0 and r["concatenation_s"] > 0 and r["generate_s"] > 0 for r in records)
    assert (tmp_path / "serving.png").stat().st_size > 10_000
