"""The exact k-th smallest score over many tensors, without putting them side by side.

Global pruning ranks every weight of a network at once. Concatenating the scores and sorting them
costs several times the network's own size; this module reads them in place instead.

**Radix selection.** The bits of a float, read as an integer and with the lower bits of negative
numbers flipped, order as the floats do. One pass counts the leading 16 bits of all scores in
65 536 bins; the bin that holds rank k is known from the counts; the next pass counts the following
16 bits of that bin's scores only. Two passes end at one float32, four at one float64. The only
extra memory is 1/2 MiB of counts and what a chunk of 2^20 scores needs. Counts of several processes
add up, so each process may hold its own shard: 1/2 MiB travels per pass, and no score does.

Conventions: ranks start at 1; masks are `True` where an entry takes part; -0.0 equals +0.0;
float16 and bfloat16 count as float32, which holds them exactly; equal scores keep the order of the
tensors, in each that of the processes' ranks, and then of the flat index, so that tensors sharded
along their first axis are ranked as whole ones are; NaN has no rank and is refused.
`group=None` looks at this process alone; pass `torch.distributed.group.WORLD` for all of them.
`key` makes scores of what is read, a chunk at a time: `key=torch.abs` ranks weights by magnitude
without a copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rectified.errors import UserError

# 2^20 float32 are 4 MiB: a chunk and its few temporaries stay in cache from one step to the next.
CHUNK = 2**20
DIGIT_BITS = 16
BINS = 2**DIGIT_BITS

Key = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A tensor, its mask, and what makes scores of its entries."""

    tensor: Tensor
    mask: Tensor
    key: Key | None


def drop_smallest(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    count: int,
    *,
    group: dist.ProcessGroup | None = None,
    key: Key | None = None,
) -> dict[str, Tensor]:
    """Masks with exactly `count` fewer kept entries: those with the smallest scores.

    Args:
        scores: name -> score, floating-point, of the mask's shape; +inf is never dropped.
        masks: name -> bool, `True` = kept; the scores of other entries are ignored.
        count: entries to drop over all tensors (and processes), from 0 to the number of kept
            entries whose score is below +inf.
        group: processes that hold one shard each; each of them must call, with as many tensors.
            Default: this one alone.
        key: applied to every chunk of `scores` first; elementwise.

    Returns:
        New masks. Of equal scores the first by position are dropped first.

    Raises:
        UserError: if `count` is out of range, a score is missing, not floating-point or of
            another shape than its mask, or the score of a kept entry is NaN.

    Example:
        >>> masks = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
        >>> scores = {"a": torch.tensor([5.0, 1.0, 4.0]), "b": torch.tensor([1.0, 3.0])}
        >>> drop_smallest(scores, masks, 2)
        {'a': tensor([ True, False,  True]), 'b': tensor([False,  True])}
    """
    plain = torch.contiguous_format
    new = {name: mask.clone(memory_format=plain) for name, mask in masks.items()}
    drop_smallest_(scores, new, count, group=group, key=key)
    return new


def drop_smallest_(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    count: int,
    *,
    group: dist.ProcessGroup | None = None,
    key: Key | None = None,
) -> None:
    """As `drop_smallest`, in place: masks of a billion weights are a gigabyte.

    Args:
        scores: as there.
        masks: as there, contiguous; changed.
        count: as there.
        group: as there.
        key: as there.

    Raises:
        UserError: as there, or if a mask is not contiguous.

    Example:
        >>> masks = {"a": torch.tensor([True, True])}
        >>> drop_smallest_({"a": torch.tensor([-5.0, 1.0])}, masks, 1, key=torch.abs)
        >>> masks
        {'a': tensor([ True, False])}
    """
    parts = _parts(scores, masks, key)
    for name, mask in masks.items():
        if not mask.is_contiguous():
            raise UserError(f"masks must be contiguous to be changed in place, {name!r} is not")
    total, floats = _check(parts, group)
    if not 0 <= count <= total:
        raise UserError(f"count must be in [0, {total}], the kept entries, got {count}")
    if count == 0:
        return
    bound, below = _select(parts, count, floats, group)
    if bound == float("inf"):
        raise UserError(f"count must be in [0, {below}], the scores below inf, got {count}")
    _drop_(parts, bound, _shares_of_ties(parts, bound, count - below, floats, group), floats)


def _parts(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], key: Key | None
) -> list[Part]:
    """Each score with its mask and key."""
    missing = masks.keys() - scores.keys()
    if missing:
        raise UserError(f"scores must name every mask, missing {', '.join(sorted(missing))}")
    parts = [Part(scores[name], mask, key) for name, mask in masks.items()]
    if any(part.tensor.shape != part.mask.shape for part in parts):
        raise UserError(
            f"masks must have the scores' shapes {_shapes(part.tensor for part in parts)}, "
            f"got {_shapes(masks.values())}"
        )
    if any(mask.dtype != torch.bool for mask in masks.values()):
        raise UserError(f"masks must be torch.bool, got {_dtypes(masks.values())}")
    return parts


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))


def _check(parts: Sequence[Part], group: dist.ProcessGroup | None) -> tuple[int, torch.dtype]:
    """Refuse what has no order; count the entries that take part, and find the widest dtype.

    Every process hears of every fault, lest the others wait for one that has already stopped.
    """
    scores = [part.tensor for part in parts]
    kept = sum(int(part.mask.sum()) for part in parts)
    double = any(score.dtype == torch.float64 for score in scores)
    floating = all(score.is_floating_point() for score in scores)
    nan = floating and any(_has_nan(chunk, mask) for chunk, mask in _chunks(parts))
    counts = torch.tensor([kept, double, not floating, nan], dtype=torch.int64)
    total, doubles, not_floating, nans = _total(counts, parts, group).tolist()
    if not_floating:
        raise UserError(f"scores must be floating-point on every process, got {_dtypes(scores)}")
    if nans:
        raise UserError("scores of kept entries must be numbers, got nan")
    return total, torch.float64 if doubles else torch.float32


def _has_nan(chunk: Float[Tensor, " n"], mask: Bool[Tensor, " n"]) -> bool:
    # The maximum hands a NaN on, at a tenth of the price of asking every entry.
    return bool(chunk.max().isnan()) and bool((chunk.isnan() & mask).any())


def _chunks(
    parts: Iterable[Part],
) -> Iterator[tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]]:
    """Scores of flat pieces of every tensor, and their masks, in order of position."""
    for part in parts:
        pieces = zip(_pieces(part.tensor.detach()), _pieces(part.mask), strict=True)
        for piece, mask in pieces:
            yield (piece if part.key is None else part.key(piece)), mask


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.reshape(-1).split(CHUNK) if tensor.numel() else ()


def _total(
    counts: Int[Tensor, " n"], parts: Sequence[Part], group: dist.ProcessGroup | None
) -> Int[Tensor, " n"]:
    """Sums over the processes of `group`."""
    if group is None:
        return counts
    # The backend of an accelerator sums only what lies on one.
    summed = counts.to(parts[0].tensor.device if parts else "cpu")
    dist.all_reduce(summed, group=group)
    return summed.cpu()


def _select(
    parts: Sequence[Part], k: int, floats: torch.dtype, group: dist.ProcessGroup | None
) -> tuple[float, int]:
    """The entry of rank `k`, and how many entries are strictly smaller."""
    integers = torch.int64 if floats == torch.float64 else torch.int32
    rank, prefix = k, None
    for shift in reversed(range(0, torch.iinfo(integers).bits, DIGIT_BITS)):
        # Keys are signed, so the leading digit runs from -2^15 and not from 0.
        first = -BINS // 2 if prefix is None else prefix << DIGIT_BITS
        counts = torch.zeros(BINS, dtype=torch.int64)
        for chunk, mask in _chunks(parts):
            keys = _order_preserving(chunk.to(floats), mask)
            if prefix is not None:
                keys = keys[keys >> (shift + DIGIT_BITS) == prefix]
            counts += torch.bincount((keys >> shift) - first, minlength=BINS).cpu()
        up_to = _total(counts, parts, group).cumsum(0)
        digit = int(torch.searchsorted(up_to, rank))
        rank -= int(up_to[digit - 1]) if digit else 0
        prefix = first + digit
    return float(_mirror(torch.tensor(prefix, dtype=integers)).view(floats)), k - rank


def _order_preserving(chunk: Float[Tensor, " n"], mask: Bool[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Integers that order as the floats do; an entry that takes no part becomes +inf.

    At +inf it lies behind every rank that is asked for, or beside an equal one.
    """
    integers = torch.int64 if chunk.dtype == torch.float64 else torch.int32
    keys = _mirror((chunk + 0.0).view(integers))  # -0.0 + 0.0 = +0.0
    infinity = int(torch.tensor(float("inf"), dtype=chunk.dtype).view(integers))
    # A blend of bits, since `where` on an irregular mask takes five times as long.
    return infinity ^ ((keys ^ infinity) & -mask.to(integers))


def _mirror(bits: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Flip all bits but the sign of negative numbers; its own inverse."""
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)


def _shares_of_ties(
    parts: Sequence[Part],
    bound: float,
    ties: int,
    floats: torch.dtype,
    group: dist.ProcessGroup | None,
) -> list[int]:
    """The number of the first `ties` entries equal to `bound` that each tensor here drops."""
    mine = torch.tensor([_count_ties(part, bound, floats) for part in parts], dtype=torch.int64)
    if group is None:
        size, rank = 1, 0
    else:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
    counts = torch.zeros(len(parts), size, dtype=torch.int64)
    counts[:, rank] = mine
    counts = _total(counts.flatten(), parts, group)  # tensor by tensor, in each rank by rank
    before = counts.cumsum(0) - counts
    shares = (ties - before).clamp(min=0).minimum(counts).view(len(parts), size)
    return shares[:, rank].tolist()


def _count_ties(part: Part, bound: float, floats: torch.dtype) -> int:
    tied = ((chunk.to(floats) == bound) & mask for chunk, mask in _chunks([part]))
    return sum(int(flags.sum()) for flags in tied)


def _drop_(parts: Sequence[Part], bound: float, ties: Sequence[int], floats: torch.dtype) -> None:
    """Take away what lies below `bound`, and of each tensor the first kept ones equal to it."""
    for part, share in zip(parts, ties, strict=True):
        left = share
        for chunk, mask in _chunks([part]):
            score = chunk.to(floats)
            equal = (mask & (score == bound)).nonzero()[:left] if left else None
            mask &= score >= bound
            if equal is not None:
                mask[equal] = False
                left -= len(equal)
