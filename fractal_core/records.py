"""The points of a run as a table, one row each, for whatever reads CSV."""

import numpy as np
import pandas as pd

from fractal_core.outcome import Outcome
from fractal_core.store import Image

EXACT = "%.17g"


def records(image: Image) -> pd.DataFrame:
    """One row a point, x running fastest and both from their lowest value.

    Returns:
        Columns `x`, `y`, `outcome` (its name), `measure`, `first_loss`, `tail_loss`, `final_loss`,
        `ratio`, `steps` and `seconds`, as in `Outcomes`. The ratio is the tail over the first
        loss, by which a run is judged; it is NaN where the first loss is zero or not finite. A
        missing point has its x and y and nothing else.
    """
    known = ~np.ma.getmaskarray(image.outcome).ravel()
    x, y = np.meshgrid(image.grid.x, image.grid.y)
    names = pd.Series([None] * known.size, dtype="string")
    names[known] = [Outcome(value).name for value in image.outcome.compressed()]
    columns: dict[str, object] = {"x": x.ravel(), "y": y.ravel(), "outcome": names}
    for name in ("measure", "first_loss", "tail_loss", "final_loss"):
        columns[name] = getattr(image, name).filled(np.nan).ravel()
    first, tail = image.first_loss.filled(np.nan), image.tail_loss.filled(np.nan)
    finite = np.isfinite(first) & (first != 0)
    columns["ratio"] = np.divide(tail, first, out=np.full(tail.shape, np.nan), where=finite).ravel()
    columns["steps"] = pd.array(image.steps.filled(0).ravel(), dtype="Int32")
    columns["seconds"] = image.seconds.filled(np.nan).ravel()
    table = pd.DataFrame(columns)
    table.loc[~known, "steps"] = pd.NA
    return table


def to_csv(image: Image) -> str:
    """`records` as CSV: 17 digits, which give back every float64, `inf`, and empty where missing.

    pandas 2 reads the digits exactly only with `read_csv(path, float_precision="round_trip")`.
    """
    return records(image).to_csv(index=False, float_format=EXACT, lineterminator="\n")
