"""Masks and scores of the methods' own codes, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectified.pruning.scores import Snapshot

ORACLE = Path(__file__).parents[3] / "../shared/oracles/pruning_small.npz"


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    if not ORACLE.exists():
        pytest.skip("the oracle file is not here")
    return dict(np.load(ORACLE))


@pytest.fixture(scope="module")
def oracle_snapshot(oracle: dict[str, np.ndarray]) -> Snapshot:
    """The network of the oracle file."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in oracle.items()
            if key.startswith(prefix)
        }

    model = nn.Sequential()
    model.conv1, model.conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 12, 3, bias=False)
    model.fc1, model.fc2 = nn.Linear(192, 20, bias=False), nn.Linear(20, 5, bias=False)
    trained = named("trained/")
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in trained.items()}
    return Snapshot(model, trained, named("start/"), masks)
