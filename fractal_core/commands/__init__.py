"""The command line, one short file per group of commands."""

from pathlib import Path
from typing import Annotated

import tyro

Run = tyro.conf.Positional[Path]
Json = Annotated[bool, tyro.conf.arg(name="json")]
