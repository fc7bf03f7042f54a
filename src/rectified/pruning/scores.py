"""Scores: how much a network would miss each of its weights.

A score looks at a `Snapshot` (a network at the end of one training) and returns one tensor for
each masked weight, of the weight's shape. Higher is kept longer, +inf is never dropped, and values
of weights that are already pruned are ignored. A score is any such function; this file has

    magnitude   |w|                                Random      uniform in [0, 1)
    Gradient    |w g|, g = dL/dw after training    lamp        w^2 / sum of the larger w^2
    SNIP        |w g| before training              Movement    sum of -w g over a training
    GraSP       w (H g) before training            ERK         ranks that set layers' densities
    SynFlow     w dR/dw without data

and `look_ahead.py` the one that needs the layers before and after each layer.

Conventions: g is the gradient of the mean loss over a few training batches, in training mode,
averaged over processes where `torch.distributed` runs. A score never touches the model it is given
(it works on a copy with pruned weights at zero) nor the global random state. Sums that long
layers make large, or deep networks make small, are taken in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rectified.errors import UserError, choose
from rectified.pruning.masks import Masks, named_weights
from rectified.training import Batch, Objective

Scores = dict[str, Tensor]

MOMENTS = ("initial", "trained")


@dataclass(frozen=True)
class Snapshot:
    """What a score may look at, at the end of one training.

    Attributes:
        model: the architecture, without wrappers; a score never changes it.
        trained: full `state_dict` after this training.
        initial: full `state_dict` at this training's start (rewound and masked).
        masks: name -> bool, `True` = kept; only these parameters are scored.
        batches: training batches; can be iterated again and again.
        objective: mean loss of a batch; needed by scores that use gradients.
    """

    model: nn.Module
    trained: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    masks: Masks
    batches: Iterable[Batch] = ()
    objective: Objective | None = None


@runtime_checkable
class Score(Protocol):
    """Higher is kept longer, +inf is never dropped; values of pruned weights are ignored."""

    def __call__(self, snapshot: Snapshot, /) -> Scores: ...


def magnitude(snapshot: Snapshot, /) -> Scores:
    """|w| after training.

    Returns:
        One tensor for each masked weight, of its shape.

    References:
        Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural
        Networks, 2015, arXiv 1506.02626.

    Example:
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> magnitude(Snapshot(nn.Linear(2, 1), weights, weights, masks))
        {'weight': tensor([[3., 4.]])}
    """
    return {name: snapshot.trained[name].abs() for name in snapshot.masks}


@dataclass
class Random:
    """Uniform in [0, 1): the control that every other score must beat.

    Args:
        generator: drawn from at each call; several processes need equal ones.

    Attributes:
        state: where the generator stands, so that a study can go on from there.

    Example:
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> score = Random(torch.Generator().manual_seed(0))
        >>> score(Snapshot(nn.Linear(2, 1), weights, weights, masks))["weight"].shape
        torch.Size([1, 2])
    """

    generator: torch.Generator

    @property
    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    @state.setter
    def state(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"].cpu())

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        # float64, since float32 draws only 2^24 values and a large network would be full of ties.
        return {
            name: torch.rand(
                mask.shape,
                generator=self.generator,
                device=self.generator.device,
                dtype=torch.float64,
            ).to(mask.device)
            for name, mask in snapshot.masks.items()
        }


@dataclass(frozen=True)
class Gradient:
    """|w * g|, the first-order change of the loss when w is removed ("global gradient").

    The absolute value is taken after averaging g over batches, as in shrinkbench, whose
    GlobalMagGrad uses one batch.

    Args:
        batches: number of training batches (the first ones) to average over.
        at: whose weights: after (`trained`) or before (`initial`) the training.

    Raises:
        UserError: if `batches` is below 1 or `at` is neither; when called, if the snapshot has no
            objective or no batch.

    References:
        Mozer, Smolensky: Skeletonization, NIPS 1988 (relevance); Blalock et al.: What is the State
        of Neural Network Pruning?, 2020, arXiv 2003.03033 (global gradient).

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):
        ...     return model(batch[0]).mean()
        >>> batches = [(torch.tensor([[1.0, 0.5]]),)]
        >>> Gradient()(Snapshot(model, weights, weights, masks, batches, objective))
        {'weight': tensor([[3., 2.]])}
    """

    batches: int = 1
    at: str = "trained"

    def __post_init__(self) -> None:
        _check_batches(self.batches)
        choose("moment", self.at, MOMENTS)

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        network = network_at(snapshot, self.at)
        weights = _weights(network, snapshot)
        slopes = _mean_over_batches(snapshot, network, self.batches, _gradient(weights))
        return {name: (weights[name].detach() * slopes[name]).abs() for name in weights}


@dataclass(frozen=True)
class SNIP(Gradient):
    """|dL/dm| = |w * g| before training: how much the loss feels a mask m on the weight at m = 1.

    The paper sums over batches and divides by the total; both leave the ranking as it is here.

    References:
        Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity,
        2018, arXiv 1810.02340, eq. 5.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> start = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):
        ...     return model(batch[0]).mean()
        >>> batches = [(torch.tensor([[1.0, 0.5]]),)]
        >>> SNIP()(Snapshot(model, start, start, masks, batches, objective))
        {'weight': tensor([[3., 2.]])}
    """

    at: str = "initial"


@dataclass(frozen=True)
class GraSP:
    """w * (H g): how much the squared gradient norm, so the speed of training, lives on w.

    H is the Hessian over the kept weights and g their gradient, both of the loss on the
    outputs divided by a temperature. The largest are kept. (The paper writes -w * (H g) and removes
    the largest: the same ranking.)

    Args:
        batches: number of training batches (the first ones) to average over.
        temperature: the model's outputs (logits) are divided by it, > 0.
        at: whose weights: before (`initial`) or after (`trained`) the training.

    Raises:
        UserError: if `batches` is below 1, `temperature` not positive or `at` neither; when called,
            if the snapshot has no objective or no batch, or the model returns no tensor.

    References:
        Wang, Zhang, Grosse: Picking Winning Tickets Before Training by Preserving Gradient Flow,
        2020, arXiv 2002.07376, eq. 8 and alg. 2.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> start = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> def objective(model, batch):  # L = w0^2 / 2, so g = w0, H = 1 and w (H g) = 9
        ...     return model(batch[0]).square().mean() / 2
        >>> batches = [(torch.tensor([[1.0, 0.0]]),)]
        >>> GraSP(temperature=1.0)(Snapshot(model, start, start, masks, batches, objective))
        {'weight': tensor([[9., -0.]])}
    """

    batches: int = 1
    temperature: float = 200.0
    at: str = "initial"

    def __post_init__(self) -> None:
        _check_batches(self.batches)
        choose("moment", self.at, MOMENTS)
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, got {self.temperature}")

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        network = network_at(snapshot, self.at)
        network.register_forward_hook(self._cool)
        weights = _weights(network, snapshot)
        slopes = _mean_over_batches(snapshot, network, self.batches, _gradient(weights))
        # Pruned weights cannot move, so the gradient flows through kept ones only.
        along = {name: slope * snapshot.masks[name] for name, slope in slopes.items()}
        product = _hessian_product(weights, along)
        bent = _mean_over_batches(snapshot, network, self.batches, product)
        return {name: weights[name].detach() * bent[name] for name in weights}

    def _cool(self, _network: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(
                f"GraSP needs a model that returns a tensor, got {type(output).__name__}"
            )
        return output / self.temperature


@dataclass(frozen=True)
class SynFlow:
    """w * dR/dw, where R is the sum of the outputs for an input of ones and all weights |w|.

    R is the total strength of all paths through a weight, so the score needs no data and no
    training. A layer's scores sum to the same R in every layer (without biases), so that no layer
    is emptied, if pruning goes in many small steps: `rounds` tells the cycle how many.

    As in the authors' code the absolute value is taken of the whole `state_dict`, buffers too, and
    norms use their running statistics. Paths multiply over layers, so all is computed in float64.

    Args:
        at: whose weights: before (`initial`) or after (`trained`) the training.

    Raises:
        UserError: if `at` is neither; when called, if the snapshot has no batch (its first tensor
            gives the input's shape) or the input is not floating-point.

    References:
        Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively
        conserving synaptic flow, 2020, arXiv 2006.05467, eq. 5 and alg. 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> up, down = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0, 4.0]])
        >>> start = {"0.weight": up, "1.weight": down}
        >>> masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in start.items()}
        >>> SynFlow()(Snapshot(model, start, start, masks, [(torch.zeros(4, 1),)]))["1.weight"]
        tensor([[3., 8.]], dtype=torch.float64)
    """

    rounds: ClassVar[int] = 100
    at: str = "initial"

    def __post_init__(self) -> None:
        choose("moment", self.at, MOMENTS)

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        example = first_batch(snapshot)[0]
        if not example.is_floating_point():
            raise UserError(f"SynFlow needs a floating-point input, got {example.dtype}")
        network = network_at(snapshot, self.at).double().eval()
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.abs_()
        weights = _weights(network, snapshot)
        ones = torch.ones_like(example[:1], dtype=torch.float64)
        slopes = _gradient(weights)(network(ones).sum())
        return {name: (weights[name].detach() * slopes[name]).abs() for name in weights}


def lamp(snapshot: Snapshot, /) -> Scores:
    """w^2 over the sum of w^2 of all kept weights of the layer that are at least as large.

    One global ranking of these gives each layer its own density. The largest weight of each layer
    has exactly 1, so a layer is emptied only when nothing but such weights is left. Of equal
    weights the first by position has the lowest score.

    References:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the Magnitude-based Pruning, 2020,
        arXiv 2010.07611, eq. 3.

    Example:
        >>> weights = {"weight": torch.tensor([[1.0, -2.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> lamp(Snapshot(nn.Linear(2, 1), weights, weights, masks))["weight"]
        tensor([[0.2000, 1.0000]], dtype=torch.float64)
    """
    return {name: _lamp(snapshot.trained[name], mask) for name, mask in snapshot.masks.items()}


def _lamp(weight: Tensor, mask: Tensor) -> Tensor:
    squares = weight.double().square()
    # Pruned weights sort before kept zeros, so that the last in order is always a kept one.
    order = squares.masked_fill(~mask, -1.0).flatten().argsort(stable=True)
    ascending = (squares * mask).flatten()[order]
    # Summed from the large end: a total minus partial sums would lose the largest weight's ratio.
    at_least = ascending.flip(0).cumsum(0).flip(0)
    ratios = torch.where(at_least > 0, ascending / at_least, 0.0)
    ratios[-1:] = 1.0
    return torch.empty_like(ratios).scatter_(0, order, ratios).view_as(weight)


@dataclass
class Movement:
    """The sum of -w * g over all updates of a training: weights that move away from zero stay.

    For plain gradient descent -w * g is the growth of w^2 / 2 by each update, over the learning
    rate. It is read just before each optimiser step, where the gradient is complete (accumulated,
    unscaled, clipped and averaged over processes) and the weight not yet updated:

        score = Movement()
        with score.watch(model):
            ...                                # train with any torch optimiser
        score(snapshot)

    Attributes:
        state: the sums so far, by name; entering `watch` starts from nothing.

    Raises:
        UserError: when called before a training was watched.

    References:
        Sanh, Wolf, Rush: Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020,
        arXiv 2005.07683, eq. 5.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> score = Movement()
        >>> with score.watch(model):
        ...     model(torch.tensor([[3.0]])).sum().backward()
        ...     optimizer.step()
        >>> score.state
        {'weight': tensor([[-6.]])}
    """

    state: Scores = field(default_factory=dict)

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Sum over the optimiser steps of `model`'s parameters while the context is open.

        Args:
            model: the network in training, wrapped or not.
        """
        self.state = {}
        names = {parameter: name for name, parameter in named_weights(model).items()}

        def before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in names and parameter.grad is not None:
                        self._add(names[parameter], parameter.detach(), parameter.grad)

        handle = register_optimizer_step_pre_hook(before_step)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        # bfloat16 would round most updates of a long training away.
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self.state[name] = self.state.get(name, 0.0) - weight * gradient

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        unseen = snapshot.masks.keys() - self.state.keys()
        if unseen:
            raise UserError(
                f"Movement must watch a training first, it saw no update of {min(unseen)!r}"
            )
        return reduce_across_processes({name: self.state[name] for name in snapshot.masks})


@dataclass(frozen=True)
class ERK:
    """A layer's weights by their rank, so that a global cut has Erdos-Renyi-kernel densities.

    ERK keeps min(1, c * S_l / N_l) of each layer l, where N_l is the number of its weights and
    S_l = n_in + n_out + k_h + k_w the sum of its shape; c is the same in all layers. That is the
    weights of rank r <= c * S_l. So S_l / r is a global score, and a cut at any density is ERK's,
    to less than one weight a layer; no density needs to be known beforehand.

    Args:
        within: the score that ranks the weights of each layer.

    References:
        Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, 2020, arXiv 1911.11134, sec. 3;
        Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, 2018, arXiv 1707.04780.

    Example:
        >>> weights = {"weight": torch.tensor([[3.0, -4.0]])}
        >>> masks = {"weight": torch.tensor([[True, True]])}
        >>> ERK()(Snapshot(nn.Linear(2, 1), weights, weights, masks))
        {'weight': tensor([[1.5000, 3.0000]], dtype=torch.float64)}
    """

    within: Score = magnitude

    def __call__(self, snapshot: Snapshot, /) -> Scores:
        scores = self.within(snapshot)
        return {name: _by_rank(scores[name], mask) for name, mask in snapshot.masks.items()}


def _by_rank(score: Tensor, mask: Tensor) -> Tensor:
    """Sum of the shape over the rank from the top, among kept weights; +inf stays."""
    order = score.masked_fill(~mask, -math.inf).flatten().argsort(stable=True)
    ranks = torch.arange(score.numel(), 0, -1, dtype=torch.float64, device=score.device)
    by_rank = torch.empty_like(ranks).scatter_(0, order, sum(score.shape) / ranks)
    return by_rank.view_as(score).masked_fill(score == math.inf, math.inf)


def reduce_across_processes(values: Scores) -> Scores:
    """The mean over all processes, where `torch.distributed` runs; else the values themselves.

    Args:
        values: name -> tensor, of the same names and shapes on every process.

    Example:
        >>> reduce_across_processes({"weight": torch.tensor([1.0])})
        {'weight': tensor([1.])}
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    means = {}
    for name, value in values.items():
        means[name] = value / dist.get_world_size()
        dist.all_reduce(means[name])
    return means


def _check_batches(batches: int) -> None:
    if batches < 1:
        raise UserError(f"batches must be at least 1, got {batches}")


@torch.no_grad()
def network_at(snapshot: Snapshot, at: str) -> nn.Module:
    """A private copy in training mode with the weights of one moment, pruned ones at zero."""
    network = copy.deepcopy(snapshot.model).train()
    network.load_state_dict(snapshot.trained if at == "trained" else snapshot.initial)
    network.requires_grad_(False)
    for name, mask in snapshot.masks.items():
        network.get_parameter(name).mul_(mask).requires_grad_()
    return network


def _weights(network: nn.Module, snapshot: Snapshot) -> dict[str, Tensor]:
    return {name: network.get_parameter(name) for name in snapshot.masks}


def first_batch(snapshot: Snapshot) -> Batch:
    """The first of a snapshot's training batches."""
    for batch in snapshot.batches:
        return batch
    raise UserError("batches must hold at least one batch, got none")


LossToTensors = Callable[[Float[Tensor, ""]], Scores]


def _gradient(weights: Mapping[str, Tensor], *, create_graph: bool = False) -> LossToTensors:
    """Loss -> its gradient by name; zero where the loss does not depend on a weight."""

    def gradient(loss: Float[Tensor, ""]) -> Scores:
        slopes = torch.autograd.grad(
            loss, list(weights.values()), create_graph=create_graph, materialize_grads=True
        )
        return dict(zip(weights, slopes, strict=True))

    return gradient


def _hessian_product(weights: Mapping[str, Tensor], along: Scores) -> LossToTensors:
    """Loss -> its Hessian times a direction, by differentiating the slope along it."""

    def product(loss: Float[Tensor, ""]) -> Scores:
        slopes = _gradient(weights, create_graph=True)(loss)
        slope_along = torch.stack([(slopes[name] * along[name]).sum() for name in weights])
        return _gradient(weights)(slope_along.sum())

    return product


def _mean_over_batches(
    snapshot: Snapshot, network: nn.Module, batches: int, derivative: LossToTensors
) -> Scores:
    """The mean of a derivative of the loss over the first batches and all processes."""
    if snapshot.objective is None:
        raise UserError("objective must be given for a score that uses gradients, got None")
    devices = {value.device for value in network.parameters() if value.is_cuda}
    sums: Scores = {}
    used = 0
    # Dropout, or an objective with noise, draws from the global state: it is put back.
    with torch.random.fork_rng(devices):
        for batch in islice(snapshot.batches, batches):
            used += 1
            for name, value in derivative(snapshot.objective(network, batch)).items():
                sums[name] = sums[name] + value if name in sums else value
    if not used:
        raise UserError("batches must hold at least one batch, got none")
    return reduce_across_processes({name: value / used for name, value in sums.items()})
