import jaxtyping
import pytest


@pytest.fixture
def shapes_unchecked():
    """`torch.compile` cannot look through the checks of shapes."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
