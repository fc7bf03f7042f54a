"""Settings of a training: a value, checked where it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rectified.errors import UserError, choose


@dataclass(frozen=True)
class FitConfig:
    """Settings of a training.

    Attributes:
        epochs: passes over the data.
        optimizer: sgd (momentum, optionally Nesterov), adam or adamw.
        learning_rate: at its peak.
        momentum: of sgd.
        nesterov: Nesterov's momentum, for sgd.
        weight_decay: L2 penalty (sgd, adam) or decoupled decay (adamw).
        schedule: `steps` divides the rate by ten at each of `drops`; `cosine` and `linear` bring
            it to zero; `constant` leaves it.
        warmup: share of training over which the rate rises from zero.
        drops: shares of training, in (0, 1), at which `steps` drops the rate.
        clip: largest gradient norm; 0 does not clip.
        precision: `bf16` computes in bfloat16 where it is safe (autocast).
        channels_last: memory format of images, faster for convolutions.
        ema: decay of a moving average of the weights, in [0, 1); 0 for none.
        compile: train through `torch.compile`.
        seed: of everything that is drawn.
        device: auto, cpu or cuda.
    """

    epochs: int = 8
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "linear", "constant"] = "steps"
    warmup: float = 0.05
    drops: tuple[float, ...] = (0.5, 0.75)
    clip: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    ema: float = 0.0
    compile: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        choose("schedule", self.schedule, ("steps", "cosine", "linear", "constant"))
        choose("precision", self.precision, ("float32", "bf16"))
        rules = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "learning_rate": (0 < self.learning_rate < math.inf, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "drops": (all(0 < drop < 1 for drop in self.drops), "in (0, 1)"),
            "clip": (self.clip >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} must be {rule}, got {getattr(self, name)}")
