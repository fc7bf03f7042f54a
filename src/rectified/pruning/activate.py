"""Activate-while-Pruning (AP): spend a part of the pruning on waking dead neurons.

A ReLU neuron that is zero on most data is held shut by negative incoming weights, and gets so
little gradient that these weights hardly move in training. So among the weights that survived the
pruning method, AP drops those that are negative after training and moved least since the start of
the cycle:

    candidates   kept, w_trained < 0, in the layers of the scope
    score        |w_trained - w_start|, lowest dropped first, all layers ranked together

The argument needs inputs that are >= 0 and a ReLU behind the layer: `activation_scope` finds those
layers. It does not hold where a norm stands between weight and ReLU (the mean shift is removed
again); `norms_before_relu` names these layers, so that a user is warned.

AP is a second stage of the pruning cycle, never a method of its own: lite drops its share right
after the pruning method, pro trains in between. `arm` builds both and their controls.

References:
    Liu, Ghosh, (Tan,) Motani: AP: Selective Activation for De-sparsifying Pruned Networks, TMLR
    2023, arXiv 2212.06145; the rule is that of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rectified import seeds
from rectified.errors import UserError, choose
from rectified.graphs.copies import bare
from rectified.graphs.sites import trace
from rectified.pruning.cycle import Stage
from rectified.pruning.masks import Masks, kept, prunable
from rectified.pruning.schedule import Schedule
from rectified.pruning.scores import Random, Score, Snapshot, Within, magnitude
from rectified.pruning.scores.score import ScoreFunction, Scores

Sign = Literal["negative", "positive", "any"]


@dataclass(frozen=True)
class Activate(Score):
    """The selective-activation score: |w_trained - w_start| of the candidates, inf elsewhere.

    Args:
        scope: names of the weights it may drop; all by default, as in the reference.
        sign: `negative` is AP; `any` and `positive` are its controls, which drop the weights that
            moved least without looking for those that hold neurons shut.

    Example:
        >>> w = {"w": torch.tensor([-1.0, -2.0, 3.0])}
        >>> start = {"w": torch.tensor([-1.5, -2.1, 3.0])}
        >>> masks = {"w": torch.ones(3, dtype=torch.bool)}
        >>> Activate()(Snapshot(nn.Identity(), w, start, masks))["w"]
        tensor([0.5000, 0.1000,    inf])
    """

    scope: Collection[str] | None = None
    sign: Sign = "negative"

    def __post_init__(self) -> None:
        choose("sign", self.sign, ("negative", "positive", "any"))

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        return {
            name: self._score(name, mask, snapshot.trained[name], snapshot.initial[name])
            for name, mask in snapshot.masks.items()
        }

    def _score(self, name: str, mask: Tensor, trained: Tensor, start: Tensor) -> Tensor:
        if self.scope is not None and name not in self.scope:
            return torch.full_like(trained, math.inf)
        candidates = mask
        if self.sign != "any":
            candidates = mask & (trained < 0 if self.sign == "negative" else trained > 0)
        return (trained - start).abs().masked_fill(~candidates, math.inf)


def activation_scope(model: nn.Module, example: Any, masks: Masks) -> tuple[str, ...]:
    """The layers where AP's argument holds: inputs >= 0, and a ReLU (or its like) behind.

    Args:
        model: the network.
        example: a batch of real inputs, since signs are looked up in what a layer reads.
        masks: only layers in it are considered.

    Returns:
        Names of weights, in the masks' order.

    Raises:
        UserError: if the network calls no activation function, or no layer qualifies.

    Example:
        >>> layers = [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)]
        >>> model = nn.Sequential(*layers)
        >>> masks = {f"{i}.weight": torch.ones(3, 2, dtype=torch.bool) for i in (0, 2, 4)}
        >>> activation_scope(model, torch.tensor([[1.0, -1.0]]), masks)
        ('2.weight',)
    """
    traced = trace(model, example, prunable(model))
    name_of_model = type(bare(model)).__name__
    if not traced.sites:
        raise UserError(
            f"{name_of_model} calls no ReLU (or GELU, SiLU): AP wakes dead neurons of such "
            "networks; prune with ap 'off'"
        )
    layers = traced.layers
    scope = tuple(
        name
        for name in masks
        if name in layers and layers[name].reads_nonnegative and layers[name].sites
    )
    if not scope:
        raise UserError(
            f"no layer of {name_of_model} reads inputs >= 0 and feeds a ReLU, which AP's "
            "rule needs; take ap_scope 'all' for the reference's behaviour, or ap 'off'"
        )
    return scope


def norms_before_relu(model: nn.Module, example: Any) -> tuple[str, ...]:
    """The layers with a norm between them and the ReLU they feed; AP can raise the rate there.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
        >>> norms_before_relu(model, torch.ones(2, 2))
        ('0.weight',)
    """
    traced = trace(model, example, prunable(model))
    return tuple(
        name
        for name, layer in traced.layers.items()
        if any(traced.sites[site].norm for site in layer.sites)
    )


ARMS = ("off", "lite", "pro", "random", "any_sign", "off_pro")


def arm(
    name: str,
    score: ScoreFunction,
    rate: float | Schedule,
    ap_rate: float = 0.02,
    *,
    layers: Collection[str] | None = None,
    scope: str = "global",
    floor: int = 1,
    generator: torch.Generator | None = None,
) -> list[Stage]:
    """The stages of a pruning cycle with AP, without it, or of one of the controls.

    All arms end a cycle at the same density: where AP drops a share q, they do so too.

    Args:
        name: `off` the score alone; `lite` AP right after it; `pro` a training in between;
            `random` drops q at random instead, `any_sign` the q that moved least whatever their
            sign (both as `lite`); `off_pro` the score alone, with the same double training as pro.
        score: the pruning method.
        rate: p, share of the kept weights that a cycle drops in all, or a schedule of it.
        ap_rate: q, the part of it that AP takes; q / p stays the same over a schedule.
        layers: weights that AP and its controls may drop, from `activation_scope`; None for all.
        scope: of the score, as in `prune`.
        floor: weights that every layer keeps at least.
        generator: for `random`.

    Raises:
        UserError: if the name is unknown, or q is not in (0, p).

    Example:
        >>> from rectified.pruning import magnitude
        >>> [round(stage.fraction, 2) for stage in arm("lite", magnitude, 0.2, 0.02)]
        [0.18, 0.02]
    """
    choose("ap", name, ARMS)
    plain = Stage(score, rate, scope=scope, floor=floor)
    if name == "off":
        return [plain]
    first, second = _split(rate, ap_rate)
    seconds: dict[str, ScoreFunction] = {
        "lite": Activate(layers),
        "pro": Activate(layers),
        "any_sign": Activate(layers, sign="any"),
        "random": Within(Random(generator or seeds.generator(0)), layers),
        "off_pro": score,
    }
    # AP and its controls rank all layers together; the score alone goes on as it began
    pooled = "global" if plain.scope == "layer" and name != "off_pro" else plain.scope
    return [
        replace(plain, fraction=first, retrain=name in ("pro", "off_pro")),
        Stage(seconds[name], second, fallback=score, scope=pooled, floor=floor),
    ]


def _split(rate: float | Schedule, ap_rate: float) -> tuple[float | Schedule, float | Schedule]:
    """p - q and q."""
    largest = rate(1) if callable(rate) else rate
    if not 0 < ap_rate < largest:
        raise UserError(f"ap_rate must be in (0, rate), rate being {largest:g}; got {ap_rate:g}")
    if not callable(rate):
        return rate - ap_rate, ap_rate
    part = ap_rate / largest
    return (lambda cycle: (1 - part) * rate(cycle)), (lambda cycle: part * rate(cycle))


def reference_arm(rate: float, ap_rate: float) -> list[Stage]:
    """Magnitude with AP-lite in the arithmetic of the authors' code, to compare with it.

    The method drops what lies strictly below the (p - q) percentile of |w|, interpolated; AP drops
    every candidate up to and including the one at position int(q * kept), which is one more than
    int(q * kept), and all that tie with it. Densities are therefore a little lower than asked for.

    References:
        `prune_by_percentile_lt` and `prune_by_percentile_ap` of the authors' `resnet_20.py`.
    """
    return [
        Stage(magnitude, rate - ap_rate, rule=_below_percentile),
        Stage(Activate(), ap_rate, rule=_up_to_position),
    ]


def _below_percentile(masks: Masks, scores: Scores, fraction: float, of: Masks) -> Masks:
    alive = torch.cat([scores[name][mask] for name, mask in of.items()])
    threshold = float(np.percentile(alive.double().cpu().numpy(), 100 * fraction))
    return {name: mask & (scores[name].double() >= threshold) for name, mask in masks.items()}


def _up_to_position(masks: Masks, scores: Scores, fraction: float, of: Masks) -> Masks:
    candidates = torch.cat([scores[name][mask] for name, mask in masks.items()])
    ordered = candidates[candidates < math.inf].sort().values
    position = int(round(fraction * kept(of), 9))
    if position >= len(ordered):
        raise UserError(
            f"AP wants {position + 1} candidates, only {len(ordered)} are left (the reference "
            "stops here with an IndexError); lower ap_rate or take fidelity 'exact'"
        )
    return {name: mask & (scores[name] > ordered[position]) for name, mask in masks.items()}
