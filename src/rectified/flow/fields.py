"""A field: a network together with what it predicts and on which path.

A network maps points and times to a prediction, `network(x, t)` or `network(x, t, labels)`. A
`Field` turns it into a velocity for the solvers, into end points, into the same thing on another
path, or into another prediction; it holds no weights of its own.

Labels are class numbers; -1 is "no class", which a network learns where labels are dropped in
training. Guidance (Ho and Salimans, 2022, arXiv 2207.12598) extrapolates from the prediction
without a class towards that with one: p = p(-1) + w (p(label) - p(-1)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.flow import predictions
from rectified.flow.paths import AffinePath, Points, Times, along, straight
from rectified.flow.predictions import Endpoints, Prediction

NO_CLASS = -1

Network = TypeVar("Network", bound=Callable[..., Tensor])  # a function, or a module with weights


@dataclass(frozen=True)
class Field(Generic[Network]):
    """A network as a velocity field.

    Args:
        network: (x, t) or (x, t, labels) to a prediction shaped as x; t is one per point.
        path: the path it was trained on.
        predicts: what it predicts.
        labels: the class of every point; None for a network without classes.
        guidance: weight w of guidance; 1 is none.

    Raises:
        UserError: for guidance without labels.

    Example:
        >>> field = Field(lambda x, t: torch.ones_like(x))
        >>> field(torch.zeros(2, 3), torch.tensor(0.5)).shape
        torch.Size([2, 3])
    """

    network: Network
    path: AffinePath = straight
    predicts: Prediction = predictions.velocity
    labels: Int64[Tensor, " batch"] | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.guidance != 1.0 and self.labels is None:
            raise UserError(
                f"guidance needs a condition: give labels, or guidance 1 (got {self.guidance:g})"
            )

    def given(
        self, labels: Int64[Tensor, " batch"] | None, guidance: float = 1.0
    ) -> Field[Network]:
        """The same field under these conditions."""
        return replace(self, labels=labels, guidance=guidance)

    def output(self, x: Points, t: Times) -> Points:
        """The network's prediction, guided where that was asked for."""
        along(t, x)  # a time of length 1 would broadcast in silence
        t = t.to(x.dtype).expand(len(x))
        if self.labels is None:
            return self.network(x, t)
        if self.guidance == 1.0:
            return self.network(x, t, self.labels)
        both = torch.cat([torch.full_like(self.labels, NO_CLASS), self.labels])
        without, with_class = self.network(
            x.repeat(2, *(1,) * (x.ndim - 1)), t.repeat(2), both
        ).chunk(2)
        return without + self.guidance * (with_class - without)

    def endpoints(self, x: Points, t: Times) -> Endpoints:
        """The end points of the path through x, as the network predicts them."""
        return self.predicts.endpoints(self.output(x, t), x, t.to(x.dtype), self.path)

    def __call__(self, x: Points, t: Times) -> Points:
        """The velocity dx/dt along the path at x and t."""
        if self.predicts is predictions.velocity:
            return self.output(x, t)
        return predictions.velocity.of(self.endpoints(x, t), t.to(x.dtype), self.path)

    def on(self, path: AffinePath) -> OnPath:
        """The same network as a field on another path, exactly and without training."""
        return OnPath(self, path)


@dataclass(frozen=True)
class OnPath:
    """A field carried to another path.

    Where a / b is the same, two paths hold the same mixture of x1 and x0 up to its scale: so the
    end points at (x, t) of the new path are those at (x / c, r) of the old one, with the time r of
    equal ratio and c the quotient of the coefficients. EDM's initialisation of a rectified flow
    (Lee et al., 2024, prop. 1) is the case from `edm` to `straight`.

    Args:
        field: on its own path.
        path: the wanted one.
    """

    field: Field
    path: AffinePath

    def endpoints(self, x: Points, t: Times) -> Endpoints:
        """Both end points."""
        wanted = self.path.coefficients(t.to(x.dtype))
        r = self.field.path.time(wanted.a / wanted.b).clamp(0, 1)
        own = self.field.path.coefficients(r)
        # of the two quotients that are equal, the one whose parts are the larger
        scale = torch.where(own.b > own.a, wanted.b / own.b, wanted.a / own.a)
        return self.field.endpoints(x / along(scale, x), r)

    def __call__(self, x: Points, t: Times) -> Points:
        """The velocity along the new path."""
        return predictions.velocity.of(self.endpoints(x, t), t.to(x.dtype), self.path)

    def trainable(self) -> Field[nn.Module]:
        """The same field with a network that predicts velocities on the new path.

        It holds the network of the old field, in the old network's own inputs and outputs: a
        reflow that begins at a diffusion model.

        Example:
            >>> from rectified.flow.paths import edm
            >>> layer = nn.Linear(2, 2)
            >>> diffusion = Field(lambda x, t: layer(x), edm, predictions.edm)
            >>> start = diffusion.on(straight).trainable()  # for `reflow` or `fit`
            >>> start.path is straight, start.predicts.name
            (True, 'velocity')
        """
        return Field(_Carried(self), self.path, labels=self.field.labels)


class _Carried(nn.Module):
    """(x, t) or (x, t, labels) to the velocity along another path than the network's own."""

    def __init__(self, carried: OnPath) -> None:
        super().__init__()
        self.network = carried.field.network
        self.own, self.predicts = carried.field.path, carried.field.predicts
        self.path = carried.path

    def forward(self, x: Points, t: Times, labels: Int64[Tensor, " batch"] | None = None) -> Points:
        """The velocity."""
        return OnPath(Field(self.network, self.own, self.predicts, labels), self.path)(x, t)
