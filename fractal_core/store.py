"""A run folder: units committed once, and the picture they make so far.

The file of a unit is its commit marker: it appears whole or not at all, under a name that only one
writer can win. So whatever is killed, what was finished stays, and what is missing is the plan less
the files.
"""

import contextlib
import hashlib
import io
import json
import logging
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from fractal_core import machine
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.outcome import Outcomes, join
from fractal_core.plane import Grid, Region
from fractal_core.redact import redact
from fractal_core.sweep import (
    Batch,
    Sweep,
    Unit,
    canonical,
    from_json,
    plan,
    shared_out,
    to_json,
)

log = logging.getLogger(__name__)

ARRAYS = tuple(f.name for f in fields(Outcomes) if f.name != "extras")
BATCH = 256
"""Points of a survey that are trained and committed together."""

POINT_BYTES, UNIT_BYTES = 128, 4096
"""What a point and a unit take on the disk, rounded up."""

UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for a damaged file, which may seem to be encrypted or from the future."""


@dataclass(frozen=True, eq=False)
class Image:
    """The map so far: the arrays of `Outcomes` as masked (rows, cols) arrays over a grid.

    Masked means missing: not computed. Row 0 is the lowest y.
    """

    grid: Grid
    outcome: np.ma.MaskedArray
    measure: np.ma.MaskedArray
    first_loss: np.ma.MaskedArray
    tail_loss: np.ma.MaskedArray
    final_loss: np.ma.MaskedArray
    steps: np.ma.MaskedArray
    seconds: np.ma.MaskedArray

    @classmethod
    def empty(cls, grid: Grid) -> "Image":
        """A map of which nothing is computed."""
        kinds = {"outcome": np.uint8, "steps": np.int32}
        arrays = {name: np.zeros(grid.shape, kinds.get(name, np.float64)) for name in ARRAYS}
        return cls(grid, **{name: np.ma.masked_array(a, True) for name, a in arrays.items()})


def pack(points: Float64[np.ndarray, "n 2"], outcomes: Outcomes, meta: dict[str, Any]) -> bytes:
    """The file of a unit: an uncompressed npz, whose checksums tell a damaged one."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {name: getattr(outcomes, name) for name in ARRAYS}
    members |= outcomes.extras
    members |= {"points": points, "meta": np.frombuffer(canonical(meta).encode(), np.uint8)}
    np.savez(buffer, **members)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """All arrays of a unit's file; a damaged file raises one of `UNREADABLE`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def exported(image: Image) -> bytes:
    """A map as one npz file, for use elsewhere; what is missing is nan, or 0."""
    floats = ("measure", "first_loss", "tail_loss", "final_loss")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x=image.grid.x,
        y=image.grid.y,
        outcome=image.outcome.filled(0),
        steps=image.steps.filled(0),
        **{name: getattr(image, name).filled(np.nan) for name in floats},
    )
    return buffer.getvalue()


def _digest(units: list[Unit]) -> str:
    """The content of a plan; a digit that changed in it would leave a hole that nobody misses."""
    return hashlib.sha256(canonical(to_json(units)).encode()).hexdigest()


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe that a run folder holds, as plain JSON data.

    Raises:
        Refused: There is no run in that folder, or its recipe was edited.
    """
    try:
        recipe = json.loads((path / "sweep.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{path} is not a run folder; make one with `fractal new NAME`") from None
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict):
        raise Refused(f"{path}/sweep.json is not a readable recipe; restore it from a copy")
    return recipe


def read_grid(path: Path, recipe: dict[str, Any]) -> Grid:
    """The axis values that a run folder holds.

    A folder that holds nothing but its committed `sweep.json` has them computed again, which is
    only accepted if it gives back the very values that the recipe was made of.
    """
    region = from_json(Region, recipe["region"])
    stored = path / "axes.npz"
    try:
        if stored.exists():
            arrays = unpack(stored.read_bytes())
            grid = Grid(region, arrays["x"], arrays["y"])
        else:
            grid = Grid.over(region)
    except UNREADABLE:
        raise Refused(
            f"{stored} is damaged; restore it from a copy, or make the run anew"
        ) from None
    if grid.digest != recipe["axis_values_sha256"]:
        raise Refused(
            f"{path}: the axis values are not those of the recipe (they come from another "
            "machine); copy axes.npz along with sweep.json, or make the run anew"
        )
    return grid


class Store:
    """A run folder and the sweep it belongs to.

    Use `Store.create` to make one and `experiments.open_run` to open one.
    """

    def __init__(self, path: Path, sweep: Sweep):
        self.path = path
        self.sweep = sweep
        self.files = Files(path)
        try:
            described = json.loads(self.files.get("plan.json"))
            units = [from_json(Unit, item) for item in described["units"]]
            digest = _digest(units)
            if described.get("sha256", digest) != digest:
                raise ValueError
        except FileNotFoundError:
            if self.files.list("units"):
                raise Refused(f"{path}/plan.json is gone; restore it from a copy") from None
            units = plan(sweep.grid.shape, sweep.experiment.block)
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{path}/plan.json is damaged; restore it from a copy") from None
        self.units = {unit.key: unit for unit in units}
        self._seen: set[str] = set()
        self._surveys: dict[str, tuple[np.ndarray, int, list[int]]] = {}
        self._arrays: dict[str, np.ma.MaskedArray] = {}

    @classmethod
    def create(cls, path: Path, sweep: Sweep, block: int | None = None) -> "Store":
        """Make a run folder, whole or not at all; one that holds the same recipe is opened.

        Raises:
            Refused: The folder holds another recipe or something else, or cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise Refused(f"{path} is a file; choose another name for the run")
        if not path.exists() or not any(path.iterdir()):
            cls._make(path, sweep, block)
        elif not (path / "sweep.json").exists():
            raise Refused(f"{path} holds other files and is not a run folder; choose another name")
        existing = read_recipe(path).get("id")
        if existing != sweep.id:
            raise Refused(
                f"{path} holds another recipe ({existing}, not {sweep.id}); choose another name, "
                "or delete the folder if its results may go"
            )
        return cls(path, sweep)

    @staticmethod
    def _make(path: Path, sweep: Sweep, block: int | None) -> None:
        shape = sweep.grid.shape
        draft = path.parent / f".draft-{uuid.uuid4().hex}"
        axes = io.BytesIO()
        np.savez(axes, x=sweep.grid.x, y=sweep.grid.y)
        units = plan(shape, block or shared_out(shape, sweep.experiment.block))
        try:
            files = Files(draft)
            files.put_once("axes.npz", axes.getvalue())
            files.put_once(
                "plan.json", canonical({"units": to_json(units), "sha256": _digest(units)}).encode()
            )
            files.put_once("env.json", canonical(machine.describe()).encode())
            files.put_once("sweep.json", canonical({"id": sweep.id, **sweep.recipe}).encode())
            draft.rename(path)
        except OSError as error:
            # Another process may have made the very folder meanwhile; its recipe is compared next.
            if not (path / "sweep.json").exists():
                raise Refused(
                    f"cannot make {path}: {error.strerror}; choose a folder that can be written"
                ) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def missing(self, units: Sequence[Unit | Batch] | None = None) -> list[Unit | Batch]:
        """Those without a file, in the order given; left out, all of the map, coarse levels first."""
        done = {Path(key).stem for key in self.files.list("units")}
        return [u for u in (self.units.values() if units is None else units) if u.key not in done]

    def survey(
        self,
        name: str,
        points: Float64[np.ndarray, "n 2"] | None = None,
        record: Sequence[int] = (),
    ) -> list[Batch]:
        """The batches of a survey; its points are written down when they are given first.

        Args:
            name: Lower case, digits and dashes; says by a hash what the points come from.
            points: What is to be trained. Left out, a survey that is there is read.
            record: Steps whose losses its outcomes hold as well.

        Raises:
            Refused: There is no such survey, or one with other points or steps.
        """
        key = f"surveys/{name}.npz"
        if points is not None:
            buffer = io.BytesIO()
            np.savez(buffer, points=points, batch=BATCH, record=np.array(record, np.int64))
            self.files.put_once(key, buffer.getvalue())
        if name not in self._surveys:
            try:
                arrays = unpack(self.files.get(key))
            except UNREADABLE:
                raise Refused(
                    f"{self.path}/{key} is missing or damaged; remove it, and the same command "
                    "makes it again"
                ) from None
            steps = arrays["record"].tolist()
            self._surveys[name] = arrays["points"], int(arrays["batch"]), steps
        mine, size, steps = self._surveys[name]
        if points is not None and not (np.array_equal(mine, points) and steps == list(record)):
            raise Refused(f"{self.path}/{key} holds other points; remove it and try again")
        return [Batch(name, at, min(at + size, len(mine))) for at in range(0, len(mine), size)]

    def unit(self, key: str) -> Unit | Batch | None:
        """The unit of that name, of the map or of a survey, or None."""
        if found := self.units.get(key):
            return found
        name = key.rpartition("-")[0]
        if not (self.path / "surveys" / f"{name}.npz").exists():
            return None
        return next((batch for batch in self.survey(name) if batch.key == key), None)

    def outcomes(self, units: Sequence[Unit | Batch]) -> Outcomes:
        """The outcomes of committed units, one after the other.

        Raises:
            Refused: One of them is missing or damaged.
        """
        parts = []
        for unit in units:
            arrays = self.read(unit)
            known = {name: arrays.pop(name) for name in ARRAYS}
            extras = {name: a for name, a in arrays.items() if name not in ("points", "meta")}
            parts.append(Outcomes(**known, extras=extras))
        return join(parts)

    def require_room(self, units: Sequence[Unit | Batch]) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises:
            Refused: There is not twice the room that the units will take.
        """
        needed = 2 * sum(UNIT_BYTES + POINT_BYTES * unit.size for unit in units)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise Refused(
                f"{self.path}: {free / 1e6:.0f} MB are free and this run may need "
                f"{needed / 1e6:.0f} MB; make room or choose another disk"
            )

    def points(self, unit: Unit | Batch) -> Float64[np.ndarray, "n 2"]:
        """The points of a unit."""
        if isinstance(unit, Batch):
            self.survey(unit.survey)
            return self._surveys[unit.survey][0][unit.first : unit.last]
        return self.sweep.grid.points(*unit.cells())

    def record(self, unit: Unit | Batch) -> list[int]:
        """The steps whose losses the outcomes of a unit hold as well."""
        if not isinstance(unit, Batch):
            return []
        self.survey(unit.survey)
        return self._surveys[unit.survey][2]

    def commit(self, unit: Unit | Batch, outcomes: Outcomes, meta: dict[str, Any]) -> bool:
        """Store the outcomes of a unit; the first commit wins and the answer is True for it.

        A later one is compared with it and, should the answers differ, kept in `quarantine/`.
        """
        return self.accept(unit, self.seal(unit, outcomes, meta))

    def seal(self, unit: Unit | Batch, outcomes: Outcomes, meta: dict[str, Any]) -> bytes:
        """The file of a unit, which may travel to the machine that holds the folder."""
        return pack(self.points(unit), outcomes, {"unit": unit.key, "sweep": self.sweep.id, **meta})

    def accept(self, unit: Unit | Batch, data: bytes) -> bool:
        """Store what `seal` made; the rule is that of `commit`."""
        key = f"units/{unit.key}.npz"
        if self.files.put_once(key, data):
            self.files.drop(f"failures/{unit.key}.json")
            return True
        first, second = unpack(self.files.get(key)), unpack(data)
        differing = [
            name
            for name in second
            if name not in ("seconds", "meta")
            and not np.array_equal(first[name], second[name], equal_nan=True)
        ]
        if differing:
            self.files.put_once(f"quarantine/{unit.key}.conflict-{uuid.uuid4().hex[:8]}.npz", data)
            log.warning("%s was computed twice and %s differ", unit.key, ", ".join(differing))
        return False

    def fail(
        self, unit: Unit | Batch, cause: str, exit_code: int | None = None, text: str = ""
    ) -> None:
        """Note the last failure of a unit; it stays missing."""
        note = {
            "cause": redact(cause),
            "exit_code": exit_code,
            "log": redact(text)[-4096:],
            "time": time.time(),
        }
        self.files.put_latest(f"failures/{unit.key}.json", json.dumps(note, indent=1).encode())

    def read(self, unit: Unit | Batch) -> dict[str, np.ndarray]:
        """The arrays of a committed unit, checked against recipe and plan.

        Raises:
            Refused: The file is damaged, or belongs to another recipe or other points.
        """
        try:
            arrays = unpack(self.files.get(f"units/{unit.key}.npz"))
            length = {len(arrays[name]) for name in ARRAYS}
            meta = json.loads(arrays["meta"].tobytes())
            mine = (meta["sweep"], meta["unit"]) == (self.sweep.id, unit.key)
            points = np.array_equal(arrays["points"], self.points(unit))
        except UNREADABLE as error:
            raise Refused(f"unit {unit.key} is damaged ({error})") from None
        if not mine:
            raise Refused(f"unit {unit.key} comes from another run")
        if not points or length != {len(arrays["points"])}:
            raise Refused(f"unit {unit.key} holds other points")
        return arrays

    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of every unit that has one: cause, exit_code, log, time."""
        notes = {}
        for key in self.files.list("failures"):
            # It goes when the unit commits, perhaps just now; it appears whole or not at all.
            with contextlib.suppress(FileNotFoundError):
                try:
                    note = json.loads(self.files.get(key))
                except ValueError:
                    note = {}
                notes[Path(key).stem] = {"cause": f"{key} is damaged", **note}
        return notes

    def image(self) -> Image:
        """The map so far. Asking again reads only the files that are new.

        A damaged file is left out, with a warning: its cells stay masked.
        """
        if not self._arrays:
            empty = Image.empty(self.sweep.grid)
            self._arrays = {name: getattr(empty, name) for name in ARRAYS}
        for key in self.files.list("units"):
            unit = self.units.get(Path(key).stem)
            if unit is None or unit.key in self._seen:
                continue
            try:
                arrays = self.read(unit)
            except Refused as error:
                log.warning("%s; run `fractal verify %s`", error, self.path)
                continue
            for name in ARRAYS:
                self._arrays[name][unit.cells()] = arrays[name]
            self._seen.add(unit.key)
        return Image(self.sweep.grid, **{name: a.copy() for name, a in self._arrays.items()})

    def verify(self) -> list[str]:
        """Read every file again and move what fails to `quarantine/`; its unit is missing again.

        Returns:
            One sentence for every file that was moved.
        """
        moved = []
        for key in self.files.list("units"):
            unit = self.unit(Path(key).stem)
            try:
                if unit is None:
                    raise Refused(f"{key} belongs to no unit of the plan")
                self.read(unit)
            except Refused as error:
                self.files.put_once(
                    f"quarantine/{Path(key).name}.{uuid.uuid4().hex[:8]}", self.files.get(key)
                )
                self.files.drop(key)
                self._seen.clear()
                self._arrays.clear()
                moved.append(str(error))
        return moved
