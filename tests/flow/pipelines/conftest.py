import pytest
import torch

from tests.flow.pipelines import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A saved tiny Stable Diffusion pipeline; to be read only."""
    place = tmp_path_factory.mktemp("pipelines")
    tiny.stable_diffusion(place).save_pretrained(place / "sd")
    return place / "sd"


@pytest.fixture
def pipeline(tmp_path):
    return tiny.stable_diffusion(tmp_path)


@pytest.fixture
def noise():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
