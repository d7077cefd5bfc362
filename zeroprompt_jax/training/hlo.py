"""A compiled program's text (XLA's optimised HLO): its instructions, how often each runs, and what they compute."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.-]+)")
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")  # pass a value on
_SPACE = re.compile(r"S\((\d+)\)")  # a memory space in a layout; HBM has none


class Array(NamedTuple):
    """One array of a type. dims: as compiled, on one device. hbm: whether it lies in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    hbm: bool

    @property
    def nbytes(self) -> int:
        if self.dtype in _BYTES:
            return math.prod(self.dims) * _BYTES[self.dtype]
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(math.prod(self.dims) * int(bits[0]) / 8) if bits else 0


@functools.lru_cache(maxsize=4096)
def arrays(type: str) -> tuple[Array, ...]:
    """The arrays of a type as it is written, one, or those of a tuple."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(type):
        space = _SPACE.search(layout)
        found.append(Array(dtype, tuple(map(int, dims.split(","))) if dims else (), space is None or space[1] == "0"))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """type: of the result. operands: names in the same computation, or a parameter's or constant's text. attributes: the
    text behind the operands."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def cycles(self) -> int | None:
        """The compiler's own estimate of one run, where it made one."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found and int(found[1]) < 2**62 else None

    @property
    def source(self) -> str:
        """What it was traced from, such as 'decoder/layers_0/mlp/wi_0/dot_general'; of a fusion, its main part."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def frame(self) -> int | None:
        found = re.search(r"stack_frame_id=(\d+)", self.attributes)
        return int(found[1]) if found else None

    def called(self, *names: str) -> tuple[str, ...]:
        """Computations named by these attributes, in the order they are written."""
        found = re.findall(rf"\b(?:{'|'.join(names)})=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes)
        return tuple(name for text in found for name in _NAME.findall(text))


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: str


class Run(NamedTuple):
    """An instruction that runs so many times."""

    computation: Computation
    instruction: Instruction
    times: int


class _Value(NamedTuple):
    """An integer in a loop's condition: `number` more than the element of the loop's state at `place`, or than 0."""

    place: int | None
    number: int


@dataclasses.dataclass(frozen=True)
class Program:
    """computations: by name. entry: the one that runs. devices: partitions. lines: stack frame to 'file:line'."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int
    lines: Mapping[int, str]

    def runs(self) -> Iterator[Run]:
        """Every instruction that runs, a loop's as often as it turns, of alternatives those with the most cycles. A
        fusion is one instruction; a loop whose turns cannot be told turns once."""
        yield from self._runs(self.computations[self.entry], 1)

    def _runs(self, computation: Computation, times: int) -> Iterator[Run]:
        for instruction in computation.instructions.values():
            yield Run(computation, instruction, times)
            if instruction.opcode == "while":
                turns = self.turns(computation, instruction)
                turns = 1 if turns is None else turns
                for name, more in (("condition", 1), ("body", 0)):
                    for called in instruction.called(name):
                        yield from self._runs(self.computations[called], times * (turns + more))
            elif instruction.opcode in ("call", "async-start"):
                for name in instruction.called("to_apply", "calls"):
                    yield from self._runs(self.computations[name], times)
            elif instruction.opcode == "conditional":
                names = instruction.called("branch_computations", "true_computation", "false_computation")
                branches = [list(self._runs(self.computations[name], times)) for name in names]
                yield from max(branches, key=lambda runs: sum(r.times * (r.instruction.cycles or 0) for r in runs))

    def inside(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction, and if it is a fusion those fused in it."""
        yield computation, instruction
        if instruction.opcode == "fusion":
            for name in instruction.called("calls"):
                fused = self.computations[name]
                for inner in fused.instructions.values():
                    yield from self.inside(fused, inner)

    # Loops.

    def turns(self, computation: Computation, loop: Instruction) -> int | None:
        """How often a loop turns: what the compiler says, or else how often its counter steps from its first number to the
        one that it is compared with; products in windows, which exchange shards meanwhile, may step by two. A loop that
        may also end sooner counts as if it did not. None where no counter is found."""
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if told:
            return int(told[1])
        (name,) = loop.called("condition")
        condition = self.computations[name]
        bounds = [self._bound(computation, loop, *found) for found in self._comparisons(condition, condition.root, {})]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _comparisons(self, computation: Computation, name: str, given: Mapping[int, _Value | None]) -> Iterator[tuple]:
        """(direction, left, right) of the comparisons that must all hold. given: the values of a fusion's parameters."""
        instruction = computation.instructions[name]
        if instruction.opcode == "compare":
            direction = re.search(r"direction=(\w+)", instruction.attributes)[1]
            left, right = (self._value(computation, operand, given) for operand in instruction.operands)
            yield direction, left, right
        elif instruction.opcode in ("and", *_SAME):
            for operand in instruction.operands:
                yield from self._comparisons(computation, operand, given)
        elif instruction.opcode == "fusion":
            fused, inner = self._inner(computation, instruction, given)
            yield from self._comparisons(fused, fused.root, inner)

    def _inner(self, computation: Computation, fusion: Instruction, given: Mapping[int, _Value | None]):
        """(what a fusion runs, the values of its parameters)."""
        (name,) = fusion.called("calls")
        return self.computations[name], {i: self._value(computation, o, given) for i, o in enumerate(fusion.operands)}

    def _fused(self, computation: Computation, fusion: Instruction, given: Mapping[int, _Value | None], place=None):
        """The value of a fusion, or of an element of what it makes."""
        fused, inner = self._inner(computation, fusion, given)
        root = fused.instructions[fused.root]
        if (root.opcode == "tuple") != (place is not None):
            return None
        return self._value(fused, fused.root if place is None else root.operands[place], inner)

    def _value(self, computation: Computation, name: str, given: Mapping[int, _Value | None]) -> _Value | None:
        instruction = computation.instructions[name]
        match instruction.opcode:
            case "constant":
                number = re.fullmatch(r"-?\d+", instruction.operands[0])
                return _Value(None, int(number[0])) if number else None
            case "parameter":
                return given.get(int(instruction.operands[0]))
            case "get-tuple-element":
                source = computation.instructions[instruction.operands[0]]
                place = int(re.search(r"index=(\d+)", instruction.attributes)[1])
                if source.opcode == "tuple":
                    return self._value(computation, source.operands[place], given)
                if source.opcode == "fusion":
                    return self._fused(computation, source, given, place)
                return _Value(place, 0) if source.opcode == "parameter" else None
            case "fusion":
                return self._fused(computation, instruction, given)
            case "add":
                parts = [self._value(computation, operand, given) for operand in instruction.operands]
                if None in parts or all(part.place is not None for part in parts):
                    return None
                place = parts[0].place if parts[1].place is None else parts[1].place
                return _Value(place, sum(part.number for part in parts))
            case opcode if opcode in _SAME:
                return self._value(computation, instruction.operands[0], given)
        return None

    def _bound(self, computation: Computation, loop: Instruction, direction: str, left, right) -> int | None:
        if direction in ("GT", "GE"):  # n > i is i < n
            direction, left, right = {"GT": "LT", "GE": "LE"}[direction], right, left
        if direction not in ("LT", "LE") or left is None or right is None or left.place is None:
            return None
        start, stop = (self._at_first(computation, loop, value) for value in (left, right))
        step = self._step(loop, left.place)
        if start is None or stop is None or not step:
            return None
        return max(-(-(stop - start + (direction == "LE")) // step), 0)

    def _step(self, loop: Instruction, place: int) -> int | None:
        """What a turn adds to an element of the loop's state, if more than nothing."""
        (name,) = loop.called("body")
        body = self.computations[name]
        root = body.instructions[body.root]
        found = self._value(body, root.operands[place], {}) if root.opcode == "tuple" else None
        return found.number if found and found.place == place and found.number > 0 else None

    def _at_first(self, computation: Computation, loop: Instruction, value: _Value) -> int | None:
        """A value before the first turn."""
        if value.place is None:
            return value.number
        state = computation.instructions[loop.operands[0]]
        found = self._value(computation, state.operands[value.place], {}) if state.opcode == "tuple" else None
        return found.number + value.number if found and found.place is None else None


def read(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry, current = {}, None, None
    tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    table = None
    devices = re.search(r"num_partitions=(\d+)", text[:1_000_000].split("\n", 1)[0])
    for line in text.split("\n"):
        if current is not None:
            if line.startswith("}"):
                computations[current[0]] = Computation(*current)
                current = None
            elif made := _instruction(line):
                current[1][made.name] = made
                if line.lstrip().startswith("ROOT "):
                    current[2] = made.name
        elif head := _HEAD.match(line):
            current = [head[2], {}, ""]
            entry = head[2] if head[1] else entry
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables[table][int(row[1])] = row[2]
    if entry is None:
        raise ValueError("This text of a compiled program has no ENTRY computation.")
    return Program(computations, entry, int(devices[1]) if devices else 1, _lines(tables))


def _lines(tables: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """Stack frame to 'file:line' of its innermost place in this package, or else of its innermost."""
    field = lambda text, name: int(re.search(rf"{name}=(\d+)", text)[1])
    places = {}
    for number, text in tables["FileLocations"].items():
        file = tables["FileNames"].get(field(text, "file_name_id"), "").strip('"')
        places[number] = (file, field(text, "line"))

    # XLA counts a frame's parent from 1 for none, or from 0: the first frame, which has none, tells.
    frames, out = tables["StackFrames"], {}
    offset = 1 if 1 in frames and field(frames[1], "parent_frame_id") == 1 else 0
    for number in frames:
        at, seen, chosen = number, set(), None
        while at in frames and at not in seen:
            seen.add(at)
            file, line = places.get(field(frames[at], "file_location_id"), ("", 0))
            short = f"{re.sub(r'.*/(site-packages|zeroprompt_jax)/', '', file)}:{line}"
            chosen = chosen or short
            if "zeroprompt_jax/" in file:
                chosen = short
                break
            at = field(frames[at], "parent_frame_id") - offset
        out[number] = chosen or ""
    return out


def _instruction(line: str) -> Instruction | None:
    head, equals, rest = line.partition(" = ")
    name = _NAME.search(head)
    if not equals or name is None:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    type, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:end], rest[end + 1 :]
    operands = tuple(_NAME.findall(inside)) or (inside.strip(),)
    return Instruction(name[1], type, opcode, operands, attributes)


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at
    return len(text)


# Matrix products.


def flops(program: Program, computation: Computation, instruction: Instruction) -> int:
    """FLOPs of one run's matrix products, fused ones too; 2 per multiply-add, nothing for padding and dilation."""
    total = 0
    for where, inner in program.inside(computation, instruction):
        if inner.opcode == "convolution":
            total += _convolution(where, inner)
        elif inner.opcode == "dot":
            (left,) = arrays(where.instructions[inner.operands[0]].type)
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", inner.attributes)[1]
            contracted = math.prod(left.dims[int(axis)] for axis in axes.split(",") if axis)
            total += 2 * contracted * math.prod(arrays(inner.type)[0].dims)
    return total


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """XLA writes products of matrices as convolutions on TPUs, batch axes as windows."""
    left, right = (arrays(computation.instructions[name].type)[0].dims for name in instruction.operands[:2])
    out = arrays(instruction.type)[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    sizes = [label for label in labels[2] if label.isdigit()]

    def field(name: str, axis: int, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    pairs = 1
    for axis in range(len(sizes)):
        label = str(axis)
        length, kernel = left[labels[1].index(label)], right[labels[2].index(label)]
        low = int(field("pad", axis, "0_0").split("_")[0])
        stride, base, spread = (int(field(name, axis, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        at = np.arange(out[labels[3].index(label)])[:, None] * stride + np.arange(kernel) * spread - low
        pairs *= int(((at >= 0) & (at % base == 0) & (at // base < length)).sum())
    batch, feature = out[labels[3].index("b")], out[labels[3].index("f")]
    return 2 * pairs * batch * feature * right[labels[2].index("i")]
