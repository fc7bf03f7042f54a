"""Random crops and flips of a batch.

The usual augmentation for small images: shift by up to `pad` pixels in each direction, where what
moves in from outside is 0 (black), and mirror half of the images. It works on raw pixels, before
they are standardised, so black stays black.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from rectified.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Shift each image at random and mirror half of them.

    Args:
        pad: largest shift in pixels, at least 0.
        flip: whether images are mirrored left to right with probability 1/2.

    Raises:
        UserError: if `pad` is negative.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015,
        arXiv:1512.03385, section 4.2.

    Example:
        >>> batch = torch.ones(2, 3, 32, 32)
        >>> Augment(pad=4)(batch, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UserError(f"pad must be at least 0, got {self.pad}")

    def __call__(
        self, batch: Shaped[Tensor, "batch channels height width"], generator: torch.Generator
    ) -> Shaped[Tensor, "batch channels height width"]:
        """Return the augmented batch; the draws come from `generator`, a CPU one."""
        count, channels, height, width = batch.shape
        shift = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator)
        rows = shift[0] + torch.arange(height)
        columns = shift[1] + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(batch, (self.pad,) * 4)
        source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        source = source.to(batch.device).reshape(count, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).reshape(batch.shape)
