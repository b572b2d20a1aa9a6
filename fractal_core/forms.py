"""What pages are built of: input fields for recipes, tables, charts, and answers to clicks."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import marimo as mo
import pandas as pd

from fractal_core import experiments, planner
from fractal_core.errors import Refused

LARGEST_EDGE, LARGEST_SEED = 16384, 2**31


def address(root: Path) -> dict[str, str]:
    """What the address of a page asks for.

    An export has no address, so where it is empty the command line is asked for a run in `root`:
    `marimo export html notebooks/zoom.py -- --run runs/NAME`.
    """
    said = mo.query_params().to_dict()
    asked = {name: each if isinstance(each, str) else each[-1] for name, each in said.items()}
    if not asked and (given := list(filter(None, map(str, mo.cli_args().get_all("run"))))):
        asked["run"] = ",".join(_inside(root, Path(run)) for run in given)
    return asked


def _inside(root: Path, path: Path) -> str:
    """A run folder by its name in `root`; as it was given, if it does not lie there."""
    here, there = root.resolve(), path.resolve()
    return str(there.relative_to(here) if there.is_relative_to(here) else path)


def exported() -> bool:
    """Whether no browser asked for what runs now: it is an export, or a script."""
    return mo.app_meta().request is None


class Fields(dict[str, Any]):
    """Input fields by name, each an element of its own, read together.

    `mo.ui.dictionary` forgets changes: of those that come while the kernel is busy it is handed
    only the last. Fields of this kind all arrive. What reads them is told by a state of marimo's,
    whose setter every field gets as `changed`; cells that a click runs may come before it, so they
    ask the fields and not what another cell made of them.
    """

    @property
    def value(self) -> dict[str, Any]:
        """What the fields hold now."""
        return {name: field.value for name, field in self.items()}


def settings(
    experiment: Any, changed: Callable[[Any], None], without: Sequence[str] = ()
) -> Fields:
    """A field for every setting of an experiment; a list where only some values are allowed."""
    fields = Fields()
    for choice in planner.choices(experiment):
        if choice.name not in without:
            common: dict[str, Any] = {"label": choice.name, "on_change": changed}
            fields[choice.name] = (
                mo.ui.dropdown(choice.options, value=choice.value, **common)
                if choice.options
                else mo.ui.text(choice.value, **common)
            )
    return fields


def plane(
    preset: str, axes: tuple[str, str], window: str, changed: Callable[[Any], None]
) -> Fields:
    """Fields for both axes, the grid and the seed, as `planner.chosen` reads them."""
    edge = planner.usual_edge(experiments.preset(preset).experiment)
    fields = Fields()
    told: dict[str, Any] = {"on_change": changed}
    ends = planner.ends_as_text(preset, axes, window)
    for axis, (low, high), cells in zip("xy", ends, ("columns", "rows"), strict=True):
        scales = ["log10", "linear"]
        fields[f"{axis} scale"] = mo.ui.dropdown(scales, value="log10", label="scale", **told)
        fields[f"{axis} from"] = mo.ui.text(low, label=f"{axis} from", **told)
        fields[f"{axis} to"] = mo.ui.text(high, label=f"{axis} to", **told)
        fields[cells] = mo.ui.number(1, LARGEST_EDGE, value=edge, label=cells, **told)
    fields["seed"] = mo.ui.number(0, LARGEST_SEED, value=0, label="seed", **told)
    return fields


def crew(experiment: Any) -> tuple[mo.ui.multiselect, mo.ui.number]:
    """Fields for the devices of this machine, all to begin with, and for the workers on each."""
    here = planner.devices(experiment)
    each = mo.ui.number(0, 1024, value=0, label="workers on each (0: as many as suit)")
    return mo.ui.multiselect(here, value=here, label="devices"), each


def beginning(label: str, control: bool, why: str) -> tuple[mo.ui.text, mo.ui.run_button, mo.Html]:
    """A field for the name of a run, the button that begins it, and the line of both.

    The cell that makes them names no field: a button that is made anew by a change loses the click
    that comes with it. But it names the address: one that stays when the page moves on to the run is
    still clicked there, and would begin the run again and again.

    Args:
        label: Of the button.
        control: Whether it can be clicked.
        why: Why not.
    """
    name = mo.ui.text(placeholder="name (or leave it out)")
    start = mo.ui.run_button(label=label, kind="success", disabled=not control, tooltip=why)
    return name, start, line(name, start)


def line(*elements: Any) -> mo.Html:
    """Fields beside each other, as many as there is room for."""
    return mo.hstack(elements, justify="start", align="end", wrap=True)


def heading(text: str) -> mo.Html:
    """A heading that says just this, whatever in it would be Markdown or HTML."""
    plain = "".join(c if c.isalnum() or c in " -" else f"&#{ord(c)};" for c in text)
    return mo.md(f"## {plain}")


def of_settings(fields: Fields, first: Sequence[Any]) -> mo.Html:
    """Some fields, the length and precision of a run among them, and a drawer with the others."""
    main = [name for name in ("steps", "num_steps", "dtype") if name in fields]
    rest = [field for name, field in fields.items() if name not in main]
    drawer = mo.accordion({"All settings": line(*rest)})
    return mo.vstack([line(*first, *(fields[name] for name in main)), drawer])


def of_plane(axes: Sequence[mo.ui.dropdown], fields: Fields) -> mo.Html:
    """The fields of `plane`, an axis to a line."""
    ends = [
        line(name, *(fields[f"{axis} {what}"] for what in ("scale", "from", "to")))
        for axis, name in zip("xy", axes, strict=True)
    ]
    return mo.vstack([*ends, line(*(fields[name] for name in ("columns", "rows", "seed")))])


def shown(chart: Any) -> mo.Html:
    """A chart that is only looked at, as wide as there is room."""
    # Lines of the grid that are pale on white are bright on black.
    wide = chart.properties(width="container").configure_axis(gridOpacity=0.3)
    return mo.ui.altair_chart(wide, chart_selection=False, legend_selection=False)


def attempting(tell: Callable[[str], None]) -> Callable[[Callable[[], object]], None]:
    """What does something, or tells in a sentence why it cannot be done."""

    def attempt(action: Callable[[], object]) -> None:
        try:
            tell("")
            action()
        except (Refused, OSError) as error:
            tell(str(error))

    return attempt


def table(frame: pd.DataFrame, **options: Any) -> mo.ui.table:
    """A small table without what a large one needs."""
    plain: dict[str, Any] = {
        "show_column_summaries": False,
        "show_data_types": False,
        "show_download": False,
    }
    return mo.ui.table(frame, **plain | options)


def runs(frame: pd.DataFrame, **options: Any) -> mo.ui.table:
    """The table of `singles.table`, whose rows can be chosen."""
    return table(
        frame,
        selection="multi",
        page_size=8,
        format_mapping={"ratio": _number(4), "seconds": _number(3)},
        wrapped_columns=["settings that differ"],
        **options,
    )


def _number(digits: int) -> Callable[[float | None], str]:
    # A run that has not ended has none yet.
    return lambda value: "" if value is None or math.isnan(value) else f"{value:.{digits}g}"
