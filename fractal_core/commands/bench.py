"""Commands that measure speed: bench."""

import dataclasses
import json
import sys
from typing import Literal

import tyro

from fractal_core import machine
from fractal_core.bench import tiny
from fractal_core.commands.work import Json


def bench(
    what: tyro.conf.Positional[Literal["tiny"]],
    /,
    *,
    rounds: int = 7,
    seconds: float = 0.5,
    only: tuple[str, ...] = (),
    as_json: Json = False,
) -> None:
    """Measure speed: contenders take turns, ratios are within a round.

    Args:
        what: `tiny`: the kernel of the tiny networks.
        rounds: Turns of every contender.
        seconds: How long a turn takes.
        only: Cases, for example tanh-full-float64; left out, all.
        as_json: One JSON object and nothing else.
    """
    rows = []
    for case in tiny.cases():
        name = "-".join(dataclasses.astuple(case))
        if only and name not in only:
            continue
        if not as_json:
            print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(_row(name, tiny.measure(case, rounds, seconds)))
    report = {"machine": machine.describe(), "rounds": rounds, "cases": rows}
    if as_json:
        print(json.dumps(report))
        return
    print(f"{machine.cpu_name()}, {machine.cpu_threads()} threads; {rounds} rounds in turns")
    print(", ".join(f"{name} {version}" for name, version in machine.versions().items()))
    print(
        "point-steps/s executed (median), share of the matrix peak, times faster: minimum (median)"
    )
    print(f"{'case':<26}{'kernel':>10}{'peak':>7}{'paper':>16}{'tuned':>16}{'torch':>16}")
    for row in rows:
        shown = "".join(
            f"{low:>8.1f} ({middle:>5.1f})" for low, middle in row["times_faster"].values()
        )
        note = "  void: the stand-in is too slow to be compared with" if row["void"] else ""
        print(
            f"{row['case']:<26}{row['rates']['kernel']:>10.3g}{row['share_of_peak']:>7.1%}{shown}{note}"
        )


def _row(name: str, result: tiny.Result) -> dict:
    contenders = ("paper", "tuned", "torch")
    return {
        "case": name,
        "flops_per_point_step": result.flops,
        "rates": {who: result.rates.median(who) for who in ("kernel", *contenders, "peak")},
        "share_of_peak": result.share_of_peak("kernel"),
        "paper_share_of_peak": result.share_of_peak("paper"),
        "times_faster": {who: result.rates.ratio("kernel", who) for who in contenders},
        "void": result.void(),
    }
