"""Leads to `rectified.flow.pipelines`: pipelines that version 0.1 wrote hold this name."""

from typing import Any

from rectified.flow import pipelines


def __getattr__(name: str) -> Any:
    return getattr(pipelines, name)
