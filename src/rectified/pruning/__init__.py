"""Pruning: scores, AP (Activate-while-Pruning), cycles, and what they do to the neurons.

Conventions: masks are `True` where a weight is kept; scores are higher for what is kept longer;
all rates are in [0, 1].
"""

from rectified.pruning.activate import ARMS, Activate, activation_scope, arm
from rectified.pruning.batch_norm import fold_batch_norm
from rectified.pruning.compact import compact, compaction, resize
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
from rectified.pruning.semi_structured import semi_structured
from rectified.pruning.sparse import load_sparse, save_sparse, sparsify

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
    "compact",
    "compaction",
    "dead_neuron_rate",
    "density",
    "fold_batch_norm",
    "full_masks",
    "hold",
    "hold_shards",
    "iterate",
    "kept",
    "load_sparse",
    "magnitude",
    "plan",
    "prunable",
    "prune",
    "prune_shards",
    "resize",
    "save_sparse",
    "semi_structured",
    "shards",
    "sparsify",
]
