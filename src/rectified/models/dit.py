"""A small diffusion transformer: patches, attention, and layers modulated by time and class.

References:
    Peebles, Xie, Scalable diffusion models with transformers, 2022, arXiv 2212.09748 (adaLN-Zero).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models.conditions import Condition


class DiT(nn.Module):
    """A transformer from images and times to images.

    Args:
        shape: channels, height and width of an image.
        patch: side of a patch, in pixels.
        width: of a token.
        blocks: how many.
        heads: of the attention.
        classes: how many there are; 0 for none.

    Raises:
        UserError: if patches do not tile the image, or heads do not divide the width.

    Example:
        >>> model = DiT((1, 8, 8), patch=2, width=32, blocks=2)
        >>> model(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int = 2,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        classes: int = 0,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        if patch < 1 or height % patch or across % patch:
            raise UserError(f"patches must tile the image, got {patch} for {height}x{across}")
        if width % heads or width % 2:
            raise UserError(f"heads must divide an even width, got {heads} for {width}")
        self.patch = patch
        self.condition = Condition(width, classes)
        self.enter = nn.Conv2d(channels, width, patch, stride=patch)
        tokens = (height // patch) * (across // patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.leave = nn.Linear(width, channels * patch**2)
        for layer in (self.leave, self.modulate[1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction at images x and times t."""
        condition = self.condition(t, labels)
        tokens = self.enter(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulate(condition)[:, None].chunk(2, -1)
        patches = self.leave(self.norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        return F.fold(patches, x.shape[-2:], self.patch, stride=self.patch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulate[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.modulate[1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(condition)[:, None].chunk(
            6, -1
        )
        x = x + gate1 * self._attend(self.norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.feed(self.norm(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.inputs(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.outputs(seen.reshape(n, tokens, width))
