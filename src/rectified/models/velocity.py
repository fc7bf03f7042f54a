"""Multilayer perceptrons that predict a velocity: for points in the plane, and small vectors."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models.conditions import Condition


class VelocityMLP(nn.Module):
    """A perceptron on (x, t): what points in the plane need.

    Args:
        dimensions: of a point.
        widths: neurons of each hidden layer.
        activation: makes the module after each hidden layer.

    Example:
        >>> model = VelocityMLP(2)
        >>> sum(p.numel() for p in model.parameters())
        8706
    """

    def __init__(
        self,
        dimensions: int,
        widths: Sequence[int] = (64, 64, 64),
        activation: Callable[[], nn.Module] = nn.SELU,
    ) -> None:
        super().__init__()
        sizes = [dimensions + 1, *widths]
        if min(sizes) < 1:
            raise UserError(f"dimensions and widths must be at least 1, got {dimensions}, {widths}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], dimensions))

    def forward(
        self, x: Float[Tensor, "batch dimensions"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch dimensions"]:
        """The velocity at points x and times t."""
        return self.layers(torch.cat([x, t[:, None]], 1))


class VelocityResMLP(nn.Module):
    """Residual perceptron with layers scaled and shifted by time and class: for small images.

    Points of any shape are flattened and put back.

    Args:
        shape: of a point.
        width: neurons of each layer.
        blocks: residual blocks.
        classes: how many there are; 0 for none.

    Example:
        >>> model = VelocityResMLP((1, 8, 8), classes=10)
        >>> model(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, -1])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, shape: Sequence[int], width: int = 256, blocks: int = 3, classes: int = 0
    ) -> None:
        super().__init__()
        if width < 1 or blocks < 1 or min(shape) < 1:
            raise UserError(
                f"shape, width and blocks must be at least 1, got {shape}, {width}, {blocks}"
            )
        self.shape = tuple(shape)
        size = 1
        for side in shape:
            size *= side
        self.condition = Condition(width, classes)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        nn.init.zeros_(self.leave[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave[1].bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "batch ..."],
        t: Float[Tensor, " batch"],
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """The velocity at points x and times t."""
        condition = self.condition(t, labels)
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.leave(hidden).reshape(x.shape)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).chunk(2, 1)
        return x + self.layers(torch.addcmul(shift, self.norm(x), 1 + scale))
