"""TPU chips and slices of them: what they can do, and how to compile for one that is not there."""

import dataclasses
import os
import re

import jax

from zeroprompt_jax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which JAX sees as one device (v4 and v5p join two cores).

    Attributes:
      flops: peak FLOP/s of bfloat16 products.
      hbm_bytes: of memory that a program may use.
      hbm_bandwidth: bytes/s.
      clock: Hz.
      lanes: numbers that its vector units take in a cycle.
      link: bytes/s of one inter-chip link in one direction.
      dimensions: of the torus that slices are cut from.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    clock: float
    lanes: int
    link: float
    dimensions: int


def _gib(size: float) -> int:
    return int(size * 2**30)


# Google's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" (cloud.google.com/tpu/docs): peak, memory bandwidth, and the
# interconnect's per chip, over four links (v5e, v6e) or six. Usable memory is what libtpu 0.0.42 names where a program
# does not fit. These pages give no clock: it is the peak over what the matrix units do in a cycle (v4, v5p: 8 of
# 128 × 128; v5e: 4; v6e: as much as 4 of 256 × 256, by the compiler's own cycles of a large product). A core's vector
# registers are 8 × 128.
CHIPS = {
    "v4": Chip(275e12, _gib(30.75), 1.228e12, 1.05e9, 2048, 50e9, 3),
    "v5e": Chip(197e12, _gib(15.75), 0.819e12, 1.5e9, 1024, 50e9, 2),
    "v5p": Chip(459e12, _gib(95.74), 2.765e12, 1.75e9, 2048, 100e9, 3),
    "v6e": Chip(918e12, _gib(31.25), 1.64e12, 1.75e9, 1024, 100e9, 2),
}


def _of_accelerator(text: str) -> str:
    """The topology of an accelerator type whose chips are a power of two, as Cloud TPU lays it out; else the text itself.

    The number counts chips, for v4 and v5p their cores, two a chip."""
    named = re.fullmatch(r"(v4|v5litepod|v5e|v5p|v6e)-([1-9]\d*)", text)
    if not named:
        return text
    kind = named[1].replace("litepod", "e")
    count = int(named[2]) // (2 if kind in ("v4", "v5p") else 1)
    if count & (count - 1) or not count:
        return text.replace("-", ":").replace("litepod", "e")
    power, dimensions = count.bit_length() - 1, CHIPS[kind].dimensions
    sides = [2 ** ((power + i) // dimensions) for i in range(dimensions)]  # as even as can be, the longest last
    return f"{kind}:{'x'.join(map(str, sides if sides != [1, 2, 2] else [2, 2, 1]))}"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several equal ones that a data centre's network joins: chips of a kind in a mesh or torus.

    kind: of `CHIPS`. shape: chips along each dimension. slices: how many.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> "Topology":
        """Reads 'v5e:2x4', as the TPU API writes it, or an accelerator type such as 'v5litepod-8' or 'v5p-128'.

        Raises:
          UserError: an unknown chip, or a shape that its slices cannot have.
        """
        kind, colon, shape = _of_accelerator(text).partition(":")
        if kind not in CHIPS:
            raise unknown("TPU", kind, CHIPS)
        dimensions = CHIPS[kind].dimensions
        if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != dimensions:
            example = "x".join(["4"] * dimensions)
            raise UserError(
                f"The topology '{text}' is not a {kind} slice: write {kind}:{example}, chips along each side."
            )
        if slices < 1:
            raise UserError(f"The number of slices is {slices}; it must be at least 1.")
        return cls(kind, tuple(map(int, shape.split("x"))), slices)

    def __str__(self) -> str:
        one = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return one if self.slices == 1 else f"{self.slices} × {one}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    def devices(self) -> list[jax.Device]:
        """Devices that programs can be compiled for, and nothing else. They need `libtpu`, and no TPU.

        Raises:
          UserError: there is no libtpu, or it knows no such slice.
        """
        # Without a TPU there is no machine's metadata to ask; another process' libtpu is not in the way; and its log is
        # about the TPU that it does not find.
        quiet = {"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
        host = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
        for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", **quiet, **host}.items():
            os.environ.setdefault(name, value)
        from jax.experimental import topologies

        one = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        options = {"chip_config_name": "megacore"} if self.kind == "v4" else {}
        if self.slices > 1:
            options["num_slices"] = self.slices
        if not installed():
            raise UserError(
                "Compiling for TPUs needs libtpu, with or without a TPU: pip install 'zeroprompt_jax[tpu]'."
            )
        try:
            return topologies.get_topology_desc(one, "tpu", **options).devices
        except jax.errors.JaxRuntimeError as e:
            raise UserError(f"libtpu has no topology '{one}' ({str(e).splitlines()[0]}).") from e


def installed() -> bool:
    """Whether there is a libtpu."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True
