"""The name that `rectified.flow.pipelines` had in version 0.1, which pipelines written by it hold."""

from typing import Any

from rectified.flow import pipelines


def __getattr__(name: str) -> Any:
    return getattr(pipelines, name)
