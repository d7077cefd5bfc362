"""What a compiled program will take on a chip, from its text: seconds, products, exchanged bytes, its costliest parts."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from zeroprompt_jax.training import hlo
from zeroprompt_jax.training.chips import Chip
from zeroprompt_jax.training.hlo import Instruction, Program, Run

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BETWEEN_SLICES = ("send", "recv")
# What costs nothing by itself, or whose cost is that of the computation that it calls.
_FREE = "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id while conditional call"
_FREE = frozenset([*_FREE.split(), "opt-barrier", "add-dependency", "domain", "async-start", "async-update"])
# Cycles of an exponential in a kernel with the vector work around it (bias, mask, highest, sum, rounding): in libtpu
# 0.0.42's schedule of `attend`, 5.7 forward and 10.9 to 11.4 backward, which tells of two.
_EXPONENTIAL = 6
# Custom calls that make no code of their own.
_HINTS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "ConcatBitcast", "Sharding")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction, all its runs together.

    Attributes:
      source: what it was traced from, without the function's name; the layers of a stack are one, `layers_*`.
      line: file and line.
      kind: `estimated` (by the compiler, in cycles), `roofline` (there is no estimate: the longer of its products at the
        chip's peak and its bytes at its memory's bandwidth), `opaque` (a kernel that the compiler does not see into, by
        roofline too, and by the exponentials that it tells of), `collective`, or `copy` (between memories, beside other work).
      runs: how often.
      cycles: estimated, of all runs; None otherwise.
      flops, nbytes: of all runs: matrix products, and operands and results in main memory.
      seconds: of all runs.
      beside: whether it runs beside other work.
      name: of a collective its kind, of a kernel its own or else its target, else of the instruction.
      exchanged: bytes that a collective is given on one device.
    """

    source: str
    line: str
    kind: str
    runs: int
    cycles: float | None
    flops: float
    nbytes: float
    seconds: float
    beside: bool = False
    name: str = ""
    exchanged: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of one chip, and one run of the program.

    Attributes:
      seconds: predicted; what runs beside other work counts only where it takes longer than all of that.
      cycles: the sum of the compiler's estimates, loops by their turns.
      flops: of matrix products, what rematerialisation repeats included.
      utilisation: of the chip's peak by these products in the predicted seconds.
      parts: seconds by kind of operation.
      operations: all of them.
      unbounded: sources of loops whose number of turns could not be told; each counts as one turn.
    """

    seconds: float
    cycles: float
    flops: float
    utilisation: float
    parts: dict[str, float]
    operations: Sequence[Operation]
    unbounded: Sequence[str]

    def costliest(self, count: int = 10) -> list[dict[str, Any]]:
        """The sources that take longest, with their share of the predicted seconds."""
        found: dict[tuple, list[Operation]] = collections.defaultdict(list)
        for operation in self.operations:
            if not operation.beside:
                found[operation.source or operation.name, operation.line].append(operation)
        rows = [
            {
                "source": source,
                "line": line,
                "runs": sum(o.runs for o in members),
                "cycles": sum(o.cycles or 0 for o in members),
                "seconds": sum(o.seconds for o in members),
                "share": sum(o.seconds for o in members) / self.seconds if self.seconds else 0.0,
            }
            for (source, line), members in found.items()
        ]
        return sorted(rows, key=lambda row: -row["seconds"])[:count]

    def collectives(self) -> list[dict[str, Any]]:
        """By kind: how many run, the bytes that one chip gives, and their seconds, most bytes first. What passes between
        slices is not timed: the network is not the chip's."""
        return self._by_name("collective", lambda o: {"bytes": o.exchanged})

    def opaque(self) -> list[dict[str, Any]]:
        """By kernel: how many runs, bytes, FLOPs if it tells them, and seconds by roofline."""
        return self._by_name("opaque", lambda o: {"bytes": o.nbytes, "flops": o.flops})

    def _by_name(self, kind: str, values) -> list[dict[str, Any]]:
        found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for operation in self.operations:
            if operation.kind == kind:
                found[operation.name].update(
                    {"runs": operation.runs, "seconds": operation.seconds, **values(operation)}
                )
        rows = [{"name": name, **counts} for name, counts in found.items()]
        return sorted(rows, key=lambda row: -row["bytes"])


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """XLA's plan, bytes of a device. arguments: what is given; temporaries: what is needed beside it; outputs: what of the
    results takes no argument's place; peak: all of these, and the code."""
    found = compiled.memory_analysis()
    sizes = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "outputs": max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
        "code": found.generated_code_size_in_bytes,
    }
    return {**sizes, "peak": sum(sizes.values())}


def predict(program: Program, chip: Chip) -> Prediction:
    operations = [made for run in program.runs() for made in _operations(program, run, chip)]
    parts: dict[str, float] = collections.Counter()
    for operation in operations:
        parts[operation.kind + " beside" * (operation.beside and operation.kind != "copy")] += operation.seconds
    busy = sum(o.seconds for o in operations if not o.beside)
    seconds = max([busy, parts.get("collective beside", 0.0), parts.get("copy", 0.0)])
    flops = sum(o.flops for o in operations)
    loops = (run for run in program.runs() if run.instruction.opcode == "while")
    unbounded = [_source(loop) or loop.name for where, loop, _ in loops if program.turns(where, loop) is None]
    return Prediction(
        seconds=seconds,
        cycles=sum(o.cycles or 0 for o in operations),
        flops=flops,
        utilisation=flops / chip.flops / seconds if seconds else 0.0,
        parts=dict(parts),
        operations=operations,
        unbounded=unbounded,
    )


def _operations(program: Program, run: Run, chip: Chip) -> Iterator[Operation]:
    """What a running instruction is: collectives that are fused in it, and itself."""
    computation, instruction, times = run
    opcode = instruction.opcode
    common = {"source": _source(instruction), "line": program.lines.get(instruction.frame, ""), "runs": times}
    for where, inner in program.inside(computation, instruction):
        kind = inner.opcode.removesuffix("-start")
        if kind in COLLECTIVES or inner.opcode in _BETWEEN_SLICES:
            names = (instruction.name, *instruction.called("calls"))
            if kind == "all-reduce" and any("reduce-scatter" in name for name in names):
                kind = "reduce-scatter"  # which TPUs write as a fusion of a reduction and a cut
            given = sum(array.nbytes for array in _operands(where, inner))
            seconds = 0.0 if kind in _BETWEEN_SLICES else _exchange(kind, given, _ways(program, inner), chip)
            beside = inner.opcode.endswith("-start") or any("async" in name for name in (computation.name, *names))
            spent = {"cycles": None, "flops": 0, "nbytes": 0, "seconds": times * seconds, "beside": beside}
            yield Operation(**common, kind="collective", name=kind, exchanged=times * given, **spent)
            if inner is instruction:
                return
    if opcode in _FREE or opcode.endswith("-done") or opcode in _BETWEEN_SLICES:
        return
    if opcode.endswith("-start"):
        # The result is a tuple of what is read, what is written (of a slice the smaller) and a scalar of the engine's.
        moved = times * min((array.nbytes for array in hlo.arrays(instruction.type) if array.dims), default=0)
        spent = {"cycles": None, "flops": 0, "nbytes": moved, "seconds": moved / chip.hbm_bandwidth, "beside": True}
        yield Operation(**common, kind="copy", **spent)
        return
    flops, nbytes = hlo.flops(program, computation, instruction), _touched(computation, instruction)
    kind, name, vector = "roofline", instruction.name, 0.0
    if opcode == "custom-call":
        name = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)[1]
        if name in _HINTS:
            return
        # A Pallas kernel's target says no more than that it is one; where it was traced tells its name.
        name = ([name] + re.findall(r"([^/]+)/pallas_call$", instruction.source))[-1]
        kind, flops = "opaque", _told(instruction, "flops") or flops
        nbytes = _told(instruction, "bytes_accessed") or nbytes
        vector = _EXPONENTIAL * _told(instruction, "transcendentals") / chip.lanes / chip.clock
    cycles = instruction.cycles
    bounds = (flops / chip.flops, nbytes / chip.hbm_bandwidth, vector)
    seconds = max(bounds) if cycles is None else cycles / chip.clock
    yield Operation(
        **common,
        kind=kind if cycles is None else "estimated",
        cycles=None if cycles is None else times * cycles,
        flops=times * flops,
        nbytes=times * nbytes,
        seconds=times * seconds,
        name=name,
    )


def _source(instruction: Instruction) -> str:
    path = re.sub(r"^jit\([^()]*\)/", "", instruction.source)
    return re.sub(r"\blayers_\d+\b", "layers_*", path)


def _operands(computation: hlo.Computation, instruction: Instruction) -> list[hlo.Array]:
    made = (computation.instructions.get(name) for name in instruction.operands)
    return [array for source in made if source is not None for array in hlo.arrays(source.type)]


def _touched(computation: hlo.Computation, instruction: Instruction) -> int:
    """Bytes of operands and results in main memory; of an update in place, those of the update, read and written."""
    if instruction.opcode == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]]
        return 2 * sum(array.nbytes for array in hlo.arrays(update.type) if array.hbm)
    every = [*_operands(computation, instruction), *hlo.arrays(instruction.type)]
    return sum(array.nbytes for array in every if array.hbm)


def _told(instruction: Instruction, name: str) -> float:
    """What a kernel's author says that it costs; 0 where nothing is said."""
    found = re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"?(\d+)', instruction.attributes)
    return float(found[1]) if found else 0.0


def _ways(program: Program, instruction: Instruction) -> int:
    """How many devices a collective joins."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        ways = 1
        for axis in re.findall(r"'([^']+)'", found[2]):
            ways *= int(sizes[axis])
        return ways
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    return program.devices


def _exchange(kind: str, given: float, ways: int, chip: Chip) -> float:
    """Seconds of a collective on a ring along one axis of the torus, both directions at once. given: bytes that one
    device puts in."""
    once = given * (ways - 1) / max(ways, 1)
    crossing = {"all-reduce": 2 * once, "all-gather": given * (ways - 1), "collective-permute": given}
    return crossing.get(kind, once) / (2 * chip.link)
