"""Compiled kernels, and what of them is kept in files."""

import inspect

import pytest

pytest.importorskip("numba")

from rectified.inference.sparse import kernels


def test_no_generator_is_read_from_a_file():
    # numba cannot compile a caller of one, as after a kill between the two compilations
    found = [one for one in vars(kernels).values() if inspect.isgeneratorfunction(_function(one))]
    assert found
    assert all(one.stats.cache_path is None for one in found)


def _function(dispatcher):
    return getattr(dispatcher, "py_func", None)
