"""Conditions of a generative network beside its input: the time, and perhaps a class.

Classes are numbers from 0; -1 stands for "no class" and has an embedding of its own, so that a
network trained with some labels dropped can be guided.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.errors import UserError

_LONGEST = 1000.0  # time steps of a unit of time, as diffusion models count them


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies (Vaswani et al., 2017).

    Args:
        width: numbers per time, even.

    Example:
        >>> TimeEmbedding(8)(torch.zeros(3)).shape
        torch.Size([3, 8])
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise UserError(f"width must be even and at least 2, got {width}")
        exponents = torch.arange(width // 2) / max(width // 2 - 1, 1)
        frequencies = _LONGEST * torch.exp(-math.log(1e4) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Embed times in [0, 1]."""
        angles = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Condition(nn.Module):
    """Time and class as one vector, for the layers to scale and shift by.

    Args:
        width: of the vector.
        classes: how many there are; 0 for none.
    """

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        if classes < 0:
            raise UserError(f"classes must be at least 0, got {classes}")
        self.classes = classes
        self.time = nn.Sequential(
            TimeEmbedding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(
        self, t: Float[Tensor, " batch"], labels: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """Embed times in [0, 1], and class numbers where the network has classes.

        Raises:
            UserError: for labels where the network has no classes.
        """
        embedded = self.time(t)
        if self.label is None:
            if labels is not None:
                raise UserError(
                    "this network has no classes: build it with classes=N, or give none"
                )
            return embedded
        if labels is None:
            labels = torch.full_like(t, -1, dtype=torch.int64)
        # -1, no class, is the last embedding
        return embedded + self.label(torch.where(labels < 0, self.classes, labels))
