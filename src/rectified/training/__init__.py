"""Training: one loop for every objective, on whatever hardware there is.

`fit` takes a network, an objective (the mean loss of a batch), batches and settings. The loop runs
on Accelerate, so that the same call trains on a CPU, on a GPU or, started by `torchrun`, on
several: every process takes its slice of each batch, and the gradients are those of the whole
batch. What happens after an update (masks, moving averages, measurements) is a hook.

Conventions: an epoch's batches depend on the seed and the epoch's number alone, and so do dropout's
draws; training can therefore stop and start again at any epoch, and gives the same result for the
same seed. Nothing outside is touched: the global random state is put back after every epoch.
"""

from rectified.networks import evaluating
from rectified.training.devices import accelerator, choose_device, everyone
from rectified.training.ema import EMA
from rectified.training.evaluation import evaluate
from rectified.training.loop import TrainingState, fit
from rectified.training.objectives import classification, classification_quality, logits_of
from rectified.training.optimizers import learning_rate_factor, make_optimizer
from rectified.training.protocols import Batch, Batches, Hook, Objective, Step, Store
from rectified.training.settings import FitConfig

__all__ = [
    "EMA",
    "Batch",
    "Batches",
    "FitConfig",
    "Hook",
    "Objective",
    "Step",
    "Store",
    "TrainingState",
    "accelerator",
    "choose_device",
    "classification",
    "classification_quality",
    "evaluate",
    "evaluating",
    "everyone",
    "fit",
    "learning_rate_factor",
    "logits_of",
    "make_optimizer",
]
