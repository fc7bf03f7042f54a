"""Stratified splits: every part holds the classes in the proportions of the whole.

`stratified` keeps one of each class first and shares out the rest in proportion to what is left
of each class, by largest remainder. So the sizes are exact, no class disappears, and no class's
share is off by more than one image, whatever the sizes of the classes.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from rectified.errors import UserError


def stratified(
    labels: Int64[Tensor, " n"], count: int, generator: torch.Generator
) -> Int64[Tensor, " count"]:
    """Draw `count` rows, with the classes in the proportions of `labels`.

    Args:
        labels: class numbers; not all numbers need to occur.
        count: how many rows; at least the number of classes that occur, at most `n`.
        generator: makes the draw.

    Returns:
        Row numbers, ascending.

    Raises:
        UserError: if `count` is below the number of classes or above the number of rows.

    Example:
        >>> labels = torch.tensor([0] * 8 + [1] * 4)
        >>> labels[stratified(labels, 6, torch.Generator().manual_seed(0))].tolist()
        [0, 0, 0, 0, 1, 1]
    """
    _, groups, sizes = labels.unique(return_inverse=True, return_counts=True)
    if not len(sizes) <= count <= len(labels):
        raise UserError(
            f"count must be between the number of classes ({len(sizes)}) "
            f"and of images ({len(labels)}), got {count}"
        )
    quota = 1 + _apportion(count - len(sizes), sizes - 1)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_group = shuffled[groups[shuffled].argsort(stable=True)]
    first = (sizes.cumsum(0) - sizes)[groups[by_group]]
    rank = torch.arange(len(labels)) - first
    return by_group[rank < quota[groups[by_group]]].sort().values


def cut(
    labels: Int64[Tensor, " n"], share: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " cut"]]:
    """Cut a stratified share off; what is kept holds at least one image of each class.

    Args:
        labels: class numbers.
        share: the share to cut off, in [0, 1); `round(share * n)` rows.
        generator: makes the draw.

    Returns:
        The rows that are kept and those cut off, both ascending.

    Raises:
        UserError: if there are too few images for that.

    Example:
        >>> kept, held_out = cut(torch.tensor([0, 1] * 5), 0.2, torch.Generator().manual_seed(0))
        >>> len(kept), len(held_out)
        (8, 2)
    """
    count = len(labels) - round(share * len(labels))
    classes = len(labels.unique())
    if count < classes:
        raise UserError(
            f"cannot cut {share:.0%} off {len(labels)} images of {classes} classes: "
            "no image of some class would stay; give more images or a smaller share"
        )
    kept = stratified(labels, count, generator)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[kept] = False
    return kept, rest.nonzero().flatten()


def _apportion(count: int, sizes: Int64[Tensor, " groups"]) -> Int64[Tensor, " groups"]:
    """Share `count` out in proportion to `sizes`, none above its size (largest remainder)."""
    total = max(int(sizes.sum()), 1)
    quota, remainder = count * sizes // total, count * sizes % total
    missing = count - int(quota.sum())
    quota[remainder.argsort(descending=True, stable=True)[:missing]] += 1
    return quota
