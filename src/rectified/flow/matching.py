"""Flow matching: the one objective of all flows here.

A pair (x0, x1), a time t, the point x_t between them: the network's prediction at (x_t, t) is to be
what the pair says. A first flow, a reflow, rf++ and rectified diffusion differ in the coupling,
the time law, the terms and the path, which are the fields of `FlowMatching`, and in nothing else.

The minimiser of the squared loss is the conditional mean, v(x, t) = E[dx_t/dt | x_t = x]; the ODE
dx = v dt carries the source's distribution to the target's (Liu et al., 2022, theorem 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow import predictions
from rectified.flow.couplings import ByLabels, Coupling, independent
from rectified.flow.fields import NO_CLASS
from rectified.flow.losses import SPACES, Space, Term, mean_loss, squared
from rectified.flow.paths import AffinePath, straight
from rectified.flow.predictions import Endpoints, Prediction
from rectified.flow.times import TimeDistribution, uniform
from rectified.training import Batch

_SPACES = {
    "velocity": predictions.velocity,
    "target": predictions.target,
    "noise": predictions.noise,
}


@dataclass(frozen=True)
class FlowMatching:
    """The mean loss of one batch, for `rectified.training.fit`.

    A batch holds target points (x1,) or (x1, labels), to which the coupling finds source points;
    with `coupling=None` it holds pairs, (x0, x1) or (x0, x1, labels). The network is called as
    `model(x, t)` or `model(x, t, labels)`.

    Attributes:
        coupling: finds source points; None where the batch brings them.
        path: between source and target.
        predicts: what the network predicts.
        times: the law of t.
        terms: what is summed; the squared error of the prediction by default.
        label_drop: share of the labels that are replaced by -1, for guidance, in [0, 1].
        generator: of all draws; PyTorch's global one by default, which `fit` seeds.

    Example:
        >>> model = lambda x, t: torch.zeros_like(x)
        >>> x0, x1 = torch.zeros(4, 2), torch.ones(4, 2)
        >>> FlowMatching(coupling=None)(model, (x0, x1))
        tensor(1.)
    """

    coupling: Coupling | None = independent
    path: AffinePath = straight
    predicts: Prediction = predictions.velocity
    times: TimeDistribution = uniform
    terms: Sequence[Term] = (Term(squared),)
    label_drop: float = 0.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError("terms must hold at least one, got none")
        if not 0 <= self.label_drop <= 1:
            raise UserError(f"label_drop must be in [0, 1], got {self.label_drop}")

    def __call__(self, model: Callable[..., Tensor], batch: Batch, /) -> Float[Tensor, ""]:
        x0, x1, labels = pair_up(batch, self.coupling, self.generator)
        t = self.times(len(x1), self.generator).to(x1)
        x, v = self.path(x0, x1, t)
        given = () if labels is None else (drop_labels(labels, self.label_drop, self.generator),)
        output = model(x, t, *given)
        spaces = {term.space for term in self.terms}
        is_plain = self.predicts is predictions.velocity and spaces <= {"prediction", "velocity"}
        if is_plain:  # nothing to convert
            return mean_loss(self.terms, lambda _: (output, v), t)
        c = self.path.coefficients(t).like(x1)
        true = Endpoints(x0, x1)
        ends = self.predicts.to_endpoints(output, x, c) if spaces != {"prediction"} else None

        def compared(space: Space) -> tuple[Tensor, Tensor]:
            if space == "prediction":
                return output, self.predicts.from_endpoints(true, c)
            kind = _SPACES[space]
            assert ends is not None
            return kind.from_endpoints(ends, c), kind.from_endpoints(true, c)

        return mean_loss(self.terms, compared, t)


def pair_up(
    batch: Batch, coupling: Coupling | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Source points, target points and labels of a batch, paired by the coupling.

    Args:
        batch: (x1,) or (x1, labels); (x0, x1) or (x0, x1, labels) where there is no coupling.
        coupling: finds source points; None where the batch brings them.
        generator: of the coupling's draws.

    Raises:
        UserError: if a batch without coupling is no pair.
    """
    if coupling is None:
        if len(batch) not in (2, 3):
            raise UserError(
                f"without a coupling a batch is (x0, x1) or (x0, x1, labels), got {len(batch)} "
                "tensors"
            )
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None
    labels = batch[1] if len(batch) == 2 else None
    if labels is not None and isinstance(coupling, ByLabels):
        coupling = coupling.given(labels)
    return *coupling(batch[0], generator), labels


def drop_labels(labels: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """The labels with a share of them replaced by -1, for guidance.

    Example:
        >>> drop_labels(torch.tensor([3, 4]), 1.0, None)
        tensor([-1, -1])
    """
    if not share:
        return labels
    draws = torch.rand(len(labels), generator=generator).to(labels.device)
    return torch.where(draws < share, NO_CLASS, labels)


assert set(_SPACES) | {"prediction"} == set(SPACES)
