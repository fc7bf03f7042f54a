"""A compact U-Net for images: time and class in every block, attention where it is wanted.

Down and up through resolutions, each level with residual blocks (GroupNorm, SiLU, 3x3 convolution),
skips from every block on the way down to one on the way up (Ronneberger et al., 2015,
arXiv 1505.04597; Ho et al., 2020, arXiv 2006.11239).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.models.conditions import Condition

_GROUP = 16  # channels per group of a GroupNorm, where they divide so


class UNet(nn.Module):
    """A U-Net from images and times to images.

    Args:
        in_channels: of an image.
        widths: channels of each level, finest first; every level halves the sides.
        blocks: residual blocks per level.
        attention: sides (in levels below the finest) at which blocks attend: `(2,)` for the third.
        classes: how many there are; 0 for none.
        heads: of the attention.

    Raises:
        UserError: if a number is impossible, or (when called) sides do not halve so often.

    Example:
        >>> model = UNet(1, widths=(16, 32), blocks=1)
        >>> model(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        *,
        widths: Sequence[int] = (64, 128, 128),
        blocks: int = 2,
        attention: Sequence[int] = (),
        classes: int = 0,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if in_channels < 1 or blocks < 1 or not widths or min(widths) < 1:
            raise UserError(
                f"in_channels, blocks and widths must be at least 1, got {in_channels}, {blocks}, "
                f"{tuple(widths)}"
            )
        if heads < 1:
            raise UserError(f"heads must be at least 1, got {heads}")
        if attention and not 0 <= min(attention) <= max(attention) < len(widths):
            raise UserError(
                f"attention must name levels below {len(widths)}, got {tuple(attention)}"
            )
        wide = 4 * widths[0]
        self.condition = Condition(wide, classes)
        self.enter = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Level(channels, width, wide, heads if level in attention else 0))
                channels = width
                skips.append(channels)
            if level + 1 < len(widths):
                self.down.append(_Down(channels))
                skips.append(channels)
        self.middle = _Level(channels, channels, wide, heads if attention else 0)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(
                    _Level(channels + skips.pop(), width, wide, heads if level in attention else 0)
                )
                channels = width
            if level:
                self.up.append(_Up(channels))
        self.levels = len(widths)
        self.leave = nn.Sequential(_norm(channels), nn.SiLU(), _zeroed(channels, in_channels))

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        labels: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction at images x and times t."""
        if any(side % 2 ** (self.levels - 1) for side in x.shape[-2:]):
            raise UserError(
                f"sides must be multiples of {2 ** (self.levels - 1)} in {self.levels} levels, got "
                f"{tuple(x.shape[-2:])}"
            )
        condition = F.silu(self.condition(t, labels))
        hidden = self.enter(x)
        skips = [hidden]
        for layer in self.down:
            hidden = layer(hidden, condition)
            skips.append(hidden)
        hidden = self.middle(hidden, condition)
        for layer in self.up:
            if isinstance(layer, _Level):
                hidden = torch.cat([hidden, skips.pop()], 1)
            hidden = layer(hidden, condition)
        return self.leave(hidden)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // _GROUP) if channels % _GROUP == 0 else 1, channels)


def _zeroed(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class _Level(nn.Module):
    """A residual block, and attention if it has heads."""

    def __init__(self, inputs: int, outputs: int, wide: int, heads: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.modulate = nn.Linear(wide, 2 * outputs)
        self.norm = _norm(outputs)
        self.second = _zeroed(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = _Attention(outputs, heads) if heads else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        hidden = torch.addcmul(shift, self.norm(self.first(x)), 1 + scale)
        hidden = self.skip(x) + self.second(F.silu(hidden))
        return hidden if self.attention is None else self.attention(hidden)


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"heads must divide the channels, got {heads} for {channels}")
        self.heads = heads
        self.norm = _norm(channels)
        self.inputs = nn.Conv2d(channels, 3 * channels, 1)
        self.outputs = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        parts = self.inputs(self.norm(x)).reshape(n, 3, self.heads, channels // self.heads, -1)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.outputs(seen.reshape(n, channels, height, width))


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.layer(x)


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
