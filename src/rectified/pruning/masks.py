"""Masks: which weights of a network are kept.

A mask is a boolean tensor beside a weight, `True` = kept; `Masks` maps a parameter's name to its
mask. The network itself stays a plain module with plain parameters, so that `copy.deepcopy`,
`state_dict`, `torch.compile`, distributed training and saving work at every moment. Pruning is
three small steps:

    masks = full_masks(model)                                # everything is kept
    masks = prune(masks, scores, 0.2, of=masks)              # drop exactly round(0.2 * kept)
    keep = hold(model, masks)                                # call it after every optimiser step

Counts are exact: `round(fraction * kept)` weights go, ties by position. A fraction may refer to
other masks than the ones it is taken from (`of=`): the second stage of a pruning cycle drops its
share of the weights that the *cycle* began with, so that every arm ends at the same density.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.graphs.copies import bare
from rectified.graphs.weights import apply_, multiply_, named_weights, weights_and_masks
from rectified.pruning.threshold import drop_smallest

Masks = dict[str, Tensor]

_NOT_PRUNED = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def prunable(model: nn.Module, *, norms: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that pruning may touch: weights of linear and convolution layers.

    These are the parameters with two or more axes whose name says `weight`, except embeddings
    and norms; biases, class tokens and position embeddings are left alone.

    Args:
        model: any network, wrapped or not.
        norms: also the scales of batch norms (one axis); the AP reference counts them.

    Raises:
        UserError: if there is nothing to prune.

    Example:
        >>> list(prunable(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
        ['0.weight', '2.weight']
    """
    owners = dict(bare(model).named_modules())

    def is_prunable(path: str, parameter: Tensor) -> bool:
        module, _, name = path.rpartition(".")
        if norms and isinstance(owners[module], nn.modules.batchnorm._BatchNorm):
            return name == "weight"
        is_norm_or_table = isinstance(owners[module], _NOT_PRUNED)
        return parameter.ndim >= 2 and "weight" in name and not is_norm_or_table

    weights = {n: p for n, p in named_weights(model).items() if is_prunable(n, p)}
    if not weights:
        raise UserError(
            f"{type(bare(model)).__name__} has no weights to prune: "
            "pass a network with Linear or convolution layers"
        )
    return weights


def full_masks(model: nn.Module, *, norms: bool = False) -> Masks:
    """Masks that keep every prunable weight of `model`."""
    weights = prunable(model, norms=norms)
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def kept(masks: Mapping[str, Tensor]) -> int:
    """The number of kept weights.

    Example:
        >>> kept({"a": torch.tensor([True, False]), "b": torch.tensor([True])})
        2
    """
    return sum(int(mask.sum()) for mask in masks.values())


def total(masks: Mapping[str, Tensor]) -> int:
    """The number of weights, kept or not."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Mapping[str, Tensor]) -> float:
    """The share of weights that is kept, in [0, 1].

    Example:
        >>> density({"a": torch.tensor([True, False, False, False])})
        0.25
    """
    return kept(masks) / total(masks)


def prune(
    masks: Masks,
    scores: Mapping[str, Tensor],
    fraction: float,
    *,
    of: Masks | None = None,
    scope: str = "global",
    floor: int = 1,
) -> Masks:
    """Drop exactly `round(fraction * kept(of))` of the kept weights: those of lowest score.

    Args:
        masks: which weights are kept now.
        scores: one tensor per mask, of its shape: higher is kept longer, `inf` is never dropped.
        fraction: share of the weights kept in `of`, in [0, 1).
        of: the masks that the fraction refers to; `masks` by default.
        scope: `"global"` ranks all layers together; `"layer"` drops the share in every layer
            (largest remainders, so that the total is exact too); `"N:M"`, such as `"2:4"`, drops
            globally, but keeps the N best of every M neighbouring inputs, the pattern of
            semi-structured kernels (layers without whole groups stay as they are).
        floor: weights that every layer keeps at least, its best ones, against layer collapse.

    Returns:
        New masks; the given ones are unchanged. Ties are broken by position.

    Raises:
        UserError: if the fraction is not in [0, 1), the scope is unknown, a score is missing, has
            another shape or is NaN at a kept weight, `of` has other names, or fewer weights may
            be dropped than the fraction asks for.

    Example:
        >>> masks = {"w": torch.ones(5, dtype=torch.bool)}
        >>> prune(masks, {"w": torch.tensor([3.0, 1.0, 5.0, 1.0, 2.0])}, 0.4)["w"]
        tensor([ True, False,  True, False,  True])
    """
    of = masks if of is None else of
    if not 0 <= fraction < 1:
        raise UserError(f"fraction must be in [0, 1), got {fraction}")
    if of.keys() != masks.keys():
        raise UserError(f"of must have the names of masks, got {sorted(of.keys() ^ masks.keys())}")
    if scope == "layer":
        return _prune_each_layer(masks, scores, fraction, of, floor)
    return _drop(masks, scores, round(fraction * kept(of)), scope, floor)


def droppable(
    masks: Masks, scores: Mapping[str, Tensor], *, scope: str = "global", floor: int = 1
) -> int:
    """The number of kept weights that `prune` may drop: those that nothing protects.

    Raises:
        UserError: as `prune`, for the scores and the scope.

    Example:
        >>> masks = {"w": torch.ones(3, dtype=torch.bool)}
        >>> droppable(masks, {"w": torch.tensor([1.0, 2.0, math.inf])}, floor=1)
        2
    """
    guarded = _guard(masks, scores, scope, floor)
    return sum(int((masks[name] & (guarded[name] < math.inf)).sum()) for name in masks)


def _check(masks: Masks, scores: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in scores:
            raise UserError(f"scores must have an entry for every mask, {name!r} is missing")
        if scores[name].shape != mask.shape:
            raise UserError(
                f"score of {name!r} must have its mask's shape {tuple(mask.shape)}, "
                f"got {tuple(scores[name].shape)}"
            )
        if bool((scores[name].isnan() & mask).any()):
            raise UserError(f"scores of kept weights must be numbers, got nan in {name!r}")


def _prune_each_layer(
    masks: Masks, scores: Mapping[str, Tensor], fraction: float, of: Masks, floor: int
) -> Masks:
    room = [droppable({name: mask}, scores, floor=floor) for name, mask in masks.items()]
    shares = [fraction * int(of[name].sum()) for name in masks]
    counts = _whole(shares, room, round(fraction * kept(of)))
    pruned: Masks = {}
    for (name, mask), count in zip(masks.items(), counts, strict=True):
        pruned |= _drop({name: mask}, scores, count, "layer", floor)
    return pruned


def _whole(shares: Sequence[float], room: Sequence[int], count: int) -> list[int]:
    """Whole numbers near `shares`, none above its `room`, that sum to `count` (largest remainder).

    Raises:
        UserError: if there is not room enough.
    """
    if count > sum(room):
        raise UserError(f"fraction asks for {count} weights, the layers can spare {sum(room)}")
    counts = [min(int(share), space) for share, space in zip(shares, room, strict=True)]
    while missing := count - sum(counts):
        open_layers = [i for i in range(len(counts)) if counts[i] < room[i]]
        open_layers.sort(key=lambda i: counts[i] - shares[i])
        for i in open_layers[:missing]:
            counts[i] += 1
    return counts


def _drop(masks: Masks, scores: Mapping[str, Tensor], count: int, scope: str, floor: int) -> Masks:
    return drop_smallest(_guard(masks, scores, scope, floor), masks, count)


def _guard(masks: Masks, scores: Mapping[str, Tensor], scope: str, floor: int) -> dict[str, Tensor]:
    """Scores in which the weights that scope and floor protect are infinite."""
    _check(masks, scores)
    guarded = dict(scores)
    if scope not in ("global", "layer"):
        keep, group = _pattern(scope)
        for name, mask in masks.items():
            guarded[name] = _protect_pattern(scores[name], mask, keep, group)
    return {name: _protect_best(guarded[name], mask, floor) for name, mask in masks.items()}


def _protect_best(score: Tensor, mask: Tensor, floor: int) -> Tensor:
    """The `floor` best weights of a layer get infinite scores; of equal ones the last."""
    count = min(floor, int(mask.sum()))
    if count <= 0:
        return score
    flat = score.masked_fill(~mask, -math.inf).flatten()
    bound = flat.topk(count).values[-1]
    best = flat > bound
    ties = ((flat == bound) & mask.flatten()).nonzero().squeeze(1)
    best[ties[int(best.sum()) - count :]] = True
    return score.masked_fill(best.view_as(score), math.inf)


def _pattern(scope: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", scope)
    if match and 0 < int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise UserError(f"unknown scope {scope!r}; choose from global, layer, 2:4 (or another N:M)")


def _protect_pattern(score: Tensor, mask: Tensor, keep: int, group: int) -> Tensor:
    """Only weights outside the `keep` best of their `group` neighbouring inputs stay finite."""
    if score.ndim < 2 or score.shape[1] % group:
        return torch.full_like(score, math.inf)  # no whole groups: the layer stays as it is
    inputs_last = score.masked_fill(~mask, -math.inf).movedim(1, -1)
    grouped = inputs_last.reshape(-1, group)
    best = grouped.argsort(dim=1, stable=True)[:, -keep:]  # of equal ones the last
    guarded = grouped.scatter(1, best, math.inf).view(inputs_last.shape).movedim(-1, 1)
    return torch.where(mask, guarded, score)


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[..., None]:
    """A hook that keeps pruned weights at exactly zero.

    Momentum, Adam's moments and weight decay all bring pruned weights back; multiplying by the
    masks after every optimiser step undoes that for every optimiser, in one fused operation.

    Args:
        model: the network in training, wrapped or not; its parameters are bound at the first
            step, when the training loop has moved it to its device.
        masks: which weights are kept.

    Returns:
        A function to pass to `rectified.training.fit` as a hook, or to call after
        `optimizer.step()` in your own loop. Creating it already sets pruned weights to zero.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> keep = hold(model, {"weight": torch.tensor([[True, False]])})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step(); keep()
        >>> (model.weight == 0).tolist()
        [[False, True]]
    """
    apply_(model, masks)
    pairs = cache(lambda: weights_and_masks(model, masks))

    def hook(_step: Any = None) -> None:
        multiply_(pairs())

    return hook
