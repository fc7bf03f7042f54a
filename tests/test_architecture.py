"""Who may import whom, as data; and what a plain import must not load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "rectified"

FLOOR = {"files", "networks", "foreign", "seeds", "timing", "statistics"}
MAY_IMPORT = {  # room -> rooms; every room may import `errors`, and itself
    "errors": set(),
    **{room: set() for room in FLOOR},
    "runs": FLOOR,
    "training": FLOOR,
    "models": set(),
    "gang": set(),
    "rewriting": set(),
    "data": FLOOR | {"training"},
    "pruning": FLOOR | {"training", "gang", "rewriting"},
    "binary": FLOOR | {"training", "gang", "rewriting"},
    "flow": FLOOR | {"training"},
    "protein": FLOOR | {"flow"},
    "scattering": FLOOR,
    "report": FLOOR,
    "jobs": FLOOR
    | {"runs", "training", "models", "data", "pruning", "binary", "flow", "protein", "scattering"}
    | {"report"},
    "cli": FLOOR | {"jobs", "runs", "report", "training"},
    "__main__": {"cli"},
}
HEAVY = ("sklearn", "pyarrow", "PIL", "matplotlib", "tyro", "datasets", "scipy", "jinja2", "numba")


def _files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (_second(alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which the table cannot read"
            if node.module == "rectified":
                yield from (alias.name for alias in node.names)
            elif node.module and _is_ours(node.module):
                yield _second(node.module)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "rectified"


def _second(module: str) -> str:
    return [*module.split("."), ""][1]


def test_the_table_has_every_room():
    assert {_room(path) for path in _files()} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path):
    allowed = MAY_IMPORT[_room(path)] | {_room(path), "errors", "__version__"}
    assert set(_imported_rooms(path)) <= allowed


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_importing_rectified_loads_no_torch():
    assert "torch" not in _modules_after("import rectified, rectified.cli")


def test_importing_the_pruning_loads_no_reader_no_plotting_and_no_command_line():
    assert not _modules_after("import rectified.pruning") & set(HEAVY)
