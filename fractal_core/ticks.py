"""Where an axis is marked, and with which digits."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from fractal_core.plane import Axis

MINUS = "\N{MINUS SIGN}"


class Ticks(NamedTuple):
    """The marked values of an axis, as exact decimals, and their texts.

    `note` says how the labels are read, as `13.29977 + tick × 10⁻⁶`; it is empty where a label is
    the value itself. `minor` are marks without a text.
    """

    values: Sequence[Decimal]
    labels: Sequence[str]
    note: str = ""
    minor: Sequence[Decimal] = ()


def ticks(axis: Axis, most: int = 6) -> Ticks:
    """Mark an axis in about `most` places, with no more digits than tell them exactly.

    Two decades and more take powers of ten, narrower logarithmic axes 1, 2, 5 and then round
    numbers. In a deep zoom the digits that all labels share are said once, in `note`, and the
    labels count small steps from there.
    """
    # The shortest text of an end, not its binary value: 0.1 must not miss the axis that starts so.
    low, high = Decimal(str(float(axis.low))), Decimal(str(float(axis.high)))
    if axis.scale == "log10":
        decades = range(low.adjusted(), high.adjusted() + 1)
        fine = [Decimal(m).scaleb(k) for k in decades for m in range(1, 10)]
        fine = [value for value in fine if low <= value <= high]
        powers = [value for value in fine if value.as_tuple().digits == (1,)]
        if len(powers) >= 3:
            return _powers(powers, most, minor=fine if len(powers) <= 6 else powers)
        few = [value for value in fine if value.as_tuple().digits in ((1,), (2,), (5,))]
        if len(few) >= 3:
            return Ticks(few, *_texts(few, few[0].adjusted(), even=False), minor=fine)
    start = ((high - low) / most).adjusted()
    for step in (Decimal(m).scaleb(start + k) for k in range(9) for m in (1, 2, 5)):
        values = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(values) <= most and not (axis.integer and step < 1):
            break
    return Ticks(values, *_texts(values, step.adjusted(), even=True))


def _powers(powers: list[Decimal], most: int, minor: list[Decimal]) -> Ticks:
    """Powers of ten, every nth of them, where an n that reaches both ends is preferred."""
    first, last = powers[0].adjusted(), powers[-1].adjusted()
    strides = range(math.ceil(len(powers) / most), 1 + max(1, (last - first) // 2))
    stride = min(strides, key=lambda n: (first % n != 0 or last % n != 0, n))
    chosen = [value for value in powers if value.adjusted() % stride == 0]
    return Ticks(chosen, [power_of_ten(value.adjusted()) for value in chosen], minor=minor)


def _texts(values: list[Decimal], exponent: int, even: bool) -> tuple[list[str], str]:
    """Labels of whole multiples of 10^exponent, and the note to read them by.

    Values of at most six characters stand for themselves, with as many decimals each if `even`.
    Longer ones are counted in units of 10^exponent, and from a round number if that is not enough.
    """
    plain = [f"{v:.{max(0, -exponent)}f}" if even else f"{v.normalize():f}" for v in values]
    note = ""
    if max(map(len, plain)) > 6:
        anchor, note = Decimal(0), f"tick × {power_of_ten(exponent)}"
        if max(map(abs, values)) >= Decimal(10).scaleb(exponent + 3):
            tens = (values[0] + values[-1]).scaleb(-exponent - 1) / 2
            anchor = round(tens) * Decimal(10).scaleb(exponent)
            size = anchor.adjusted()
            power = "" if -5 < size < 6 else f" × {power_of_ten(size)}"
            shown = anchor.scaleb(-size) if power else anchor
            note = f"{shown.normalize():f}{power} + {note}"
        counts = [int((value - anchor).scaleb(-exponent)) for value in values]
        plain = [f"{n:+d}" if anchor and n else f"{n}" for n in counts]
    return [text.replace("-", MINUS) for text in plain], note.replace("-", MINUS)


def power_of_ten(exponent: int) -> str:
    """10 to an exponent, as 10⁻³."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def digits_of(low: float, high: float) -> int:
    """Significant digits in which two ends differ by hundreds, 4 to 17."""
    apart = max(abs(low), abs(high)) / (high - low)
    return min(17, 3 + math.ceil(math.log10(max(apart, 2))))


def number(value: float, digits: int | None = None) -> str:
    """A number as it is printed, with so many digits or with the fewest that are exact."""
    text = repr(float(value)) if digits is None else f"{value:#.{digits}g}".rstrip(".")
    mantissa, _, power = text.partition("e")
    text = mantissa if digits else mantissa.removesuffix(".0")
    text = f"{text} × {power_of_ten(int(power))}" if power else text
    return text.replace("-", MINUS)


def brief(low: float, high: float) -> tuple[str, str]:
    """Two ends for a sentence: exact where that is short, or to 10^-4 of what lies between them."""
    digits = min(17, digits_of(low, high) + 2)
    exact, rounded = (number(low), number(high)), (number(low, digits), number(high, digits))
    return min(exact[0], rounded[0], key=len), min(exact[1], rounded[1], key=len)
