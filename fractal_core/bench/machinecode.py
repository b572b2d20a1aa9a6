"""What the GPU kernel became: registers, spills and operations of its machine code, without a GPU.

The innermost loop passes a few samples forward and backward; nearly all time goes there. How often it
multiplies, adds, and does both at once follows from the contract, so that the counts of its machine code
must be exactly those: one more, and the compiler split or fused something on its own.

How fast it can be is bounded by whatever has most to do: the pipe of the arithmetic, the schedulers, or
shared memory. A warp also waits for results of its own, for which the compiler writes cycles and barriers
into every instruction; other warps fill that time if there are enough of them. NVIDIA does not document
these words; that a float64 result takes 8 cycles on an H100, and a float32 one 4, is read from them.
"""

import collections
import functools
import importlib.util
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fractal_core.errors import Refused
from fractal_core.kernels import cuda
from fractal_core.kernels.contract import TANH
from fractal_core.kernels.layout import SOURCE, Layout

ARCHS = ("sm_80", "sm_90", "sm_100")

WIDTHS = {"float64": {"sm_80": 32, "sm_90": 64, "sm_100": 64}, "float32": {"sm_80": 64}}
"""Lanes of a processor that multiply and add in each precision; 128 where nothing is said."""

SCHEDULERS = 4
"""Of a processor; each issues an instruction per cycle."""

READS = {"float64": 6.15, "float32": 3.53}
"""Cycles for which shared memory is busy when each thread of a warp reads an entry of the table of tanh
at random: what its fullest bank has to deliver. What all threads read alike takes one, 16 bytes two."""

WAIT, LOADED = 24, 30
"""Cycles until another thread's number is there, and one from shared memory: about that on all of them."""

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
class Loop:
    """A loop of machine code, once through by one warp.

    Args:
        operations: Of the arithmetic.
        instructions: All of them.
        shared: Cycles for which shared memory is busy with it, if no threads want the same bank.
        alone: Cycles that it takes where no other warp is.
    """

    operations: Operations
    instructions: int
    shared: int
    alone: int


@dataclass(frozen=True)
class Report:
    """The machine code of one layout for one kind of GPU.

    Args:
        code: The layout.
        arch: The kind of GPU.
        registers: Of a thread.
        spilled: Bytes that did not fit into them, written or read.
        loop: The kernel's innermost loop.
    """

    code: Layout
    arch: str
    registers: int
    spilled: int
    loop: Loop

    @property
    def warps(self) -> int:
        """Warps that a processor holds at a time."""
        return self.code.threads // 32

    def rates(self, samples: int, processors: int, hertz: float) -> dict[str, float]:
        """Point-steps per second of a full batch: four bounds, and what is left of them by a model.

        For `arithmetic`, `issue` and `shared` a part of the processor is busy all the time; for
        `waiting` no warp waits for another. In the model, `expected`, warps ask for the busiest part
        as often as each would alone, and independently: it is idle when none of them does.

        Args:
            samples: In the batch.
            processors: Of the GPU.
            hertz: Its clock.
        """
        code, loop = self.code, self.loop
        tables = code.units * code.samples if code.activation == "tanh" else 0
        busy = {
            "arithmetic": loop.operations.total * 32 / WIDTHS[code.dtype].get(self.arch, 128),
            "issue": loop.instructions / SCHEDULERS,
            "shared": loop.shared + tables * (READS[code.dtype] - 1),
        }
        share = min(1.0, SCHEDULERS * max(busy.values()) / loop.alone)
        used = 1 - (1 - share) ** (self.warps / SCHEDULERS)
        cycles = busy | {
            "waiting": loop.alone / self.warps,
            "expected": max(busy.values()) / used,
        }
        work = processors * hertz * 32 / code.lanes * code.samples / samples
        return {what: work / each for what, each in cycles.items()}


@dataclass(frozen=True)
class _Instruction:
    """One line of machine code.

    Args:
        name: What it does.
        how: The rest of its name.
        back: How far a branch jumps back in it, if at all.
        control: What its warp waits for, bit by bit: 4 of cycles, 1 of no interest here, 3 for the
            barrier that is passed when it has written, 3 when it has read (7 for none), and one for
            each of six that must be passed before.
    """

    name: str
    how: str
    back: int
    control: int


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


@functools.cache
def report(code: Layout, arch: str) -> Report:
    """Compile the kernel with its samples in shared memory, and look at what came out."""
    binary = cuda.compiled(SOURCE.read_bytes(), code.constants(resident=True), arch)
    return Report(
        code=code,
        arch=arch,
        registers=int(_said(binary.log, r"Used (\d+) registers")),
        spilled=sum(int(_said(binary.log, rf"(\d+) bytes spill {w}")) for w in ("stores", "loads")),
        loop=innermost(binary.code, code.dtype),
    )


def innermost(code: bytes, dtype: str) -> Loop:
    """The innermost loop that has most of the fused operations."""
    text = list(_instructions(_disassembled(code)))
    first, last = _innermost(text, KINDS[dtype][0])
    loop = text[first : last + 1]
    names = collections.Counter(one.name for one in loop)
    return Loop(
        operations=Operations(*(names[name] for name in KINDS[dtype])),
        instructions=len(loop),
        shared=names["LDS"] + names["SHFL"] + sum(".128" in one.how for one in loop),
        alone=_alone(loop),
    )


def _alone(loop: list[_Instruction]) -> int:
    """Cycles for one warp with a scheduler to itself."""
    now, passed = 0, [0] * 6
    for one in loop:
        now = max([now, *(passed[b] for b in range(6) if one.control >> 11 & 1 << b)])
        for barrier in (one.control >> 5 & 7, one.control >> 8 & 7):
            if barrier < len(passed):
                passed[barrier] = now + (LOADED if one.name == "LDS" else WAIT)
        now += max(1, one.control & 15)
    return now


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
        command = [str(tool), "-c", "-hex", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(text: str) -> Iterator[_Instruction]:
    places: dict[str, int] = {}
    lines = text.splitlines()
    at = 0
    for line, after in itertools.pairwise(lines):
        if label := re.match(r"(\.L\w+):", line):
            places[label[1]] = at
        elif found := re.match(
            r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)([\w.]*)(.*)", line
        ):
            to = re.search(r"`\((\.L\w+)\)", found[3])
            jumps = found[1] == "BRA" and to and to[1] in places
            back = at - places[to[1]] if jumps and to else 0
            control = int(after.split()[1], 16) >> 41  # of the second 8 bytes of its code
            yield _Instruction(found[1], found[2], back, control)
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
