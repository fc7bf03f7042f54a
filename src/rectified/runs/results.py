"""A finished run's results, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rectified import files
from rectified.errors import UserError

RESULTS = "results.json"


def read_results(path: Path) -> dict[str, Any]:
    """The results of a finished run.

    Args:
        path: the run's folder.

    Raises:
        UserError: if the run is not finished, or its file is damaged.
    """
    file = path / RESULTS
    contents = read_json(file)
    needed = {"verb", "config", "environment", "rows", "summary"}
    missing = needed - set(contents if isinstance(contents, dict) else ())
    if missing:
        raise UserError(f"{file} lacks {', '.join(sorted(missing))}: it is not a run's results")
    kinds = {"verb": str, "config": dict, "environment": dict, "rows": list, "summary": list}
    for name, kind in kinds.items():
        if not isinstance(contents[name], kind):
            raise UserError(f"{file} is damaged ({name} is no {kind.__name__})")
    for name in ("rows", "summary"):
        if not all(isinstance(row, dict) for row in contents[name]):
            raise UserError(f"{file} is damaged (an entry of {name} is no dict)")
    return contents


def read_json(file: Path) -> Any:
    """The contents of a JSON file of a finished run.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}: it is not a finished run")
    return files.read_json(file)
