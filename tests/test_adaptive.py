"""Maps that compute only their boundary: what they save, what they miss, and who notices."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from closed import Here, quiet
from formula import Formula
from terminal import fractal

from fractal_core import Axis, Outcomes, Refused, Region, Store, Sweep, adaptive, survey
from fractal_core.outcome import Outcome

SIDE = 256


@dataclass(frozen=True)
class Drawn(Formula):
    """Outcomes in closed form: a corner that does not train, and islands far from it."""

    islands: int = 0
    axes: tuple[str, str] = ("x", "y")
    dtype: str = "float64"

    def run(self, points, *, seed, record=()):
        col, row = (points * SIDE - 0.5).T.round().astype(int)
        trains = points.sum(axis=1) < 1.5
        # Between the rows and columns of the coarsest lattice and of the borders of all blocks.
        planted = np.random.default_rng(7).permutation(400)[: self.islands]
        field = (row < 160) & (col < 160) & np.isin(row // 8 * 20 + col // 8, planted)
        trains ^= field & (abs(row % 8 - 4) <= 1) & (abs(col % 8 - 4) <= 1)
        numbers = np.where(trains, -1.0, 1.0)
        return Outcomes(
            np.where(trains, Outcome.TRAINABLE, Outcome.DIVERGED).astype(np.uint8),
            *(numbers for _ in range(4)),
            steps=np.ones(len(points), np.int32),
            seconds=np.zeros(len(points)),
        )


def made(path, islands: int, block: int = 32) -> tuple[Store, np.ndarray]:
    """A run folder, and the outcomes that its map would have."""
    axes = (Axis(name, 0.0, 1.0, SIDE, "linear") for name in "xy")
    sweep = Sweep.over(Drawn(islands), Region(*axes))
    rows, cols = np.divmod(np.arange(SIDE**2), SIDE)
    truth = sweep.experiment.run(sweep.grid.points(rows, cols), seed=0).outcome
    return Store.create(path, sweep, block), truth.reshape(SIDE, SIDE)


def refine(store: Store, **options) -> tuple[adaptive.Refined, int]:
    counts: list[int] = []
    found = adaptive.refine(store, lambda s: Here(s, counts), quiet, **options)
    return found, sum(counts)


def test_a_smooth_boundary_costs_a_fraction(tmp_path):
    """Every outcome is right, most are inferred, and the audit says how far to trust that."""
    store, truth = made(tmp_path / "run", islands=0, block=8)
    found, trained = refine(store)
    assert not found.outcome.mask.any()
    assert np.array_equal(found.outcome.data, truth)
    assert trained < 0.4 * truth.size
    assert found.inferred.mean() > 0.6
    assert found.audit == adaptive.Audit(300, 0, found.audit.settled, 1)
    assert found.audit.bound == pytest.approx(3 / 300, rel=0.01)
    assert "0 of 300 audited ones were wrong" in found.caption
    assert store.image().outcome.mask[found.inferred].all()


def test_the_audit_catches_islands_that_refinement_misses(tmp_path, monkeypatch):
    """400 of them between the lattice and the borders: unseen without an audit, found with one."""
    store, truth = made(tmp_path / "run", islands=400, block=8)
    with monkeypatch.context() as patch:
        patch.setattr(adaptive, "MOST_AUDITS", 0)
        plain, _ = refine(store)
    plain_wrong = plain.outcome.data != truth
    assert plain_wrong.sum() == 9 * 400
    with pytest.raises(Refused, match="never audited"):
        adaptive.audited(store, store.image())
    found, _ = refine(store)
    assert found.audit.audits > 1
    assert found.audit.surprises == 0
    wrong = (found.outcome.data != truth) & found.inferred
    assert wrong.sum() <= found.audit.bound * found.audit.settled
    assert wrong.sum() == 0
    assert adaptive.audited(store, store.image()).audit == found.audit


def test_the_bound_holds_as_often_as_it_says(tmp_path):
    """Islands too few for one audit to see: over many draws the wrong share exceeds it rarely."""
    store, truth = made(tmp_path / "run", islands=12)
    failed = 0
    found, _ = refine(store, probes=40)
    inferred_wrong = (found.outcome.data != truth).sum()
    settled = found.audit.settled
    for seed in range(200):
        drawn = np.random.default_rng(seed).choice(settled, 40, replace=False)
        audit = adaptive.Audit(40, int((drawn < inferred_wrong).sum()), settled, 1)
        failed += audit.bound < inferred_wrong / settled
    assert failed <= 0.08 * 200


@pytest.mark.parametrize(
    ("probes", "surprises", "bound"), [(300, 0, 0.00994), (100, 0, 0.0295), (100, 2, 0.0616)]
)
def test_the_bound_is_that_of_clopper_and_pearson(probes, surprises, bound):
    """The share at which so few surprises have a chance of 5 %."""
    audit = adaptive.Audit(probes, surprises, 10_000, 1)
    assert audit.bound == pytest.approx(bound, rel=0.01)
    assert adaptive.Audit(probes, surprises, probes, 1).bound == 0.0


def test_refining_again_computes_nothing_and_the_rest_can_be_run(tmp_path):
    """More probes are asked for and paid for; a completed map has nothing inferred."""
    store, truth = made(tmp_path / "run", islands=3)
    first, _ = refine(store, probes=50)
    again, trained = refine(Store(store.path, store.sweep), probes=50)
    assert trained == 0
    assert again.audit == first.audit
    _, trained = refine(store, probes=200)
    assert trained >= 200
    survey.lattice(store, 0, lambda s: Here(s, []), lambda *_: None)
    whole = adaptive.audited(store, store.image())
    assert not whole.inferred.any()
    assert np.array_equal(whole.outcome.data, truth)
    assert whole.caption == ""


def test_what_was_lost_is_missing_and_not_inferred(tmp_path):
    """A measured unit that is gone is a hole; a damaged note is refused."""
    store, _ = made(tmp_path / "run", islands=0)
    found, _ = refine(store)
    unit = next(u for u in store.units.values() if u.level == 0 and u not in store.missing())
    (store.path / "units" / f"{unit.key}.npz").unlink()
    fresh = Store(store.path, store.sweep)
    after = adaptive.refined(fresh, fresh.image())
    assert after.outcome.mask[unit.cells()].any()
    assert not after.inferred[unit.cells()].any()
    assert not found.outcome.mask.any()
    (store.path / "adaptive.npz").write_bytes(b"broken")
    with pytest.raises(Refused, match="damaged"):
        adaptive.refined(fresh, fresh.image())
    with pytest.raises(Refused, match="at least 1"):
        refine(store, probes=0)


def test_the_commands_say_what_is_inferred(tmp_path):
    """refine prints the bound, show writes it below, dim measures only what was audited."""
    settings = "--steps 30 --set samples=4 arrays=seeded --grid 96 128"
    assert fractal("new", "run", *settings.split(), cwd=tmp_path).returncode == 0
    refused = fractal("dim", "run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "points are missing" in refused.stderr
    answer = fractal("refine", "run", "--probes", "60", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["measured"] < report["points"] == 96 * 128
    assert report["inferred"]["audit"]["wrong_at_most"] < 0.06
    drawn = fractal("show", "run", "--out", "map.svg", "--quantity", "outcome", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    answer = fractal("dim", "run", "--json", cwd=tmp_path)
    assert json.loads(answer.stdout)["inferred"] == report["inferred"]
    (tmp_path / "run" / "adaptive.json").write_text('{"audits": []}')
    refused = fractal("dim", "run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "never audited" in refused.stderr
