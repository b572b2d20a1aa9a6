"""What the GPU kernel became: registers, spills and operations of its machine code, without a GPU.

The innermost loop passes a few samples forward and backward; nearly all time goes there. How often it
multiplies, adds, and does both at once follows from the contract, so that the counts of its machine code
must be exactly those: one more, and the compiler split or fused something on its own.
"""

import collections
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fractal_core.errors import Refused
from fractal_core.kernels import cuda
from fractal_core.kernels.contract import TANH
from fractal_core.kernels.layout import Layout

ARCHS = ("sm_80", "sm_90", "sm_100")

WIDTHS = {"float64": {"sm_80": 32, "sm_90": 64, "sm_100": 64}, "float32": {"sm_80": 64}}
"""Lanes of a processor that multiply and add in each precision; 128 where nothing is said."""

KINDS = {"float64": ("DFMA", "DMUL", "DADD"), "float32": ("FFMA", "FMUL", "FADD")}
"""Names of the fused, the multiplying and the adding instruction."""


@dataclass(frozen=True)
class Operations:
    """How many instructions are fused multiply-adds, multiplications and additions."""

    fused: int
    multiplied: int
    added: int

    @property
    def total(self) -> int:
        """All three."""
        return self.fused + self.multiplied + self.added


@dataclass(frozen=True)
class Report:
    """The machine code of one layout for one kind of GPU.

    Args:
        code: The layout.
        arch: The kind of GPU.
        registers: Of a thread.
        spilled: Bytes that did not fit into them, written or read.
        loop: Operations in the kernel's innermost loop.
        instructions: All instructions of that loop.
    """

    code: Layout
    arch: str
    registers: int
    spilled: int
    loop: Operations
    instructions: int

    @property
    def warps(self) -> int:
        """Warps that a processor holds at a time."""
        return self.code.threads // 32

    def bound(self, samples: int, processors: int, hertz: float) -> float:
        """Point-steps per second, of a full batch, that no GPU of this kind can pass.

        Either its arithmetic is busy all the time, or its four schedulers are, with an instruction
        each per cycle. What waiting costs, and what reading shared memory does, is not in it.
        """
        code = self.code
        lanes = WIDTHS[code.dtype].get(self.arch, 128)
        cycles = max(self.loop.total * 32 / lanes, self.instructions / 4)
        points = 32 / code.lanes
        return processors * hertz * points * code.samples / (cycles * samples)


def wanted(code: Layout) -> Operations:
    """The operations of the innermost loop of a full batch, as the contract has them."""
    width, units = code.width, code.units
    fused, multiplied, added = 2 * width - 1 + 1, 1 + 1 + 1, 0  # inputs, both gradients; p, e * W2
    if code.activation == "tanh":
        recipe = TANH[code.dtype]
        fused += len(recipe.odd) - 1 + 1 + recipe.terms - 1 + 2 + 1
        multiplied += 4 + 1
        added += 4
    tree = units - 1 + (code.lanes - 1).bit_length()
    each = Operations(units * fused + 2, units * multiplied + 1, units * added + tree)
    return Operations(*(code.samples * n for n in (each.fused, each.multiplied, each.added)))


def report(code: Layout, arch: str) -> Report:
    """Compile the kernel with its samples in shared memory, and look at what came out."""
    binary = cuda.binary(code, True, arch)
    loop, instructions = innermost(binary.code, code.dtype)
    return Report(
        code=code,
        arch=arch,
        registers=int(_said(binary.log, r"Used (\d+) registers")),
        spilled=sum(int(_said(binary.log, rf"(\d+) bytes spill {w}")) for w in ("stores", "loads")),
        loop=loop,
        instructions=instructions,
    )


def innermost(code: bytes, dtype: str) -> tuple[Operations, int]:
    """Operations, and all instructions, of the innermost loop that has most of them."""
    text = list(_instructions(_disassembled(code)))
    first, last = _innermost(text, KINDS[dtype][0])
    return _count(text[first : last + 1], dtype), last + 1 - first


def _said(log: str, pattern: str) -> str:
    found = re.search(pattern, log)
    if found is None:
        raise RuntimeError(f"the assembler did not say {pattern}: {log}")
    return found[1]


def _disassembled(code: bytes) -> str:
    """The text of machine code, by the disassembler that comes with Triton."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise Refused("reading machine code needs Triton's tools, which torch brings on Linux")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(tool), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class _Instruction:
    """One line of machine code: its name, and how far a branch in it jumps back, if at all."""

    name: str
    back: int


def _instructions(text: str) -> Iterator[_Instruction]:
    places: dict[str, int] = {}
    at = 0
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            places[label[1]] = at
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[\w.]*(.*)", line):
            to = re.search(r"`\((\.L\w+)\)", found[2])
            jumps = found[1] == "BRA" and to and to[1] in places
            yield _Instruction(found[1], at - places[to[1]] if jumps and to else 0)
            at += 1


def _innermost(text: list[_Instruction], busy: str) -> tuple[int, int]:
    """First and last instruction of the innermost loop that has most of an operation."""
    loops = [(at - one.back, at) for at, one in enumerate(text) if one.back]
    inner = [
        loop
        for loop in loops
        if not any(other != loop and loop[0] <= other[0] <= other[1] <= loop[1] for other in loops)
    ]
    return max(inner, key=lambda loop: sum(o.name == busy for o in text[loop[0] : loop[1]]))


def _count(text: list[_Instruction], dtype: str) -> Operations:
    names = collections.Counter(one.name for one in text)
    return Operations(*(names[name] for name in KINDS[dtype]))
