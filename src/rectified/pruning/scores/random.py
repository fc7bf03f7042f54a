"""Random scores: what pruning costs when nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rectified.pruning.scores.score import Score, Scores
from rectified.pruning.scores.snapshot import Snapshot


@dataclass
class Random(Score):
    """Uniform in [0, 1): the control that every other score must beat.

    Args:
        generator: drawn from at each call; several processes need equal ones.

    Example:
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> score = Random(torch.Generator().manual_seed(0))
        >>> score(Snapshot(torch.nn.Linear(2, 1), weights, weights, masks))["weight"].shape
        torch.Size([1, 2])
    """

    generator: torch.Generator

    @property
    def state(self) -> Scores:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Draw on from there."""
        self.generator.set_state(state["generator"].cpu())

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        # float64, since float32 draws only 2^24 values and a large network would be full of ties.
        return {
            name: torch.rand(
                mask.shape,
                generator=self.generator,
                device=self.generator.device,
                dtype=torch.float64,
            ).to(mask.device)
            for name, mask in snapshot.masks.items()
        }
