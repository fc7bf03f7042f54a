"""Losses: how far a prediction is from what it should be, one number per point.

    squared        mean over dimensions of e^2
    norm           root of that
    PseudoHuber    (sqrt(|e|^2 + c^2) - c) / d over a sample, c = 0.00054 sqrt(d); or elementwise
    Perceptual     distance of normalised features, on the target: any network, or LPIPS

A loss acts in a space: on the prediction itself, or on the end points or the velocity that it
implies (`Term`). rf++ is two terms, with s = 1 - t:

    (1 - s) PseudoHuber on the velocity + w / s Perceptual on the target

The width of rf++'s pseudo-Huber is 0.00054 d in its code and was meant to be 0.00054 sqrt(d)
(its author); both are far below |e|, where the loss is the norm.

References:
    Lee, Lin, Fanti, 2024, arXiv 2405.20320; Song, Dhariwal, Improved techniques for training
    consistency models, 2023, arXiv 2310.14189 (pseudo-Huber); Zhang et al., The unreasonable
    effectiveness of deep features, 2018, arXiv 1801.03924 (LPIPS); Wang et al., 2024,
    arXiv 2410.07303 (elementwise pseudo-Huber in target space).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError, choose, first_line
from rectified.flow.paths import Points

Loss = Callable[[Points, Points], Float[Tensor, " batch"]]
"""(what was predicted, what should have been) to one number per point."""

Space = Literal["prediction", "velocity", "target", "noise"]
SPACES: tuple[Space, ...] = ("prediction", "velocity", "target", "noise")


def squared(predicted: Points, wanted: Points) -> Float[Tensor, " batch"]:
    """Mean over dimensions of the squared error.

    Example:
        >>> squared(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor([5.])
    """
    return (predicted - wanted).square().flatten(1).mean(1)


def norm(predicted: Points, wanted: Points) -> Float[Tensor, " batch"]:
    """Root of the mean squared error."""
    error = (predicted - wanted).flatten(1)
    # its gradient is 0 where nothing is wrong; that of the root of a sum is NaN
    return torch.linalg.vector_norm(error, dim=1) / error.shape[1] ** 0.5


@dataclass(frozen=True)
class PseudoHuber:
    """Quadratic for errors far below c, the norm far above.

    Args:
        width: c, before scaling.
        scale: c = width sqrt(d) (iCT, and what rf++ meant) or width d (rf++'s code), d the number
            of dimensions of a point; `none` takes c = width.
        reduction: over the `sample`'s norm, or each `element` alone (rectified diffusion's code).

    Example:
        >>> loss = PseudoHuber(1.0, "none", "element")
        >>> loss(torch.zeros(1, 1), torch.full((1, 1), 100.0)).round()
        tensor([99.])
    """

    width: float = 0.00054
    scale: Literal["sqrt_d", "d", "none"] = "sqrt_d"
    reduction: Literal["sample", "element"] = "sample"

    def __post_init__(self) -> None:
        choose("scale", self.scale, ["sqrt_d", "d", "none"])
        choose("reduction", self.reduction, ["sample", "element"])
        if not self.width > 0:
            raise UserError(f"width must be positive, got {self.width}")

    def __call__(self, predicted: Points, wanted: Points) -> Float[Tensor, " batch"]:
        """One number per point."""
        error = (predicted - wanted).flatten(1)
        d = error.shape[1]
        c = self.width * {"sqrt_d": d**0.5, "d": float(d), "none": 1.0}[self.scale]
        if self.reduction == "element":
            return (torch.sqrt(error.square() + c**2) - c).mean(1)
        return (torch.sqrt(error.square().sum(1) + c**2) - c) / d


element_huber = PseudoHuber(1e-3, "none", "element")
"""Rectified diffusion's: nearly the absolute error of every element."""


@dataclass(frozen=True, eq=False)
class Perceptual:
    """Distance of a network's features, each scaled to unit length over its channels.

    sum over layers of w |f / |f| - g / |g||^2, averaged over places: LPIPS with any network.

    Args:
        features: points to the features of several layers, each (batch, channels, ...).
        weights: one per layer; 1 / (number of layers) each by default.
    """

    features: Callable[[Points], Sequence[Tensor]]
    weights: Sequence[float] | None = None

    def __call__(self, predicted: Points, wanted: Points) -> Float[Tensor, " batch"]:
        """One number per point.

        Raises:
            UserError: if there is not one weight per layer.
        """
        ours = self.features(predicted)
        with torch.no_grad():
            theirs = self.features(wanted.detach())
        weights = [1 / len(ours)] * len(ours) if self.weights is None else self.weights
        if len(weights) != len(ours):
            raise UserError(
                f"weights must be one a layer, got {len(weights)} for {len(ours)} layers"
            )
        total = predicted.new_zeros(len(predicted))
        for weight, one, other in zip(weights, ours, theirs, strict=True):
            apart = (_unit(one) - _unit(other)).square().sum(1, keepdim=True)
            total = total + weight * apart.flatten(1).mean(1)
        return total


def _unit(features: Tensor) -> Tensor:
    tiny = 1e-10  # LPIPS's own, so that places where nothing fires divide by something
    # the norm's gradient is 0 where nothing fires; that of the root of a sum is NaN
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + tiny)


def lpips(net: str = "vgg") -> Loss:
    """LPIPS as published, for images in [-1, 1], through the `lpips` package and its weights.

    Args:
        net: vgg, alex or squeeze.

    Raises:
        UserError: if the package or its weights are not at hand.
    """
    try:
        import lpips as package

        network = package.LPIPS(net=net, verbose=False).eval()
    except Exception as error:  # torchvision's absence, a missing download, a broken wheel
        raise UserError(
            f"LPIPS is not at hand ({first_line(error)}): pip install lpips, with torchvision and "
            "its weights; or take Perceptual with a network of your own"
        ) from error
    network.requires_grad_(False)

    def distance(predicted: Points, wanted: Points) -> Float[Tensor, " batch"]:
        return network.to(predicted.device)(predicted, wanted).flatten()

    return distance


@dataclass(frozen=True)
class Term:
    """One part of an objective.

    Attributes:
        loss: (predicted, wanted) to one number per point.
        space: what is compared: the prediction itself, or the velocity, the target (x1) or the
            noise (x0) that it implies.
        weight: factor at time t (batch,).
    """

    loss: Loss
    space: Space = "prediction"
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        choose("space", self.space, list(SPACES))


_CLOSEST = 1e-3  # s below which 1 / s grows no more


def rfpp_terms(
    perceptual: Loss | None,
    *,
    huber: PseudoHuber | None = None,
    weight: float = 1.0,
    by_time: bool = True,
) -> tuple[Term, ...]:
    """rf++'s loss: pseudo-Huber, and a perceptual term where there is a network for it.

    Args:
        perceptual: a distance of target points; None leaves it out, and then the pseudo-Huber
            counts at all times alike.
        huber: the pseudo-Huber; 0.00054 sqrt(d) wide by default.
        weight: of the perceptual term; 1 for LPIPS.
        by_time: weigh it by 1 / s (configuration F) or alike at all times (configuration E).
    """
    huber = huber or PseudoHuber()
    if perceptual is None:
        return (Term(huber, "velocity"),)

    def growing(t: Tensor) -> Tensor:
        return weight / (1 - t).clamp(min=_CLOSEST) if by_time else torch.full_like(t, weight)

    return (Term(huber, "velocity", lambda t: t), Term(perceptual, "target", growing))


def mean_loss(
    terms: Sequence[Term], pairs: Callable[[Space], tuple[Any, Any]], t: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The mean over a batch of all terms.

    Args:
        terms: at least one.
        pairs: what was predicted and what should have been, in a space.
        t: the times of the batch.
    """
    total: Any = 0.0
    for term in terms:
        values = term.loss(*pairs(term.space))
        total = total + (values if term.weight is None else term.weight(t) * values).mean()
    return total


LOSSES: dict[str, Callable[[], tuple[Term, ...]]] = {
    "squared": lambda: (Term(squared),),
    "norm": lambda: (Term(norm),),
    "huber": lambda: (Term(PseudoHuber()),),
    # rectified diffusion's code
    "target_huber": lambda: (Term(PseudoHuber(1e-3, "none", "element"), "target"),),
    "target_squared": lambda: (Term(squared, "target"),),
}
