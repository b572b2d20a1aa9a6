"""Tiny networks written as LLVM vector instructions, one network per SIMD lane.

Python emits the arithmetic of `contract` once, since LLVM's own vectoriser neither keeps the
accumulators in registers nor uses whole 512-bit registers. Several samples are taken at a time, so
that a weight loaded once serves them all; that does not change the order within any sum.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from llvmlite import ir
from numba.core import cgutils

from fractal_core.kernels.contract import CONTRACT, TANH

EMITTED = crc32(Path(__file__).read_bytes())
"""A fingerprint of the code that emits the kernel."""

SAMPLES = 4
"""Samples taken at a time."""

I64 = ir.IntType(64)


class Variant(NamedTuple):
    """Which code to emit. Numba sees it as a string, the only constant that reaches an intrinsic.

    The working memory holds vectors: W1 and W2, their gradients, the loss with three numbers per
    lane (both rates and the drift), then the hidden units of the samples at hand.
    """

    activation: str
    dtype: str
    width: int
    lanes: int
    tile: int
    loss: int = 1
    gradient: int = 1

    @property
    def key(self) -> str:
        """The variant as a string, with what else the code depends on.

        Numba drops what it kept on disk when the file of the compiled function changes, which
        this file and `contract` are not.
        """
        return " ".join(map(str, (*self, EMITTED, CONTRACT, *TANH[self.dtype])))

    @classmethod
    def read(cls, key: str) -> "Variant":
        activation, dtype, *numbers = key.split()[: len(cls._fields)]
        return cls(activation, dtype, *map(int, numbers))

    @property
    def weights(self) -> int:
        return self.width * (self.width + 1)

    @property
    def hidden(self) -> int:
        return 2 * self.weights + 4

    @property
    def memory(self) -> int:
        return (self.hidden + SAMPLES * self.width) * self.lanes


class Lanes:
    """Arithmetic on one number per lane, emitted as LLVM vector instructions."""

    def __init__(self, builder, variant):
        self.builder, self.variant = builder, variant
        self.scalar = ir.DoubleType() if variant.dtype == "float64" else ir.FloatType()
        self.bits = ir.IntType(64 if variant.dtype == "float64" else 32)
        self.vector = ir.VectorType(self.scalar, variant.lanes)
        self.suffix = f"v{variant.lanes}f{self.bits.width}"
        self.add, self.sub, self.mul = builder.fadd, builder.fsub, builder.fmul
        self.neg = builder.fneg

    def repeat(self, kind, value):
        return ir.Constant(
            ir.VectorType(kind, self.variant.lanes), [ir.Constant(kind, value)] * self.variant.lanes
        )

    def number(self, value):
        """A constant, the same in every lane."""
        return self.repeat(self.scalar, value)

    def call(self, name, *args):
        """An operation that LLVM has a name for."""
        kind = ir.FunctionType(self.vector, [arg.type for arg in args])
        name = f"llvm.{name}.{self.suffix}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, args)

    def fma(self, a, b, c):
        return self.call("fma", a, b, c)

    def polynomial(self, x, coefficients):
        """The polynomial in x, by Horner's rule; the constant coefficient comes first."""
        total = self.number(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.fma(total, x, self.number(coefficient))
        return total

    def choose(self, relation, a, b, then, otherwise):
        """`then` where the relation holds, which it never does for nan."""
        return self.builder.select(self.builder.fcmp_ordered(relation, a, b), then, otherwise)

    def place(self, pointer, index, more=0):
        """The address of vector number `index + more`."""
        base = self.builder.bitcast(pointer, self.vector.as_pointer())
        index = I64(index) if isinstance(index, int) else index
        return self.builder.gep(base, [self.builder.add(index, I64(more))])

    def load(self, *place):
        return self.builder.load(self.place(*place), align=self.bits.width // 8)

    def store(self, value, *place):
        self.builder.store(value, self.place(*place), align=self.bits.width // 8)

    def broadcast(self, pointer, index=0):
        """The number at `pointer[index]`, in every lane."""
        value = self.builder.load(self.builder.gep(pointer, [I64(index)]))
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, nothing, self.repeat(ir.IntType(32), 0))

    def gather(self, table, index):
        """`table[index]`, with an index per lane."""
        places = self.builder.gep(table, [index], source_etype=self.scalar)
        # llvmlite types this address as scalar, though a vector of indices makes a vector of it.
        places.type = ir.VectorType(ir.PointerType(), self.variant.lanes)
        every, align = self.repeat(ir.IntType(1), 1), ir.IntType(32)(self.bits.width // 8)
        kind = ir.FunctionType(self.vector, [places.type, align.type, every.type, self.vector])
        name = f"llvm.masked.gather.{self.suffix}.v{self.variant.lanes}p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [places, align, every, self.number(0.0)])

    @contextmanager
    def loop(self, start, stop, step):
        """A loop that runs in the compiled code; yields its index."""
        bounds = [I64(n) if isinstance(n, int) else n for n in (start, stop, step)]
        with cgutils.for_range_slice(self.builder, *bounds, intp=I64) as (index, _):
            yield index

    def tanh(self, x, table):
        """tanh, by the recipe and with the names of `contract`."""
        recipe = TANH[self.variant.dtype]
        magic = 1.5 * 2.0 ** (52 if self.variant.dtype == "float64" else 23) / recipe.cells
        magic, limit, one = map(self.number, (magic, recipe.limit, 1.0))
        y = self.call("fabs", x)
        y = self.choose(">", y, limit, limit, y)
        z = self.add(y, magic)
        h = self.sub(y, self.sub(z, magic))
        bits = self.builder.bitcast(z, ir.VectorType(self.bits, self.variant.lanes))
        t = self.gather(table, self.builder.and_(bits, self.repeat(self.bits, recipe.entries - 1)))
        q = self.mul(h, h)
        tanh_h = self.fma(self.polynomial(q, recipe.odd), self.mul(h, q), h)
        w = self.mul(t, tanh_h)
        f = self.sub(one, w)
        for _ in range(recipe.terms - 1):
            f = self.fma(self.neg(w), f, one)
        slope = self.fma(self.neg(t), t, one)
        return self.call("copysign", self.fma(self.mul(slope, tanh_h), f, t), x)


class Pass(Lanes):
    """Forward and backward pass of a few samples, for all lanes."""

    def __init__(self, builder, variant, memory, table):
        super().__init__(builder, variant)
        self.memory, self.table = memory, table

    def tiles(self, emit):
        """Emit `emit(first, count)` for tiles of hidden units, of which one may be smaller."""
        width, tile = self.variant.width, self.variant.tile
        whole = width // tile * tile
        if whole:
            with self.loop(0, whole, tile) as first:
                emit(first, tile)
        if width > whole:
            emit(I64(whole), width - whole)

    def forward(self, rows):
        """Store the hidden units, before their activation."""
        width, memory = self.variant.width, self.memory

        def emit(first, count):
            u = [[None] * count for _ in rows]
            for k in range(width):
                weights = [self.load(memory, first, k * width + j) for j in range(count)]
                for s, row in enumerate(rows):
                    x = self.broadcast(row, k)
                    for j, w in enumerate(weights):
                        u[s][j] = self.fma(x, w, u[s][j]) if k else self.mul(x, w)
            for s in range(len(rows)):
                for j in range(count):
                    self.store(u[s][j], memory, first, self.variant.hidden + s * width + j)

        self.tiles(emit)

    def activate(self, samples):
        """Put every hidden unit through the activation, in place."""
        if self.variant.activation == "identity":
            return
        width, zero = self.variant.width, self.number(0.0)
        # Enough at a time that loading the constants of tanh does not count.
        several = 1 if samples == 1 else samples * (2 - width % 2)
        with self.loop(
            self.variant.hidden, self.variant.hidden + samples * width, several
        ) as first:
            for more in range(several):
                u = self.load(self.memory, first, more)
                tanh = self.variant.activation == "tanh"
                a = self.tanh(u, self.table) if tanh else self.choose("<", u, zero, zero, u)
                self.store(a, self.memory, first, more)

    def residual(self, s, target, inv_width):
        """Output less target of sample s, from the hidden units in memory."""
        width, memory = self.variant.width, self.memory
        p = [
            self.mul(
                self.load(memory, self.variant.hidden + s * width + j),
                self.load(memory, width * width + j),
            )
            for j in range(width)
        ]
        half = 1 << (width - 1).bit_length() >> 1
        while half:
            for j in range(min(half, width - half)):
                p[j] = self.add(p[j], p[j + half])
            half >>= 1
        return self.fma(p[0], inv_width, self.neg(target))

    def count(self, residuals):
        """Add to the loss."""
        total = self.load(self.memory, 2 * self.variant.weights)
        for r in residuals:
            total = self.fma(r, r, total)
        self.store(total, self.memory, 2 * self.variant.weights)

    def backward(self, rows, errors):
        """Add to the gradients."""
        width, memory = self.variant.width, self.memory
        one, zero = self.number(1.0), self.number(0.0)

        def slope(a, d):
            if self.variant.activation == "tanh":
                return self.mul(d, self.fma(self.neg(a), a, one))
            return self.choose(">", a, zero, d, zero) if self.variant.activation == "relu" else d

        def emit(first, count):
            d = [[None] * count for _ in rows]
            for j in range(count):
                w2 = self.load(memory, first, width * width + j)
                place = first, self.variant.weights + width * width + j
                g2 = self.load(memory, *place)
                for s, e in enumerate(errors):
                    a = self.load(memory, first, self.variant.hidden + s * width + j)
                    g2 = self.fma(e, a, g2)
                    d[s][j] = slope(a, self.mul(e, w2))
                self.store(g2, memory, *place)
            for k in range(width):
                x = [self.broadcast(row, k) for row in rows]
                for j in range(count):
                    place = first, self.variant.weights + k * width + j
                    g1 = self.load(memory, *place)
                    for s in range(len(rows)):
                        g1 = self.fma(x[s], d[s][j], g1)
                    self.store(g1, memory, *place)

        self.tiles(emit)
