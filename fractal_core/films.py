"""Films of runs: what lies between two, what that costs, and a film made in the background.

The order in which runs are named does not matter: a film goes from the widest to the narrowest. In
the background it is the command `fractal film`, at work on the folder of the narrowest run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from fractal_core import errands, explore, film, outlook, recipe
from fractal_core.errors import Refused
from fractal_core.explore import View
from fractal_core.store import Store

FOLDER = "state/film"


def roll(
    stores: Sequence[Store],
    suffix: str,
    *,
    palette: str = "split",
    size: int = film.SIZE,
    per_factor: int = film.PER_FACTOR,
    rate: int = film.RATE,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> bytes:
    """The file of a film through runs, each a zoom of another; see `film.frames` and `film.encode`.

    Raises:
        Refused: They are no chain, were trained otherwise, or the format cannot be written here.
    """
    film.require_encoder(suffix)
    stores = wide_first(stores)
    frames = film.frames(
        [store.image() for store in stores],
        stores[0].sweep.labels,
        palette=palette,
        size=size,
        per_factor=per_factor,
        tell=tell,
    )
    drawn = {"palette": palette, "size": size, "per_factor": per_factor, "rate": rate}
    told = recipe.text("film", stores, drawn, recipe.caption(stores[-1]))
    return film.encode(frames, suffix, rate=rate, recipe=told)


def wide_first(stores: Sequence[Store]) -> list[Store]:
    """Runs from the widest to the narrowest.

    Raises:
        Refused: There is none, or they were not all trained in the same way.
    """
    if not stores:
        raise Refused("a film needs a run; name one or more")
    first = stores[0].sweep
    for store in stores[1:]:
        if (store.sweep.experiment, store.sweep.seed) != (first.experiment, first.seed):
            raise Refused(
                f"{store.path.name} and {stores[0].path.name} were not trained in the same way; "
                "a film needs runs that are zooms of one another"
            )

    return sorted(stores, key=lambda store: film.area(store.sweep.region), reverse=True)


def keyframes(stores: Sequence[Store]) -> list[View]:
    """Views of all maps that a film between two runs needs, one for every factor of two.

    They lie beside the wider run. Those that are there are found again, whatever their name.

    Raises:
        Refused: There are not two runs, one is no part of the other, or neighbouring values would
            be too close for the arithmetic.
    """
    if len(stores) != 2:
        raise Refused("keyframes lie between two runs; name the widest and the narrowest")
    outer, inner = wide_first(stores)
    views = []
    for number, region in enumerate(film.keyframes(outer.sweep.region, inner.sweep.region), 1):
        sweep = outer.sweep.zoom(region)
        sweep.require_resolution()
        label = f"{inner.path.name}-key{number:02d}"
        views.append(explore.view_of(outer.path.parent, sweep, label, parent=outer.path))
    return views


def price(views: Sequence[View], stores: Sequence[Store]) -> str:
    """What keyframes between two runs would cost, in words."""
    outer = wide_first(stores)[0].path
    like = explore.open_view(outer.parent, outer.name)
    costs = [explore.cost(view, like=like) for view in views]
    runs, seconds = sum(cost.runs for cost in costs), [cost.seconds for cost in costs]
    if not runs:
        return f"{len(views)} keyframes, all computed already"
    known = [each for each in seconds if each is not None]
    time = f"{outlook.about(sum(known))} on this machine"
    time = time if len(known) == len(costs) else "of unknown length, as none is trained yet"
    return f"{len(views)} keyframes, {runs:,} runs to train, {time}"


def make(views: Sequence[View]) -> list[Store]:
    """The run folders of views, made where they are not there; nothing is trained."""
    return [view.store or Store.create(view.path, view.sweep) for view in views]


def commands(runs: Sequence[Path], between: Sequence[Store]) -> tuple[str, str]:
    """What trains keyframes, and then makes the film through them."""
    names = " ".join(str(store.path) for store in between)
    return (
        f"for run in {names}; do fractal run $run; done",
        f"fractal film {' '.join(map(str, runs))} {names} --out ZOOM.mp4",
    )


def begin(stores: Sequence[Store], out: Path, *, palette: str, size: int) -> int:
    """Have a process of its own session make a film; returns its id.

    It outlives the notebook. While a film that ends at the same run is being made, that one goes on.

    Args:
        stores: The runs.
        out: File to write.
        palette: A name in `figures.PALETTES`.
        size: Edge of the map in pixels.

    Raises:
        Refused: The runs cannot be one film, or the format cannot be written here.
    """
    film.require_encoder(out.suffix)
    runs = [str(store.path) for store in wide_first(stores)]
    options = ["--out", str(out), "--palette", palette, "--size", str(size)]
    return errands.start(Path(runs[-1]) / FOLDER, ["fractal_core", "film", *runs, *options])


def last(stores: Sequence[Store]) -> errands.Errand | None:
    """The film that was last begun of these runs, or of others that end at the same one."""
    return errands.last(wide_first(stores)[-1].path / FOLDER)


def stop(stores: Sequence[Store]) -> bool:
    """End the making of that film; no half of it is left. True if it was being made.

    Raises:
        Refused: It is made on another machine.
    """
    return errands.ask_to_stop(wide_first(stores)[-1].path / FOLDER)


def told(errand: errands.Errand | None) -> str:
    """How far the making of a film is, or how it ended; empty if none was begun."""
    if errand is None:
        return ""
    return f"{errand.state}: {errand.tail(1).removeprefix('fractal: ')}"
