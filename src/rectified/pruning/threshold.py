"""The exact k-th smallest score over many tensors, without putting them side by side.

Global pruning ranks every weight of a network at once. Concatenating the scores and sorting them
costs several times the network's own size; this module reads them in place instead.

**Radix selection.** The bits of a float, read as an integer and with the lower bits of negative
numbers flipped, order as the floats do. One pass counts the leading 16 bits of all scores in
65 536 bins; the bin that holds rank k is known from the counts; the next pass counts the following
16 bits of that bin's scores only. Two passes end at one float32, four at one float64. The only
extra memory is 1/2 MiB of counts and what a chunk of 2^20 scores needs. Counts of several processes
add up, so each process may hold its own shard: 1/2 MiB travels a pass, and no score does.

Conventions: ranks start at 1; masks are `True` where an entry takes part; -0.0 equals +0.0;
float16 and bfloat16 count as float32, which holds them exactly; equal scores keep the order of the
tensors, then of the flat index, then of the processes' ranks; NaN has no rank and is refused.
`group=None` looks at this process alone; pass `torch.distributed.group.WORLD` for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rectified.errors import UserError

# 2^20 float32 are 4 MiB: a chunk and its few temporaries stay in cache from one step to the next.
CHUNK = 2**20
DIGIT_BITS = 16
BINS = 2**DIGIT_BITS

Part = tuple[Tensor, Tensor | None]


def kth_smallest(
    tensors: Iterable[Tensor] | Mapping[str, Tensor],
    k: int,
    *,
    where: Iterable[Tensor] | Mapping[str, Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> float:
    """The k-th smallest entry over all tensors.

    Args:
        tensors: floating-point tensors of any shapes; only read.
        k: rank, from 1 (the smallest) to the number of entries that take part.
        where: a boolean tensor for each of `tensors` (by name where both are mappings, and then
            only the names in `where` count); only `True` entries take part. Default: all do.
        group: processes that hold one shard each; each of them must call. Default: this one alone.

    Returns:
        The entry, exactly; the same on every process of `group`.

    Raises:
        UserError: if `k` is out of range, an entry that takes part is NaN, a tensor is not
            floating-point, or `where` is not boolean, of other shapes or of other names.

    Example:
        >>> kth_smallest([torch.tensor([3.0, -1.0]), torch.tensor([[2.0]])], 2)
        2.0
    """
    parts = _parts(tensors, where)
    total, floats = _check(parts, group)
    if not 1 <= k <= total:
        raise UserError(f"k must be in [1, {total}], got {k}")
    return _select(parts, k, floats, group)[0]


def drop_smallest(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    count: int,
    *,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Masks with exactly `count` fewer kept entries: those with the smallest scores.

    Args:
        scores: name -> score, floating-point, of the mask's shape; +inf is never dropped.
        masks: name -> bool, `True` = kept; the scores of other entries are ignored.
        count: entries to drop over all tensors (and processes), from 0 to the number of kept
            entries whose score is below +inf.
        group: processes that hold one shard each; each of them must call. Default: this one alone.

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
    parts = _parts(scores, masks)
    total, floats = _check(parts, group)
    if not 0 <= count <= total:
        raise UserError(f"count must be in [0, {total}], the kept entries, got {count}")
    if count == 0:
        return {name: mask.clone() for name, mask in masks.items()}
    bound, below = _select(parts, count, floats, group)
    if bound == float("inf"):
        raise UserError(f"count must be in [0, {below}], the scores below inf, got {count}")
    ties = _share_of_ties(parts, bound, count - below, floats, group)
    kept = {name: mask.clone(memory_format=torch.contiguous_format) for name, mask in masks.items()}
    _drop_(list(kept.values()), parts, bound, ties, floats)
    return kept


def _parts(
    tensors: Iterable[Tensor] | Mapping[str, Tensor],
    where: Iterable[Tensor] | Mapping[str, Tensor] | None,
) -> list[Part]:
    """Each tensor with its mask."""
    if isinstance(tensors, Mapping) and isinstance(where, Mapping):
        missing = where.keys() - tensors.keys()
        if missing:
            raise UserError(f"scores must name every mask, missing {', '.join(sorted(missing))}")
        tensors = [tensors[name] for name in where]
    values = _listed(tensors)
    if where is None:
        return [(value, None) for value in values]
    masks = _listed(where)
    if [value.shape for value in values] != [mask.shape for mask in masks]:
        raise UserError(
            f"masks must have the scores' shapes {_shapes(values)}, got {_shapes(masks)}"
        )
    if any(mask.dtype != torch.bool for mask in masks):
        raise UserError(f"masks must be torch.bool, got {_dtypes(masks)}")
    return list(zip(values, masks, strict=True))


def _listed(tensors: Iterable[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
    return list(tensors.values() if isinstance(tensors, Mapping) else tensors)


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))


def _check(parts: Sequence[Part], group: dist.ProcessGroup | None) -> tuple[int, torch.dtype]:
    """Refuse what has no order; count the entries that take part, and find the widest dtype.

    Every process hears of every fault, lest the others wait for one that has already stopped.
    """
    scores = [score for score, _ in parts]
    kept = sum(score.numel() if mask is None else int(mask.sum()) for score, mask in parts)
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


def _has_nan(chunk: Float[Tensor, " n"], mask: Bool[Tensor, " n"] | None) -> bool:
    # The maximum hands a NaN on, at a tenth of the price of asking every entry.
    return bool(chunk.max().isnan()) and bool(_among(chunk.isnan(), mask).any())


def _among(flags: Bool[Tensor, " n"], mask: Bool[Tensor, " n"] | None) -> Bool[Tensor, " n"]:
    return flags if mask is None else flags & mask


def _chunks(parts: Iterable[Part]) -> Iterator[Part]:
    """Flat pieces of every tensor and its mask, in order of position."""
    for score, mask in parts:
        masks = repeat(None) if mask is None else _pieces(mask)
        yield from zip(_pieces(score.detach()), masks, strict=False)


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.reshape(-1).split(CHUNK) if tensor.numel() else ()


def _total(
    counts: Int[Tensor, " n"], parts: Sequence[Part], group: dist.ProcessGroup | None
) -> Int[Tensor, " n"]:
    """Sums over the processes of `group`."""
    if group is None:
        return counts
    # The backend of an accelerator sums only what lies on one.
    summed = counts.to(parts[0][0].device if parts else "cpu")
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


def _order_preserving(
    chunk: Float[Tensor, " n"], mask: Bool[Tensor, " n"] | None
) -> Int[Tensor, " n"]:
    """Integers that order as the floats do; an entry that takes no part becomes +inf.

    At +inf it lies behind every rank that is asked for, or beside an equal one.
    """
    integers = torch.int64 if chunk.dtype == torch.float64 else torch.int32
    keys = _mirror((chunk + 0.0).view(integers))  # -0.0 + 0.0 = +0.0
    if mask is None:
        return keys
    infinity = int(torch.tensor(float("inf"), dtype=chunk.dtype).view(integers))
    # A blend of bits, since `where` on an irregular mask takes five times as long.
    return infinity ^ ((keys ^ infinity) & -mask.to(integers))


def _mirror(bits: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Flip all bits but the sign of negative numbers; its own inverse."""
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)


def _share_of_ties(
    parts: Sequence[Part],
    bound: float,
    ties: int,
    floats: torch.dtype,
    group: dist.ProcessGroup | None,
) -> int:
    """How many of the first `ties` entries equal to `bound` are left for this process to drop."""
    if group is None:
        return ties
    tied = (_among(chunk.to(floats) == bound, mask) for chunk, mask in _chunks(parts))
    by_rank = torch.zeros(dist.get_world_size(group), dtype=torch.int64)
    by_rank[dist.get_rank(group)] = sum(int(flags.sum()) for flags in tied)
    before = _total(by_rank, parts, group)[: dist.get_rank(group)].sum()
    return max(ties - int(before), 0)


def _drop_(
    masks: Sequence[Tensor], parts: Sequence[Part], bound: float, ties: int, floats: torch.dtype
) -> None:
    """Take away what lies below `bound`, and the first `ties` kept entries equal to it."""
    pieces = (piece for mask in masks for piece in _pieces(mask))
    for piece, (chunk, _) in zip(pieces, _chunks(parts), strict=True):
        score = chunk.to(floats)
        piece &= score >= bound
        if ties:
            equal = (piece & (score == bound)).nonzero()[:ties]
            piece[equal] = False
            ties -= len(equal)
