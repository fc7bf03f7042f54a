"""Pruning: scores, AP (Activate-while-Pruning), cycles, and what they do to the neurons.

Conventions: masks are `True` where a weight is kept; scores are higher for what is kept longer;
all rates are in [0, 1].
"""

from typing import TYPE_CHECKING

from rectified.errors import moved
from rectified.pruning import (
    activate,
    cycle,
    dead_neurons,
    masks,
    processes,
    schedule,
    scores,
    threshold,
)
from rectified.pruning.activate import Activate, arm
from rectified.pruning.batch_norm import fold_batch_norm
from rectified.pruning.compact import compact, compaction, resize
from rectified.pruning.cycle import Cycle, Stage, Training, iterate
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.pruning.masks import Masks, apply_, density, full_masks, hold, prune
from rectified.pruning.scores import *  # noqa: F403 - every score
from rectified.pruning.semi_structured import semi_structured
from rectified.pruning.sparse import load_sparse, save_sparse, sparsify

__all__ = [
    "Activate",
    "Cycle",
    "Masks",
    "Stage",
    "Training",
    "activate",
    "apply_",
    "arm",
    "compact",
    "compaction",
    "cycle",
    "dead_neuron_rate",
    "dead_neurons",
    "density",
    "fold_batch_norm",
    "full_masks",
    "hold",
    "iterate",
    "load_sparse",
    "masks",
    "processes",
    "prune",
    "resize",
    "save_sparse",
    "schedule",
    "scores",
    "semi_structured",
    "sparsify",
    "threshold",
]
__all__ += scores.__all__

if not TYPE_CHECKING:  # to which every name would seem to be there
    __getattr__ = moved(
        __name__,
        {
            "activate": "ARMS activation_scope",
            "cycle": "Rewind plan",
            "dead_neurons": "DeadNeurons",
            "masks": "kept prunable",
            "processes": "hold_shards prune_shards shards",
        },
    )
