"""Phased rectification: a flow made first-order in each of M phases, not in one.

One step from noise asks much of a network. M steps ask less, if in each of M phases the flow need
only be first-order by itself. A frozen teacher is followed through a phase, from x_s at its noisy
start s to x_e at its end e. Through two points on a path goes exactly one pair of end points,

    a_s x1 + b_s x0 = x_s,    a_e x1 + b_e x0 = x_e
    x0 = (a_e x_s - a_s x_e) / D,    x1 = (b_s x_e - b_e x_s) / D,    D = a_e b_s - a_s b_e > 0

and x0 is the paper's eps* = (x_e/a_e - x_s/a_s) / (b_e/a_e - b_s/a_s), without dividing by an a
that may be 0. The student is trained between them: x_t = a_t x1 + b_t x0 for a t in [s, e), whence
its own first-order step to the phase's end, a_e x1' + b_e x0' with the end points x0', x1' that it
sees at x_t, is to arrive at x_e. With one phase this is rectification, with the pair (x0, x1).

No pairs are stored: x_s is data with fresh noise, and the teacher works during training.

References:
    Wang et al., Rectified diffusion, 2024, arXiv 2410.07303 (phased; M = 4, ten DDIM steps a
    phase, pseudo-Huber of width 0.001 on every element).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectified.errors import UserError
from rectified.flow.couplings import Coupling, independent
from rectified.flow.fields import Field
from rectified.flow.losses import Loss, element_huber
from rectified.flow.matching import drop_labels, pair_up
from rectified.flow.paths import AffinePath, Points
from rectified.flow.predictions import Endpoints, Prediction
from rectified.flow.times import TimeDistribution, uniform
from rectified.training import Batch


def phase_endpoints(
    path: AffinePath, start: Points, end: Points, s: Tensor, e: Tensor
) -> Endpoints:
    """The one pair of end points whose path goes through `start` at s and `end` at e.

    Args:
        path: a and b.
        start: points at time s (batch, ...).
        end: points at time e, of the same shape.
        s: times (batch,) or one for all.
        e: later times.

    Example:
        >>> from rectified.flow.paths import vp_linear
        >>> x0, x1 = torch.zeros(1, 2), torch.ones(1, 2)
        >>> s, e = torch.tensor(0.25), torch.tensor(0.5)
        >>> start, end = vp_linear(x0, x1, s)[0], vp_linear(x0, x1, e)[0]
        >>> [one.round(decimals=4).tolist() for one in phase_endpoints(vp_linear, start, end, s, e)]
        [[[0.0, 0.0]], [[1.0, 1.0]]]
    """
    at_s, at_e = path.coefficients(s).like(start), path.coefficients(e).like(start)
    determinant = at_e.a * at_s.b - at_s.a * at_e.b
    return Endpoints(
        (at_e.a * start - at_s.a * end) / determinant,
        (at_s.b * end - at_e.b * start) / determinant,
    )


def follow(
    field: Field, x: Points, s: Float[Tensor, " batch"], e: Float[Tensor, " batch"], steps: int
) -> Points:
    """Natural Euler (DDIM) steps from time s to time e, each point in a phase of its own.

    Args:
        field: the flow.
        x: points at times s.
        s: where each begins.
        e: where each ends.
        steps: equal in t.
    """
    for i in range(steps):
        now, then = (s + (e - s) * (n / steps) for n in (i, i + 1))
        ends = field.endpoints(x, now)
        x = field.path(ends.x0, ends.x1, then)[0]
    return x


@dataclass(frozen=True)
class Phased:
    """The mean loss of one batch of phased rectification, for `rectified.training.fit`.

    A batch holds data (x1,) or (x1, labels), to which the coupling finds noise; with
    `coupling=None` it holds (x0, x1) or (x0, x1, labels).

    Attributes:
        teacher: the frozen flow, on the device of the training; its labels and guidance are set
            here.
        phases: M, equal in t.
        steps: of the teacher, a phase.
        guidance: weight of the teacher's guidance, 1 for none.
        coupling: finds source points.
        path: of the student; the teacher's by default.
        predicts: what the student predicts; as the teacher by default.
        times: the law of t within a phase.
        loss: of the arrival at the phase's end.
        label_drop: share of the student's labels that are replaced by -1, for guidance.
        generator: of all draws; PyTorch's global one by default, which `fit` seeds.

    Raises:
        UserError: for a number that is impossible.
    """

    teacher: Field
    phases: int = 4
    steps: int = 10
    guidance: float = 1.0
    coupling: Coupling | None = independent
    path: AffinePath | None = None
    predicts: Prediction | None = None
    times: TimeDistribution = uniform
    loss: Loss = element_huber
    label_drop: float = 0.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        for name in ("phases", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.label_drop <= 1:
            raise UserError(f"label_drop must be in [0, 1], got {self.label_drop}")

    def __call__(self, model: Callable[..., Tensor], batch: Batch, /) -> Float[Tensor, ""]:
        x0, x1, labels = pair_up(batch, self.coupling, self.generator)
        path = self.path or self.teacher.path
        s, e, t = self._phase(x1)
        with torch.no_grad():
            start = self.teacher.path(x0, x1, s)[0]
            teacher = self.teacher
            if labels is not None:
                teacher = teacher.given(labels, self.guidance)
            end = follow(teacher, start, s, e, self.steps)
            ends = phase_endpoints(self.teacher.path, start, end, s, e)
            x = path(ends.x0, ends.x1, t)[0]
            wanted = path(ends.x0, ends.x1, e)[0]
        given = () if labels is None else (drop_labels(labels, self.label_drop, self.generator),)
        output = model(x, t, *given)
        predicted = (self.predicts or self.teacher.predicts).endpoints(output, x, t, path)
        return self.loss(path(predicted.x0, predicted.x1, e)[0], wanted).mean()

    def _phase(self, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Start and end of a phase for every point, and a time between them."""
        places = torch.rand(len(x1), generator=self.generator).to(x1)
        phase = (places * self.phases).floor().clamp(max=self.phases - 1)
        inside = self.times(len(x1), self.generator).to(x1)
        return phase / self.phases, (phase + 1) / self.phases, (phase + inside) / self.phases
