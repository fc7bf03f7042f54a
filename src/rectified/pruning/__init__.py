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
from rectified.pruning.cycle import Cycle, Stage, Training, iterate
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.pruning.masks import Masks, apply_, density, full_masks, hold, prune
from rectified.pruning.scores import *  # noqa: F403 - every score

__all__ = [
    "Activate",
    "Cycle",
    "Masks",
    "Stage",
    "Training",
    "activate",
    "apply_",
    "arm",
    "cycle",
    "dead_neuron_rate",
    "dead_neurons",
    "density",
    "full_masks",
    "hold",
    "iterate",
    "masks",
    "processes",
    "prune",
    "schedule",
    "scores",
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
        compact="rectified.inference.compact",
        compaction="rectified.inference.compaction",
        fold_batch_norm="rectified.inference.fold_batch_norm",
        load_sparse="rectified.inference.load",
        resize="rectified.inference.resize",
        save_sparse="rectified.inference.save",
        semi_structured="rectified.inference.semi_structured",
        sparsify="rectified.inference.sparsify",
    )
