"""One seed of a study: its split of the data, and what its flows are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from rectified import flow
from rectified.data import ImageData
from rectified.flow.losses import Loss
from rectified.jobs.flow.data import Transfer
from rectified.jobs.flow.distances import Distance, image_distance, point_distance
from rectified.jobs.flow.features import (
    FOR_DISTANCE,
    FOR_LOSS,
    Classifier,
    Device,
    Layout,
    train_classifier,
)
from rectified.jobs.flow.plan import FlowPlan
from rectified.jobs.flow.recipes import Stage
from rectified.jobs.job import Context
from rectified.runs import FileStore
from rectified.seeds import generator
from rectified.training import accelerator

_PERCEPTUAL_WEIGHT = 1.0  # of each layer, as measured on digits
_HELD_OUT = 900_000_000  # seed of source points that no pair begins at


@dataclass(frozen=True, eq=False)
class Trial:
    """Shared by all networks of one seed; classifiers are trained when they are first asked for.

    Attributes:
        seed: of everything that is drawn.
        transfer: the data.
        classes: that networks are given; 0 for none.
        samples: how many are generated for each distance.
        device: auto, cpu or cuda.
        context: where the study works.
    """

    seed: int
    transfer: Transfer
    classes: int
    samples: int
    device: Device
    context: Context

    @cached_property
    def place(self) -> torch.device:
        """The device of the networks."""
        return accelerator(self.device).device

    def store(self, kind: str, stage: Stage) -> FileStore:
        """Keeps something of one network."""
        return self.context.folder.store(f"{kind}-{self.seed}-{stage.name}")

    def words(self, stage: Stage, text: str) -> str:
        """Before a progress bar."""
        return self.context.words(f"seed {self.seed} {stage.recipe.name} {text}")

    def held_out(self, count: int) -> Tensor:
        """Source points that no flow was trained on."""
        return self.transfer.draw(_HELD_OUT + self.seed, count, held_out=True).to(self.place)

    def labels(self, count: int, *, seed: int) -> Int64[Tensor, " count"] | None:
        """Classes to generate, each alike; None for flows without."""
        if not self.classes:
            return None
        drawn = torch.randint(self.classes, (count,), generator=generator(seed, "labels"))
        return drawn.to(self.place)

    @cached_property
    def distance(self) -> Distance:
        """The distance by which samples are compared with the data."""
        images = self.transfer.target.images
        if images is None:
            return point_distance(self.transfer, self.samples, self.seed)
        classifier = self._classifier(images, FOR_DISTANCE, self.seed)
        return image_distance(self.transfer, classifier, self.samples)

    @cached_property
    def perceptual(self) -> Loss | None:
        """A perceptual distance for rf++'s loss; None for points."""
        images = self.transfer.target.images
        if images is None:
            return None
        network = self._classifier(images, FOR_LOSS, self.seed + 1000).network
        layers = len(network.convolutions) + 1
        return flow.Perceptual(network.blocks, weights=[_PERCEPTUAL_WEIGHT] * layers)

    def _classifier(self, images: ImageData, layout: Layout, seed: int) -> Classifier:
        words = self.context.words(f"seed {self.seed} features")
        classifier = train_classifier(images, layout, seed=seed, device=self.device, progress=words)
        classifier.network.to(self.place)
        return classifier


def trial_of(plan: FlowPlan, seed: int, context: Context) -> Trial:
    """One seed of a plan."""
    transfer = plan.data.transfer(seed=seed, many=plan.budget.samples)
    classes = transfer.target.classes if plan.config.conditional else 0
    return Trial(seed, transfer, classes, plan.budget.samples, plan.config.device, context)
