"""Availability of compiled kernels."""

import importlib.util
from functools import cache


@cache
def has_kernels() -> bool:
    """Whether numba is installed, which the compiled kernels need."""
    return importlib.util.find_spec("numba") is not None
