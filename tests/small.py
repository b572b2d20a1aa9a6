"""Small finished runs of tiny networks, made in a second."""

from pathlib import Path

from fractal_core import Axis, Region, Store, Sweep, TinyNetworks, engine

QUICK = TinyNetworks(samples=8, steps=60)
WIDE = (1e-3, 1e6)


def region(x=WIDE, y=WIDE, rows=16, cols=24) -> Region:
    return Region(Axis("lr_input", *x, cols), Axis("lr_output", *y, rows))


def run(root: Path, name: str, where: Region, experiment=QUICK, whole: bool = True) -> Store:
    """A run folder, trained unless told otherwise."""
    store = Store.create(root / name, Sweep.over(experiment, where))
    for _ in engine.run_here(store) if whole else ():
        pass
    return store
