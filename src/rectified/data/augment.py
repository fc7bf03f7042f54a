"""Random crops and flips of a batch.

The usual augmentation for small images: shift by up to `pad` pixels in each direction, where what
moves in from outside is 0 (black), and mirror half of the images. It works on raw pixels, before
they are standardised, so black stays black. What is drawn is drawn on the CPU, for a whole epoch if
one likes; what the pictures become is computed where they lie.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from rectified.errors import UserError

Drawn = tuple[Int64[Tensor, "images 2"], Bool[Tensor, " images"]]


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

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw how `count` images change, from a CPU generator; what is drawn may be moved.

        Returns:
            Shifts down and across in 0..2 pad, and whether an image is mirrored: a row per image.
        """
        shift = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator)
        if not self.flip:
            return shift.squeeze(2).T, torch.zeros(count, dtype=torch.bool)
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        return shift.squeeze(2).T, mirrored.squeeze(1)

    def apply(
        self, batch: Shaped[Tensor, "batch channels height width"], drawn: Drawn
    ) -> Shaped[Tensor, "batch channels height width"]:
        """Return the images as drawn; the host waits for nothing, so that a graph can hold it.

        Args:
            batch: the images.
            drawn: from `draw`, on the images' device.
        """
        shift, mirrored = drawn
        count, channels, height, width = batch.shape
        rows = shift[:, :1] + torch.arange(height, device=batch.device)
        across = torch.arange(width, device=batch.device)
        columns = shift[:, 1:] + torch.where(mirrored[:, None], across.flip(0), across)
        padded = F.pad(batch, (self.pad,) * 4)
        source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        source = source.reshape(count, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).reshape(batch.shape)

    def __call__(
        self, batch: Shaped[Tensor, "batch channels height width"], generator: torch.Generator
    ) -> Shaped[Tensor, "batch channels height width"]:
        """Return the augmented batch; the draws come from `generator`, a CPU one."""
        shift, mirrored = self.draw(len(batch), generator)
        return self.apply(batch, (shift.to(batch.device), mirrored.to(batch.device)))
