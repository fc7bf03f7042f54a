"""Snapshots that scores are tried on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectified.pruning.scores import Score, ScoreFunction, Snapshot, as_score


class Residual(nn.Module):
    """Convolutions, norms, a skip connection and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner_norm(self.inner(x)))
        return self.head(self.dropout(x.flatten(1)))


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def classify(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def snapshot_of(model: nn.Module, *input_shape: int, share: float = 0.8) -> Snapshot:
    """A random start, end and mask of `model`, with three batches of three classes."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    masks = {
        name: torch.rand(weight.shape, generator=generator) < share
        for name, weight in weights.items()
    }
    dtype = next(model.parameters()).dtype
    ends = [
        {
            name: noise(value) * masks.get(name, 1) if name in weights else value
            for name, value in state(model).items()
        }
        for _ in range(2)
    ]
    batches = [
        (
            torch.randn(5, *input_shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(3, (5,), generator=generator),
        )
        for _ in range(3)
    ]
    return Snapshot(model, ends[0], ends[1], masks, batches, classify)


def residual() -> Snapshot:
    return snapshot_of(Residual(), 3, 3, 3)


def watched(score: ScoreFunction, snapshot: Snapshot) -> Score:
    """The score, after it has watched a short training of a copy of the model."""
    model = copy.deepcopy(snapshot.model).eval()
    model.load_state_dict(snapshot.initial)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    score = as_score(score)
    with score.watch(model):
        for batch in snapshot.batches:
            optimizer.zero_grad()
            classify(model, batch).backward()
            optimizer.step()
    return score


def loss_at(snapshot: Snapshot, weights: dict[str, Tensor], batches: int) -> Tensor:
    losses = [
        F.cross_entropy(torch.func.functional_call(snapshot.model, weights, batch[0]), batch[1])
        for batch in list(snapshot.batches)[:batches]
    ]
    return torch.stack(losses).mean()


def central_difference(loss: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    slope = torch.zeros_like(at)
    for i in range(at.numel()):
        shift = torch.zeros_like(at).view(-1).index_fill(0, torch.tensor(i), step).view_as(at)
        slope.view(-1)[i] = (loss(at + shift) - loss(at - shift)) / (2 * step)
    return slope
