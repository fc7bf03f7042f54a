"""A model card: what lies beside saved weights and says what they are, in the Hub's format.

Front matter that the Hugging Face Hub reads (YAML), then Markdown for people. Names of data, models
and settings come from whoever made them: in the text they are escaped or stand in code, so that
they can form neither markup nor links.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 12
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$-])")


def card(results: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """The card of a finished run's model.

    Args:
        results: as in results.json.
        metadata: what the weights' file says of itself.

    Example:
        >>> results = {"verb": "prune", "config": {"data": "digits", "model": "mlp"},
        ...            "environment": {"packages": {"rectified": "0.1.0"}}, "summary": []}
        >>> print(card(results, {"density": "0.1"}).splitlines()[1])
        library_name: rectified
    """
    import yaml

    config = results["config"]
    about: dict[str, Any] = {"library_name": "rectified", "tags": ["rectified", results["verb"]]}
    data, model = str(config.get("data", "")), str(config.get("model", ""))
    if _HUB_NAME.fullmatch(data) and not data.startswith("."):
        about["datasets"] = [data]
    version = results["environment"].get("packages", {}).get("rectified", "")
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---",
        f"# {escaped(model or results['verb'])} by rectified {escaped(results['verb'])}",
        f"Trained on {escaped(data) or 'data of its own'} with "
        f"[rectified](https://pypi.org/project/rectified/) {escaped(version)}.",
        _list("The weights", metadata),
        _table(results["summary"]),
        "## Use\n\n```python\nfrom safetensors.torch import load_file\n\n"
        'state = load_file("model.safetensors")  # a plain state_dict\n```',
        f"The same again:\n\n    rectified {results['verb']} --config config.yaml",
        _list("Settings", config),
        "`report.html` says what was found, `results.json` holds all numbers.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, on one line.

    Example:
        >>> escaped("<b>[x](y)")
        '&lt;b&gt;\\\\[x\\\\]\\\\(y\\\\)'
    """
    flat = " ".join(str(text).split())
    marked = _MARKUP.sub(r"\\\1", flat)
    return marked.replace("\\&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def _list(title: str, entries: Mapping[str, Any]) -> str:
    lines = [f"- {escaped(name)}: {escaped(_plain(value))}" for name, value in entries.items()]
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The end of the summary, where the sparsest, best trained or last are."""
    rows = list(summary)[-MOST_ROWS:]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return ""
    lines = ["| " + " | ".join(map(escaped, columns)) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |")
    return "\n".join(["## Results", "", *lines])


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return escaped(f"{value:.4g}" if isinstance(value, float) else value)
