"""Scores: how much a network would miss each of its weights, one method per file.

    magnitude   |w|                                Random      uniform in [0, 1)
    Gradient    |w g|, g = dL/dw after training    lamp        w^2 / sum of the larger w^2
    SNIP        |w g| before training              Movement    sum of -w g over a training
    GraSP       w (H g) before training            ERK         ranks that set layers' densities
    SynFlow     w dR/dw without data               LookAhead   w^2 with the layers around

Conventions: g is the gradient of the mean loss over a few training batches, in training mode,
averaged over processes where `torch.distributed` runs. A score never touches the model it is given
(it works on a copy with pruned weights at zero) nor the global random state. Sums that long
layers make large, or deep networks make small, are taken in float64.

`SCORES` is the table of those that have a name. A new score is its file and its row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rectified.errors import choose
from rectified.pruning.scores.erk import ERK
from rectified.pruning.scores.gradient import Gradient
from rectified.pruning.scores.grasp import GraSP
from rectified.pruning.scores.lamp import lamp
from rectified.pruning.scores.lookahead import LookAhead
from rectified.pruning.scores.magnitude import LayerMagnitude, magnitude
from rectified.pruning.scores.movement import Movement
from rectified.pruning.scores.random import Random
from rectified.pruning.scores.score import Score, ScoreFunction, as_score
from rectified.pruning.scores.snapshot import Snapshot
from rectified.pruning.scores.snip import SNIP
from rectified.pruning.scores.synflow import SynFlow
from rectified.pruning.scores.within import Within

SCORES: dict[str, Callable[[torch.Generator], ScoreFunction]] = {
    "magnitude": lambda generator: magnitude,
    "layer_magnitude": lambda generator: LayerMagnitude(),
    "gradient": lambda generator: Gradient(),
    "snip": lambda generator: SNIP(),
    "grasp": lambda generator: GraSP(),
    "synflow": lambda generator: SynFlow(),
    "lamp": lambda generator: lamp,
    "lookahead": lambda generator: LookAhead(),
    "movement": lambda generator: Movement(),
    "erk": lambda generator: ERK(),
    "random": Random,
}


def named_score(name: str, generator: torch.Generator) -> Score:
    """The score of a name in `SCORES`.

    Args:
        name: as on the command line.
        generator: for a score that draws.

    Raises:
        UserError: if there is none of that name.

    Example:
        >>> named_score("synflow", torch.Generator()).rounds
        100
    """
    choose("score", name, list(SCORES))
    return as_score(SCORES[name](generator))


__all__ = [
    "ERK",
    "SCORES",
    "SNIP",
    "GraSP",
    "Gradient",
    "LayerMagnitude",
    "LookAhead",
    "Movement",
    "Random",
    "Score",
    "Snapshot",
    "SynFlow",
    "Within",
    "as_score",
    "lamp",
    "magnitude",
    "named_score",
]
