"""The whole suite runs with the annotated shapes and types of `rectified` checked at every call."""

import os
import tempfile
from collections.abc import Iterator

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # what was typed is remembered there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads can be far slower on small work

import jaxtyping
import pytest

jaxtyping.install_import_hook("rectified", "beartype.beartype")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes and types are not checked, as for a user, and where `torch.compile` looks through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
