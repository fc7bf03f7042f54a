"""Pruning where several processes train one network.

**Replicas** (data parallel): every process holds all weights, so each could decide alone, and one
rounding apart would leave two different networks. So `agree` lets rank 0 decide: its masks go to
all, an eighth of a byte per weight, and a digest is compared afterwards.

**Shards** (FSDP): every process holds a slice of every weight. `shards` gives the local slices as
plain tensors, masks are made for these, and `prune_shards` ranks all slices together without
gathering any: only histograms travel (`rectified.pruning.threshold`). Scores must be elementwise
in the slices (magnitude, |w g|, movement); those that look at whole layers are not.

    fully_shard(model)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in shards(model).items()}
    scores = {name: w.abs() for name, w in shards(model).items()}
    masks = prune_shards(masks, scores, 0.9, group=dist.group.WORLD)
    hold_shards(model, masks)      # now, and after every optimiser step

The masks are, slice by slice, those that one process would have found, ties included.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.pruning.masks import Masks, prunable
from rectified.pruning.threshold import drop_smallest


def agree(masks: Masks, group: dist.ProcessGroup | None) -> Masks:
    """Rank 0's masks, on every process of `group`.

    Args:
        masks: this process's; as many entries of the same shapes everywhere.
        group: who trains one network together; each must call. None: this process alone.

    Raises:
        RuntimeError: if the processes end with different masks all the same.

    Example:
        >>> agree({"w": torch.tensor([True])}, None)
        {'w': tensor([True])}
    """
    if group is None:
        return masks
    first = dist.get_global_rank(group, 0)
    agreed: Masks = {}
    for name, mask in masks.items():
        words = mask.to(torch.uint8).contiguous()
        dist.broadcast(words, src=first, group=group)
        agreed[name] = words.bool()
    digests: list[object] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest(agreed), group=group)
    if len(set(digests)) > 1:
        raise RuntimeError(f"processes disagree on the masks: {digests}")
    return agreed


def digest(masks: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and entries.

    Example:
        >>> one, other = torch.tensor([True, False]), torch.tensor([False, True])
        >>> digest({"w": one}) == digest({"w": other})
        False
    """
    hashed = hashlib.sha256()
    for name, mask in masks.items():
        hashed.update(f"{name} {tuple(mask.shape)}".encode())
        hashed.update(mask.to("cpu", torch.uint8).contiguous().numpy().tobytes())
    return hashed.hexdigest()


def shards(model: nn.Module) -> dict[str, Tensor]:
    """The slices of the prunable weights that this process holds, as plain tensors that share
    their memory; a weight that is not sharded is its own slice.

    Args:
        model: a network, sharded by `torch.distributed.fsdp.fully_shard` or not at all.

    Raises:
        UserError: if a weight is sharded along another axis than its first, or there is nothing to
            prune.
    """
    return {name: _slice(name, weight.detach()) for name, weight in prunable(model).items()}


def _slice(name: str, weight: Tensor) -> Tensor:
    sharded: Any = weight  # a DTensor has placements
    placements = getattr(sharded, "placements", ())
    if any(not (place.is_shard(0) or place.is_replicate()) for place in placements):
        raise UserError(f"{name!r} must be sharded along its first axis, got {placements}")
    return sharded.to_local() if placements else weight


def prune_shards(
    masks: Masks,
    scores: Mapping[str, Tensor],
    fraction: float,
    *,
    group: dist.ProcessGroup | None,
    of: Masks | None = None,
    floor: int = 1,
) -> Masks:
    """As `rectified.pruning.prune` with global scope, over the slices of all processes.

    Args:
        masks: of this process's slices.
        scores: of the same shapes; higher is kept longer, `inf` is never dropped.
        fraction: share of all weights kept in `of`, in [0, 1).
        group: who holds the other slices; each must call. None: this process has all.
        of: the masks that the fraction refers to; `masks` by default.
        floor: weights that every layer keeps at least, over all processes.

    Raises:
        UserError: if the fraction is not in [0, 1), or as `drop_smallest`.

    Example:
        >>> masks = {"w": torch.ones(4, dtype=torch.bool)}
        >>> prune_shards(masks, {"w": torch.tensor([3.0, 1.0, 4.0, 2.0])}, 0.5, group=None)
        {'w': tensor([ True, False,  True, False])}
    """
    if not 0 <= fraction < 1:
        raise UserError(f"fraction must be in [0, 1), got {fraction}")
    kept = sum(int(mask.sum()) for mask in (masks if of is None else of).values())
    count = round(fraction * int(_summed(torch.tensor(kept), masks, group)))
    return drop_smallest(_protect_best(masks, scores, floor, group), masks, count, group=group)


def _summed(value: Tensor, masks: Masks, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return value
    value = value.to(next(iter(masks.values())).device)
    dist.all_reduce(value, group=group)
    return value.cpu()


def _protect_best(
    masks: Masks, scores: Mapping[str, Tensor], floor: int, group: dist.ProcessGroup | None
) -> dict[str, Tensor]:
    """Infinite scores for the `floor` best of each layer; of equal ones the last."""
    if floor <= 0:
        return dict(scores)
    kept = {n: scores[n].masked_fill(~mask, -math.inf).flatten() for n, mask in masks.items()}
    best = torch.stack([_best(score, floor) for score in kept.values()])
    everywhere = [best]
    if group is not None:
        everywhere = [torch.empty_like(best) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everywhere, best, group=group)
    rank = 0 if group is None else dist.get_rank(group)
    guarded = {}
    for place, (name, score) in enumerate(kept.items()):
        highest = torch.stack([one[place] for one in everywhere])
        bound = highest.flatten().topk(floor).values[-1]
        # ties: the processes behind this one come first, being last in position
        behind = int((highest[rank + 1 :] == bound).sum())
        ties = floor - int((highest > bound).sum()) - behind
        equal = ((score == bound) & (score > -math.inf)).nonzero().squeeze(1)
        chosen = score > bound
        chosen[equal[max(0, len(equal) - max(0, ties)) :]] = True
        guarded[name] = scores[name].masked_fill(chosen.view_as(scores[name]), math.inf)
    return guarded


def _best(score: Tensor, count: int) -> Tensor:
    """The `count` largest, filled up with -inf."""
    highest = score.topk(min(count, score.numel())).values
    return torch.nn.functional.pad(highest, (0, count - len(highest)), value=-math.inf)


@torch.no_grad()
def hold_shards(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of this process's slices to zero, in place.

    Args:
        model: the network.
        masks: of its slices.

    Raises:
        UserError: if a mask is not of a slice's shape.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> hold_shards(model, {"weight": torch.tensor([[True, False]])})
        >>> (model.weight == 0).tolist()
        [[False, True]]
    """
    slices = shards(model)
    for name, mask in masks.items():
        if name not in slices or slices[name].shape != mask.shape:
            has = tuple(slices[name].shape) if name in slices else "no such parameter"
            raise UserError(f"mask {name!r} has shape {tuple(mask.shape)}, the slice has {has}")
        slices[name].mul_(mask)
