"""Within: any score, kept to some of the layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rectified.pruning.scores.score import Score, ScoreFunction, Scores, as_score
from rectified.pruning.scores.snapshot import Snapshot


class Within(Score):
    """A score that may drop only the weights of `scope`: for controls in the same layers as AP.

    Args:
        score: any score; what it keeps between cycles, or watches, is kept and watched.
        scope: names of the weights it may drop; all by default.

    Example:
        >>> from rectified.pruning.scores import magnitude
        >>> w = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
        >>> masks = {name: torch.ones(1, dtype=torch.bool) for name in w}
        >>> Within(magnitude, ["b"])(Snapshot(nn.Identity(), w, w, masks))
        {'a': tensor([inf]), 'b': tensor([2.])}
    """

    def __init__(self, score: ScoreFunction, scope: Collection[str] | None = None) -> None:
        self.score = as_score(score)
        self.scope = scope
        self.rounds, self.layerwise = self.score.rounds, self.score.layerwise

    @property
    def watches(self) -> bool:
        return self.score.watches

    def watch(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.score.watch(model)

    @property
    def state(self) -> Scores:
        return self.score.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.score.restore(state)

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        scores = self.score(snapshot)
        if self.scope is None:
            return scores
        return {
            name: score if name in self.scope else torch.full_like(score, math.inf)
            for name, score in scores.items()
        }
