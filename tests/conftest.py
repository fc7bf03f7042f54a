"""The whole suite runs with the annotated shapes and types of `rectified` checked at every call."""

import os
import tempfile
from collections.abc import Iterator

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # what was typed is remembered there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads can be far slower on small work

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

jaxtyping.install_import_hook("rectified", "beartype.beartype")

# What a test found must not depend on how busy the machine is, ...
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """... nor on the tests that this process happened to run before: fixtures, too, come after."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes and types are not checked, as for a user, and where `torch.compile` looks through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
