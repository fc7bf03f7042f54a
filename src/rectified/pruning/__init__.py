"""Pruning: scores, AP (Activate-while-Pruning), cycles, and what they do to the neurons.

Conventions: masks are `True` where a weight is kept; scores are higher for what is kept longer;
all rates are in [0, 1].
"""

from rectified.errors import moved
from rectified.pruning.activate import ARMS, Activate, activation_scope, arm
from rectified.pruning.cycle import Cycle, Rewind, Stage, Training, iterate, plan
from rectified.pruning.dead_neurons import DeadNeurons, dead_neuron_rate
from rectified.pruning.masks import (
    Masks,
    apply_,
    density,
    full_masks,
    hold,
    kept,
    prunable,
    prune,
)
from rectified.pruning.processes import hold_shards, prune_shards, shards
from rectified.pruning.scores import Score, Snapshot, magnitude

__all__ = [
    "ARMS",
    "Activate",
    "Cycle",
    "DeadNeurons",
    "Masks",
    "Rewind",
    "Score",
    "Snapshot",
    "Stage",
    "Training",
    "activation_scope",
    "apply_",
    "arm",
    "dead_neuron_rate",
    "density",
    "full_masks",
    "hold",
    "hold_shards",
    "iterate",
    "kept",
    "magnitude",
    "plan",
    "prunable",
    "prune",
    "prune_shards",
    "shards",
]

__getattr__ = moved(
    __name__,
    compact="rectified.inference.compact",
    compaction="rectified.inference.compaction",
    fold_batch_norm="rectified.inference.fold_batch_norm",
    load_sparse="rectified.inference.load",
    resize="rectified.inference.resize",
    save_sparse="rectified.inference.save",
    semi_structured="rectified.inference.semi_structured",
    sparsify="rectified.inference.sparsify",
)
