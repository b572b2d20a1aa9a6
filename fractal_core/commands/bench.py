"""Commands that measure speed: bench."""

import dataclasses
import json
import math
import os
import statistics
import sys
from typing import Literal

import tyro

from fractal_core import machine
from fractal_core.bench import cuda as bench_cuda
from fractal_core.bench import dim, engine, finetune, machinecode, tiny, zoom
from fractal_core.commands import Json
from fractal_core.errors import require_known
from fractal_core.kernels import cuda
from fractal_core.kernels.layout import Layout

ZOOM_FIGURES = {
    "preview": "mouse up to preview of the selection, ms",
    "parent": "click to the parent's picture, scaled, ms",
    "first": "click to the first 256 runs on screen, ms",
    "level 2": "next 768 runs, time on screen / training",
    "level 1": "next 3,072 runs, time on screen / training",
}

H100 = (132, 1.755e9)
"""Processors of an H100, and the clock that it sustains under float64 work."""

WAYS = (finetune.OLD, finetune.NEW)


def bench(
    what: tyro.conf.Positional[Literal["tiny", "code", "engine", "dim", "zoom", "finetune"]],
    /,
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    only: tuple[str, ...] = (),
    device: finetune.Device = "cpu",
    check: int = 0,
    as_json: Json = False,
) -> int:
    """Measure speed: contenders take turns, ratios are within a round.

    Args:
        what: `tiny`: the kernel of the tiny networks. `code`: what the GPU's kernel was compiled
            to, for which no GPU is needed. `engine`: what worker processes cost.
            `dim`: counting boxes. `zoom`: the zoom notebook in a browser. `finetune`: a language
            model, against a process for every point.
        rounds: Turns of every contender, or zooms; left out, 7, 4, 3, 3 and 3.
        seconds: How long a turn of `tiny` and a long unit of `engine` take; left out, 0.5 and 1.
        only: Cases of `tiny` and `code`, for example tanh-full-float64, or of `finetune`: training,
            everything; left out, all.
        device: Where `tiny` and `finetune` train: cpu or cuda; each has a language model of its size.
        check: First compare the bits of `tiny --device cuda` with the CPU's, on the golden windows
            and at so many random points of every condition; the exit code is 1 if any differ.
        as_json: One JSON object and nothing else.
    """
    if what == "zoom":
        _zoom(3 if rounds is None else rounds, as_json)
    elif what == "engine":
        _engine(4 if rounds is None else rounds, seconds or 1.0, as_json)
    elif what == "finetune":
        _finetune(3 if rounds is None else rounds, device, only, as_json)
    elif what == "dim":
        _dim(3 if rounds is None else rounds, as_json)
    elif what == "code":
        _code(only, as_json)
    elif device == "cuda":
        return _gpu(7 if rounds is None else rounds, seconds or 0.5, only, check, as_json)
    else:
        _tiny(7 if rounds is None else rounds, seconds or 0.5, only, as_json)
    return 0


def _tiny(rounds: int, seconds: float, only: tuple[str, ...], as_json: bool) -> None:
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
    _headline(rounds, machine.versions())
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


def _code(only: tuple[str, ...], as_json: bool) -> None:
    rows = []
    for case in tiny.cases():
        name = "-".join(dataclasses.astuple(case))
        if case.mode != "full" or (only and name not in only):
            continue
        problem = case.experiment(21).problem(0)
        choices, every = Layout.choices(problem), bench_cuda.layouts(problem)
        pairs = [(code, arch) for code in choices for arch in machinecode.ARCHS]
        pairs += [(code, "sm_90") for code in every if code not in choices]
        for code, arch in pairs:
            found = machinecode.report(code, arch)
            row = {"case": name, **dataclasses.asdict(found), "warps": found.warps}
            row["wanted"] = dataclasses.asdict(machinecode.wanted(code))
            row["h100"] = found.rates(272, *H100) if arch == "sm_90" else {}
            rows.append(row)
    if as_json:
        print(json.dumps({"versions": machine.versions(), "kernels": rows}))
        return
    print(
        "full batch, width 16; operations of the innermost loop; on an H100, for 272 samples, million "
        "point-steps/s:\nwhat arithmetic, issue, shared memory and waiting allow, and what to expect"
    )
    print(
        f"{'kernel: units, samples, threads':<40}{'registers':>10}{'spilled':>9}{'warps':>7}{'fused':>7}"
        f"{'mul':>5}{'add':>5}{'all':>5}{'arith':>8}{'issue':>6}{'shared':>7}{'wait':>6}{'expect':>7}"
    )
    for row in rows:
        code, loop = row["code"], row["loop"]
        name = f"{row['case']} {code['units']},{code['samples']},{code['threads']} {row['arch']}"
        counts = (*loop["operations"].values(), loop["instructions"])
        print(
            f"{name:<40}{row['registers']:>10}{row['spilled']:>9}{row['warps']:>7}"
            + "{:>7}{:>5}{:>5}{:>5} ".format(*counts)
            + "".join(f"{rate / 1e6:>7.1f}" for rate in row["h100"].values())
        )


def _gpu(rounds: int, seconds: float, only: tuple[str, ...], check: int, as_json: bool) -> int:
    gpu, equal, rows = cuda.gpu(), [], []
    absent = bench_cuda.left_out()
    for why in absent.values():
        print(why, file=sys.stderr, flush=True)
    if check:
        for found in bench_cuda.equalities(check, steps=200):
            equal.append(dataclasses.asdict(found))
            print(
                f"{found.name}: {found.points} points, {found.ended} ended early, "
                f"{found.differing} differ from the CPU",
                file=sys.stderr,
                flush=True,
            )
    for case in tiny.cases():
        name = "-".join(dataclasses.astuple(case))
        if not only or name in only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(bench_cuda.measure(case, rounds, seconds).report())
    differ = sum(found["differing"] for found in equal)
    if as_json:
        report = {"machine": machine.describe(), "gpu": gpu.name, "rounds": rounds}
        print(json.dumps(report | {"equality": equal, "left_out": absent, "cases": rows}))
        return int(differ > 0)
    _headline(rounds, machine.versions())
    print(f"{gpu.name}; {sum(e['points'] for e in equal)} points compared, {differ} differ")
    print("point-steps/s executed: median (minimum to maximum); times faster: minimum (median)")
    for row in rows:
        rate = sorted(row["rates"]["kernel"])
        print(
            f"{row['case']:<26}{statistics.median(rate):>10.3g} ({rate[0]:.3g} to {rate[-1]:.3g}), "
            f"{row['share_of_peak']:.1%} of the card's peak"
        )
        for who, (low, middle) in row["times_faster"].items():
            print(f"  {who:<24}{low:>10.1f} ({middle:.1f})")
        for how, each in row["layouts"].items():
            print(f"  {how:<40}{each:>10.3g}")
    return int(differ > 0)


def _engine(rounds: int, seconds: float, as_json: bool) -> None:
    if not as_json:
        print("units of one point, then long ones ...", file=sys.stderr, flush=True)
    results = engine.measure(rounds, seconds)
    if as_json:
        turns = {kind: [dataclasses.asdict(turn) for turn in of] for kind, of in results.items()}
        print(json.dumps({"machine": machine.describe(), "turns": turns}))
        return
    _headline(rounds, machine.versions())
    print(
        f"{'units':<12}{'timed':>7}{'bare, ms':>10}{'overhead, ms: median (worst)':>30}{'share':>18}"
    )
    for kind, turns in results.items():
        bare = statistics.median(1e3 * turn.bare for turn in turns)
        extra = sorted(1e3 * turn.overhead for turn in turns)
        share = sorted(turn.share for turn in turns)
        print(
            f"{kind:<12}{sum(turn.units for turn in turns):>7}{bare:>10.2f}"
            f"{statistics.median(extra):>20.2f} ({extra[-1]:.2f})"
            f"{statistics.median(share):>12.1%} ({share[-1]:.1%})"
        )
    starts = sorted(turn.start for turns in results.values() for turn in turns)
    print(f"from the command to the first commit {starts[0]:.2f} to {starts[-1]:.2f} s")


def _dim(rounds: int, as_json: bool) -> None:
    if not as_json:
        print("counting boxes on one core ...", file=sys.stderr, flush=True)
    found = dim.measure(rounds)
    seconds = {name: found.seconds(name) for name in found.rates.by_name}
    ratios = {
        name: found.rates.ratio(name, "porespy")
        for name in found.rates.by_name
        if name != "porespy"
    }
    if as_json:
        report = {"machine": machine.describe(), "rounds": rounds, "side": found.side}
        report |= {"edge_density": found.edge_density, "seconds": seconds, "times_faster": ratios}
        print(json.dumps(report))
        return
    _headline(rounds, machine.versions())
    print(f"{found.side} x {found.side} cells, {found.edge_density:.1%} of them boundary")
    print(f"{'boxes':<12}{'s per mask, median':>20}{'times porespy: minimum (median)':>34}")
    for name, each in seconds.items():
        low, middle = ratios.get(name, (1.0, 1.0))
        print(f"{name:<12}{each:>20.3f}{low:>24.1f} ({middle:.1f})")


def _finetune(rounds: int, device: finetune.Device, only: tuple[str, ...], as_json: bool) -> None:
    results: dict[str, finetune.Result] = {}
    load = [os.getloadavg()[0]]
    for what in only:
        require_known("case", what, tuple(finetune.MEASURES))
    for what, measure in finetune.MEASURES.items():
        if not only or what in only:
            if not as_json:
                print(f"{what} ...", file=sys.stderr, flush=True)
            results[what] = measure(finetune.Case.usual(what, device), rounds)
            load.append(os.getloadavg()[0])
    if as_json:
        report = {"machine": machine.describe(), "gpus": [gpu.name for gpu in machine.gpus()]}
        report |= {"load": load, "rounds": rounds}
        print(json.dumps(report | {what: found.report() for what, found in results.items()}))
        return
    _headline(rounds, machine.versions())
    gpus = [gpu.name for gpu in machine.gpus()]
    print(", ".join([*gpus, f"load {min(load):.1f} to {max(load):.1f}"]))
    for what, found in results.items():
        _finetune_rows(what, found)


def _finetune_rows(what: str, found: finetune.Result) -> None:
    case, texts = found.case, found.texts
    print(
        f"{what}: depth {case.shape.depth}, vocabulary {case.shape.vocab_size}, {case.dtype} on "
        f"{case.device}, {case.steps} steps of 8 texts of {texts['tokens_mean']:.0f} tokens (at most "
        f"{texts['tokens_most']}), {texts['learned']:.1%} of them learned"
    )
    print(f"  {'':<28}{'old way':>10}{'fractal':>10}{'times faster: minimum (median)':>34}")
    start = "".join(f"{found.start.get(way, math.nan):>10.3f}" for way in WAYS)
    print(f"  {'s to start, per point':<28}{start}")
    for name, rates in found.rates().items():
        if rates is not None:
            seconds = "".join(f"{1 / rates.median(way):>10.3f}" for way in WAYS)
            low, middle = rates.ratio(finetune.NEW, finetune.OLD)
            print(f"  {'s per ' + name.replace('_', ' '):<28}{seconds}{low:>24.1f} ({middle:.1f})")
    print(
        f"  losses differ by at most {found.difference(finetune.NEW):.2g} nats; the old way's own, "
        f"with the rows of a batch in another order, by {found.difference('permuted'):.2g}"
    )


def _headline(rounds: int, versions: dict[str, str]) -> None:
    print(f"{machine.cpu_name()}, {machine.cpu_threads()} threads; rounds: {rounds}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


def _zoom(rounds: int, as_json: bool) -> None:
    if not as_json:
        print("training the overview to zoom from ...", file=sys.stderr, flush=True)
    results, versions = zoom.measure(rounds)
    figures = zoom.summary(results)
    if as_json:
        report = {
            "machine": machine.describe(),
            "browser": versions,
            "grid": zoom.GRID,
            "steps": zoom.STEPS,
            "figures": {name: {"median": m, "worst": w} for name, (m, w) in figures.items()},
            "rounds": [dataclasses.asdict(result) for result in results],
        }
        print(json.dumps(report))
        return
    _headline(rounds, machine.versions() | versions)
    cold = sum(not result.warm for result in results)
    how = f"{cold} of {len(results)} from a cold start" if cold else "all with a warm process"
    print(f"tanh network, {zoom.STEPS} steps, {zoom.GRID} x {zoom.GRID}; {how}")
    print(f"{'':<46}{'median':>8}{'worst':>8}")
    for name, words in ZOOM_FIGURES.items():
        scale, digits = (1, 2) if name.startswith("level") else (1e3, 0)
        shown = "".join(f"{value * scale:>8.{digits}f}" for value in figures[name])
        print(f"{words:<46}{shown}")


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
