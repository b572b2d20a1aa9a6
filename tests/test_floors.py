"""The floors of the package, as its own docstring states them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import fractal_core

PACKAGE = Path(fractal_core.__file__).parent
FLOORS = {
    name: int(floor)
    for name, floor in re.findall(r"^    (\w+) +(-?\d+)   ", fractal_core.__doc__, re.MULTILINE)
}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, deferred imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fractal_core":
            names = [f"fractal_core.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fractal_core.")}
    return found


def test_every_module_has_a_floor():
    """The table in the docstring and the files agree."""
    files = {module_of(path) for path in PACKAGE.glob("**/*.py")} - {"__init__"}
    assert files == set(FLOORS)


def test_modules_import_only_lower_floors():
    """Imports go down, even the deferred ones; files of one folder may know each other."""
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.glob("**/*.py")
        if module_of(path) != "__init__"
        for name in imported_modules(path) - {module_of(path)}
        if FLOORS[name] >= FLOORS[module_of(path)]
    ]
    assert wrong == []


def test_importing_the_package_loads_no_heavy_library():
    """A notebook that only reads pays neither for torch nor for numba nor for a display."""
    code = "import fractal_core, sys; print(sorted({'torch', 'numba', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_files_stay_short():
    """One idea per file, one page per function."""
    for path in PACKAGE.glob("**/*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"
