"""The FLOPs ledger: what n examples of one task cost when a hypernetwork reads the instruction once, beside
concatenation, which reads it with every input. Counted from shapes, and by the formula of the HINT paper."""

import dataclasses
import math
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import report
from zeroprompt_jax.methods import generated
from zeroprompt_jax.methods.base import Method, Setting
from zeroprompt_jax.methods.hint import Hint, Hypernetwork
from zeroprompt_jax.methods.hypter import Hypter
from zeroprompt_jax.models import flops, t5
from zeroprompt_jax.models.conditioning import Conditioning
from zeroprompt_jax.models.t5 import Backbone, T5Config


@dataclasses.dataclass(frozen=True)
class Ledger:
    """FLOPs of one task; 2 per multiply-add, matrix products only.

    Attributes:
      method: its name.
      instruction, inputs, targets: token lengths.
      task: by part, what is done once per task: the hyperencoder, the generator, and the keys and values of the fused
        instruction.
      example: by part, what each example costs when the task's modules are kept.
      concatenated: what each example costs with the instruction in its input.
      parameters: of the backbone, all of them.
    """

    method: str
    instruction: int
    inputs: int
    targets: int
    task: Mapping[str, float]
    example: Mapping[str, float]
    concatenated: float
    parameters: int

    @property
    def joined(self) -> int:
        """Tokens that concatenation reads per example: of the two EOS, one."""
        return self.instruction + self.inputs - 1

    def cost(self, examples: int) -> float:
        """The instruction read once, then so many examples."""
        return sum(self.task.values()) + examples * sum(self.example.values())

    def concatenation(self, examples: int) -> float:
        return examples * self.concatenated

    def paper_cost(self, examples: int) -> float:
        """HINT's own accounting (Ivison et al. 2023, section 3): N FLOPs per token read, as each meets one of the two
        stacks, and nothing for the output, for generation or for modules."""
        return float(self.parameters) * (self.instruction + examples * self.inputs)

    def paper_concatenation(self, examples: int) -> float:
        return float(self.parameters) * examples * self.joined

    @property
    def break_even(self) -> int | None:
        """The fewest examples for which the instruction is cheaper read once; None where it never is."""
        saved = self.concatenated - sum(self.example.values())
        return math.floor(sum(self.task.values()) / saved) + 1 if saved > 0 else None


def count(config: T5Config, method: Method, instruction: int, inputs: int, targets: int) -> Ledger:
    """Counts one task. Nothing is computed or allocated: shapes are enough.

    Args:
      config: of the backbone.
      method: a hypernetwork, Hint or Hypter.
      instruction, inputs, targets: token lengths, EOS included; concatenation reads one less than the first two
        together, as it has one EOS.

    Raises:
      UserError: another method, or a length below 1.
    """
    lengths = {"instruction": instruction, "inputs": inputs, "targets": targets}
    for name, length in lengths.items():
        if length < 1:
            raise UserError(f"The ledger's {name} length is {length}; it must be at least 1.")
    if not isinstance(method, Hint | Hypter):
        raise UserError(
            f"The ledger counts hypernetworks, Hint and Hypter; the method is {type(method).__name__}. "
            f"Add --gin_file=methods/hint.gin."
        )
    key = jax.random.key(0)
    backbone = jax.eval_shape(lambda: t5.init(config, key))
    example = flops.conditioned(config, _conditioning(config, method, instruction), inputs, targets)
    fused = example.pop("memory_keys", 0.0)
    task = {"hyperencoder": flops.encode(config, instruction), "generator": generation(config, method, instruction)}
    task |= {"fused keys and values": fused}
    if "memory" in example:
        example["fused instruction"] = example.pop("memory")
    return Ledger(
        type(method).__name__,
        **lengths,
        task={part: flop for part, flop in task.items() if flop},
        example=example,
        concatenated=flops.forward(config, 1, instruction + inputs - 1, targets),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backbone)),
    )


def _conditioning(config: T5Config, method: Method, length: int) -> Conditioning:
    """What the method makes of one instruction, as shapes."""

    def make(key, tokens):
        backbone = t5.init(config, key)
        params = method.init(key, Setting(config, backbone=backbone))
        return method.condition(params, {"instruction_tokens": tokens}, Backbone(config, backbone))

    return jax.eval_shape(make, jax.random.key(0), jax.ShapeDtypeStruct((1, length), jnp.int32))


def generation(config: T5Config, method: Hypernetwork, length: int) -> float:
    """FLOPs that generate one task's modules from its encoded instruction. Position queries are projected too, although
    several instructions at a time would share that."""
    D, joined = config.emb_dim, config.num_heads * config.head_dim
    tensors = generated.tensors(method.kinds, config).values()
    if not tensors:
        return 0.0
    if isinstance(method, Hypter):
        return 2.0 * sum(D * D + D * t.slots * t.rows * t.width for t in tensors)
    queries = sum(t.slots * t.rows for t in tensors)
    attention = 2 * (queries + length) * D * joined + 2 * queries * length * joined
    return 2.0 * (attention + sum(t.slots * t.rows * (D * D + D * t.width) for t in tensors))


def table(ledger: Ledger, examples: int) -> str:
    """The printed ledger for so many examples, in GFLOP."""
    if examples < 1:
        raise UserError(f"The ledger's number of examples is {examples}; it must be at least 1.")
    head = ["GFLOP", "per task", "per example", f"{examples:,} examples"]
    lines = [[part, _giga(f), "", _giga(f)] for part, f in ledger.task.items()]
    lines += [[part, "", _giga(f), _giga(examples * f)] for part, f in ledger.example.items()]
    own, rest = ledger.cost(examples), ledger.concatenation(examples)
    once, each = sum(ledger.task.values()), sum(ledger.example.values())
    paper = ledger.paper_cost(examples), ledger.paper_concatenation(examples)
    tokens = lambda count: _giga(float(ledger.parameters) * count)
    totals = [
        [f"{ledger.method}, counted", _giga(once), _giga(each), _giga(own)],
        ["concatenation, counted", _giga(0), _giga(ledger.concatenated), _giga(rest)],
        [f"{ledger.method}, paper's formula", tokens(ledger.instruction), tokens(ledger.inputs), _giga(paper[0])],
        ["concatenation, paper's formula", _giga(0), tokens(ledger.joined), _giga(paper[1])],
    ]
    aligned = report.align([head, *lines, *totals])
    n = ledger.break_even
    return "\n".join(
        [
            *aligned[: -len(totals)],
            "-" * max(map(len, aligned)),
            *aligned[-len(totals) :],
            "",
            f"Instruction {ledger.instruction}, input {ledger.inputs}, target {ledger.targets} tokens; "
            f"{ledger.parameters:,} parameters.",
            f"{ledger.method} costs {own / rest:.3f} of concatenation by this count, {paper[0] / paper[1]:.3f} by the "
            f"paper's formula (one FLOP per parameter and token read).",
            f"{ledger.method} never costs less than concatenation."
            if n is None
            else f"{ledger.method} costs less than concatenation from {n:,} example{'s' * (n > 1)} of a task on.",
            "",
        ]
    )


def _giga(flop: float) -> str:
    return f"{flop / 1e9:,.4g}" if flop < 1e12 else f"{flop / 1e9:,.0f}"


def picture(path: str | os.PathLike, ledger: Ledger, examples: int) -> None:
    """Saves a PNG: cost against the number of examples, both ways of counting, and where they break even."""
    lengths = f"{ledger.instruction} instruction, {ledger.inputs} input, {ledger.targets} target tokens"
    figure, axis = report.chart(f"{ledger.parameters / 1e6:,.0f} million parameters; {lengths}", grid="both")
    n = np.unique(np.geomspace(1, max(examples, 2 * (ledger.break_even or 1)), 200).round())
    own, rest = f"{ledger.method}, instruction read once", "concatenation, read with every input"
    axis.plot(n, ledger.cost(n), color="#2f6db3", linewidth=2, label=own)
    axis.plot(n, ledger.concatenation(n), color="#c2553f", linewidth=2, label=rest)
    dashed = {"linestyle": ":", "linewidth": 1.4}
    axis.plot(n, ledger.paper_cost(n), color="#2f6db3", **dashed, label=f"{ledger.method}, paper's formula")
    axis.plot(n, ledger.paper_concatenation(n), color="#c2553f", **dashed, label="concatenation, paper's formula")
    if ledger.break_even is not None:
        at = ledger.break_even
        axis.plot(at, ledger.cost(at), "o", color="#222222", markersize=6, label=f"break-even: {at:,} examples")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("examples of one task")
    axis.set_ylabel("FLOP")
    axis.legend(frameon=False, fontsize=8.5)
    report.save(figure, path)
