"""Signs as bits: 64 in a word, and the words of weights in panels.

A bit is 1 where the sign is +1. The last axis becomes words: channel c is bit c % 64 of word
c // 64, and bits beyond the last channel are 0 on both sides, so they never differ. For K signs

    sum_k a_k w_k = K - 2 popcount(a xor w).

Images are packed pixel by pixel, (batch, height, width, words). Weights are stored in *panels* of
32 outputs, (panels, taps * words, 32): for each word of the input, those of 32 outputs lie side by
side, so that a vector of them meets one broadcast word of the input and no sum runs across lanes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

WORD = 64
PANEL = 32


def words_for(channels: int) -> int:
    """The number of words that hold so many signs.

    Example:
        >>> words_for(64), words_for(65)
        (1, 2)
    """
    return -(-channels // WORD)


def bits_to_words(bits: Shaped[Tensor, "*rest channels"]) -> Int64[Tensor, "*rest words"]:
    """Pack the last axis of a tensor of truth values.

    Example:
        >>> bits_to_words(torch.tensor([True, False, True])).tolist()
        [5]
    """
    padded = torch.nn.functional.pad(bits.to(torch.int64), (0, -bits.shape[-1] % WORD))
    places = torch.arange(WORD, device=bits.device)
    return (padded.unflatten(-1, (-1, WORD)) << places).sum(-1)


def words_to_signs(
    words: Int64[Tensor, "*rest words"], channels: int
) -> Float[Tensor, "*rest channels"]:
    """The signs of the first `channels` bits, as -1.0 and +1.0.

    Example:
        >>> words_to_signs(torch.tensor([5]), 3).tolist()
        [1.0, -1.0, 1.0]
    """
    places = torch.arange(WORD, device=words.device)
    bits = ((words[..., None] >> places) & 1).flatten(-2)[..., :channels]
    return bits.float().mul_(2).sub_(1)


def weight_to_panels(
    weight: Float[Tensor, "outputs inputs *kernel"],
) -> Int64[Tensor, "panels words 32"]:
    """The signs of a layer's weights, in panels; outputs beyond the last are all -1."""
    words = (
        bits_to_words(weight.flatten(2).movedim(1, -1) >= 0)
        if weight.ndim > 2
        else (bits_to_words(weight >= 0))
    )
    rows = words.flatten(1)
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % PANEL))
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def panels_to_weight(
    panels: Int64[Tensor, "panels words 32"], outputs: int, inputs: int, kernel: tuple[int, ...]
) -> Float[Tensor, "outputs inputs *kernel"]:
    """Unpack what `weight_to_panels` packed, to -1.0 and +1.0.

    Example:
        >>> weight = torch.randn(5, 70, 3, 3)
        >>> signs = panels_to_weight(weight_to_panels(weight), 5, 70, (3, 3))
        >>> torch.equal(signs, torch.where(weight >= 0, 1.0, -1.0))
        True
    """
    rows = panels.transpose(1, 2).flatten(0, 1)[:outputs]
    signs = words_to_signs(rows.unflatten(1, (-1, words_for(inputs))), inputs)
    return signs.movedim(-1, 1).reshape(outputs, inputs, *kernel)


def flips_to_halves(flips: Int64[Tensor, " words"], panels: int) -> Int32[Tensor, " panels"]:
    """Words of 64 bits as the 32 bits of each panel, in the order of memory."""
    return flips.view(torch.int32)[:panels].contiguous()
