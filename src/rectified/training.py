"""Training: one loop for every objective, on whatever hardware there is.

`fit` takes a network, an objective (the mean loss of a batch), batches and settings. The loop runs
on Accelerate, so that the same call trains on a CPU, on a GPU or, started by `torchrun`, on
several: every process takes its slice of each batch, and the gradients are those of the whole
batch. What happens after an update (masks, moving averages, measurements) is a hook.

Conventions: an epoch's batches depend on the seed and the epoch's number alone, and so do dropout's
draws; training can therefore stop and start again at any epoch, and gives the same result for the
same seed. Nothing outside is touched: the global random state is put back after every epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError, choose

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[Tensor, ...]  # first axis: batch

_SAVE_EVERY_SECONDS = 20.0  # what a kill may cost; saving a small network takes milliseconds


@runtime_checkable
class Objective(Protocol):
    """The mean loss of one batch."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Float[Tensor, ""]: ...


@runtime_checkable
class Batches(Protocol):
    """Training data: `len` batches an epoch, the same ones for the same epoch's number."""

    def __len__(self) -> int: ...

    def epoch(self, number: int, /) -> Iterator[Batch]: ...


@runtime_checkable
class Store(Protocol):
    """Where an unfinished training is kept: nested dicts of tensors and plain values."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Step:
    """What a hook sees after an update.

    Attributes:
        number: of this update, from 1, over the whole training.
        total: updates in the whole training.
        model: the network in training, without wrappers.
        loss: of this batch, detached.
        optimizer: the one that made the update.
    """

    number: int
    total: int
    model: nn.Module
    loss: Tensor
    optimizer: torch.optim.Optimizer


Hook = Callable[[Step], None]


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        epochs: passes over the data.
        optimizer: sgd (momentum, optionally Nesterov), adam or adamw.
        learning_rate: at its peak.
        momentum: of sgd.
        nesterov: Nesterov's momentum, for sgd.
        weight_decay: L2 penalty (sgd, adam) or decoupled decay (adamw).
        schedule: `steps` divides the rate by ten at each of `drops`; `cosine` and `linear` bring
            it to zero; `constant` leaves it.
        warmup: share of training over which the rate rises from zero.
        drops: shares of training, in (0, 1), at which `steps` drops the rate.
        clip: largest gradient norm; 0 does not clip.
        precision: `bf16` computes in bfloat16 where it is safe (autocast).
        channels_last: memory format of images, faster for convolutions.
        ema: decay of a moving average of the weights, in [0, 1); 0 for none.
        compile: train through `torch.compile`.
        seed: of everything that is drawn.
        device: auto, cpu or cuda.
    """

    epochs: int = 8
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine", "linear", "constant"] = "steps"
    warmup: float = 0.05
    drops: tuple[float, ...] = (0.5, 0.75)
    clip: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    ema: float = 0.0
    compile: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        choose("schedule", self.schedule, ("steps", "cosine", "linear", "constant"))
        choose("precision", self.precision, ("float32", "bf16"))
        rules = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "learning_rate": (0 < self.learning_rate < math.inf, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "drops": (all(0 < drop < 1 for drop in self.drops), "in (0, 1)"),
            "clip": (self.clip >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} must be {rule}, got {getattr(self, name)}")


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if cuda is asked for and there is none.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    choose("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda is not available here; write --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@lru_cache(maxsize=1)
def accelerator(device: str) -> Accelerator:
    """The process-wide Accelerate object for `auto`, `cpu` or `cuda`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # the first device of a process would be the one of all later calls; a group of processes stays
    alone = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(cpu=choose_device(device).type == "cpu")


def everyone(device: str) -> torch.distributed.ProcessGroup | None:
    """All processes that `fit` shares its batches over; None for one alone.

    Example:
        >>> everyone("cpu") is None
        True
    """
    return torch.distributed.group.WORLD if accelerator(device).num_processes > 1 else None


def learning_rate_factor(config: FitConfig, progress: float) -> float:
    """The rate's factor at `progress` in [0, 1) of the training.

    Example:
        >>> config = FitConfig(schedule="steps", warmup=0.1, drops=(0.5, 0.75))
        >>> [round(learning_rate_factor(config, p), 3) for p in (0.05, 0.3, 0.6, 0.8)]
        [0.5, 1.0, 0.1, 0.01]
    """
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.schedule == "steps":
        return 0.1 ** sum(progress >= drop for drop in config.drops)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest if config.schedule == "linear" else 1.0


def make_optimizer(
    model: nn.Module, config: FitConfig, *, rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over all parameters that want a gradient.

    Args:
        model: the network, where it is trained.
        config: which optimiser, and how it is set.
        rate: a number on the GPU that takes the place of the rate: a graph can hold the optimiser.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_gpu = any(parameter.device.type == "cuda" for parameter in parameters)
    first: float | Tensor = config.learning_rate
    if rate is not None:
        first = rate
    elif on_gpu:  # float32, as the fused kernels read it
        first = torch.full((), config.learning_rate, device=parameters[0].device)
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            first,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
            # on a CPU the fused one gains nothing, and rounds otherwise
            foreach=not on_gpu,
            fused=on_gpu,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, first, weight_decay=decay, fused=True, capturable=rate is not None)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict` of this network's optimiser, which may come from another device.

    How the optimiser works (its rate, its kernels) is what it was made with; what it remembers lies
    as the parameters do in memory, which fused kernels need.
    """
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(deepcopy(state))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
        for parameter in group["params"]:
            memory = optimizer.state[parameter]
            for name, value in memory.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    memory[name] = torch.empty_like(parameter).copy_(value)
                elif isinstance(value, Tensor):
                    memory[name] = value.to(parameter.device)


def check_loss(mean: float, epoch: int, config: FitConfig) -> None:
    """See that a training goes well.

    Raises:
        UserError: if the mean loss of an epoch is not finite.
    """
    if not math.isfinite(mean):
        raise UserError(
            f"the loss is {mean} in epoch {epoch + 1}: lower learning_rate "
            f"(it is {config.learning_rate:g}), or look for bad values in data and weights"
        )


class EMA:
    """Exponential moving average of a network's parameters; its buffers are copied.

    A hook: `fit` keeps one when `config.ema > 0` and leaves the network with the averaged weights.

    Args:
        model: the network to follow.
        decay: in [0, 1). Early on the smaller (1 + n) / (10 + n) counts, so that the average
            forgets the initial weights.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> average = EMA(model, 0.9)
        >>> average.update(model); average.updates
        1
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._followed: tuple[nn.Module, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = self._live(model)
        moving = [name for name, value in live.items() if value.is_floating_point()]
        averages, values = [self.state[n] for n in moving], [live[n] for n in moving]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for name, value in live.items():
            if not value.is_floating_point():
                self.state[name].copy_(value)

    def _live(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a network's state, looked up once: that costs as much as a small step."""
        if self._followed is None or self._followed[0] is not model:
            self._followed = (model, model.state_dict(keep_vars=True))
        return self._followed[1]

    def __call__(self, step: Step) -> None:
        self.update(step.model)


@dataclass
class TrainingState:
    """Where a training stands, for the next `fit` to go on from.

    Attributes:
        optimizer: the optimiser's `state_dict`, or None for a fresh one.
    """

    optimizer: dict[str, Any] | None = None


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    config: FitConfig,
    *,
    hooks: Sequence[Hook] = (),
    start: int = 0,
    stop: int | None = None,
    state: TrainingState | None = None,
    store: Store | None = None,
    progress: str = "",
) -> list[float]:
    """Train `model` in place from epoch `start` to `stop`.

    Args:
        model: any network; it is left on the training device, in training mode.
        objective: mean loss of one batch.
        batches: training data, the same for the same epoch.
        config: how to train; a moving average begins anew with every call.
        hooks: called after every update, in order; before the moving average.
        start: the first epoch; the schedule and the data's order begin there.
        stop: the epoch to stop before; `config.epochs` by default.
        state: optimiser state to begin with; holds that of the end afterwards.
        store: keeps an unfinished training; what it holds is gone on from.
        progress: words before the progress bar; none is shown without.

    Returns:
        The mean loss of every epoch.

    Raises:
        UserError: if the loss is not finite: the rate is too high, or the data or weights are bad.
    """
    process = accelerator(config.device)
    stop = config.epochs if stop is None else stop
    model.to(process.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, config)
    if state is not None and state.optimizer is not None:
        restore_optimizer(optimizer, state.optimizer)
    average = EMA(model, config.ema) if config.ema else None
    losses = _restore(store, model, optimizer, average)
    wrapped = cast(nn.Module, torch.compile(model)) if config.compile else model
    if process.num_processes > 1:
        wrapped = process.prepare_model(wrapped)
    hooks = [*hooks, average] if average else list(hooks)
    steps = len(batches)
    saved_at = time.monotonic()
    with _bar(progress, steps * (stop - start), steps * len(losses)) as bar:
        loop = _Loop(model, wrapped, objective, optimizer, config, hooks, bar)
        for epoch in range(start + len(losses), stop):
            with _seeded(config.seed, epoch, process.device):
                losses.append(loop.epoch(epoch, batches))
            due = time.monotonic() - saved_at > _SAVE_EVERY_SECONDS
            if store is not None and due and process.is_main_process:
                store.save(_snapshot(model, optimizer, average, losses))
                saved_at = time.monotonic()
    if state is not None:
        state.optimizer = deepcopy(optimizer.state_dict())
    if average is not None:
        model.load_state_dict(average.state)
    if process.num_processes > 1:
        _agree_on_buffers(model)
        process.free_memory()  # it would keep every network that it has prepared
    return losses


def _agree_on_buffers(model: nn.Module) -> None:
    """Running statistics come from each process's own slices: the main one's count for all."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


@dataclass(frozen=True)
class _Loop:
    """What stays the same over the updates of one `fit`."""

    model: nn.Module
    wrapped: nn.Module  # the same weights, compiled or shared with other processes
    objective: Objective
    optimizer: torch.optim.Optimizer
    config: FitConfig
    hooks: Sequence[Hook]
    bar: Any

    def epoch(self, number: int, batches: Batches) -> float:
        """One pass over the data; returns its mean loss."""
        process, steps = accelerator(self.config.device), len(batches)
        self.model.train()
        summed = torch.zeros((), dtype=torch.float64, device=process.device)
        for index, batch in enumerate(batches.epoch(number)):
            summed += self.update(batch, number * steps + index, self.config.epochs * steps)
            self.bar.update()
        mean = float(process.reduce(summed, "mean")) / steps
        check_loss(mean, number, self.config)
        return mean

    def update(self, batch: Batch, done: int, total: int) -> Tensor:
        """One step after `done` of `total`; returns what this process adds to the mean loss."""
        config, process = self.config, accelerator(self.config.device)
        rate = config.learning_rate * learning_rate_factor(config, done / total)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        mine, weight = _share(batch, process, config)
        self.optimizer.zero_grad(set_to_none=True)
        is_half = config.precision == "bf16"
        with torch.autocast(process.device.type, torch.bfloat16, enabled=is_half):
            loss = self.objective(self.wrapped, mine)
        process.backward(loss * weight if weight != 1 else loss)
        if config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        step = Step(done + 1, total, self.model, loss.detach(), self.optimizer)
        for hook in self.hooks:
            hook(step)
        return loss.detach() * weight


def _share(batch: Batch, process: Accelerator, config: FitConfig) -> tuple[Batch, float]:
    """This process's slice of a batch, and the weight that makes the mean that of the batch.

    Processes average their gradients with equal weights, so a slice of size n of N counts
    n * processes / N. A batch with fewer examples than processes still gives each one example,
    at weight zero where it is a second copy, since every process must take part.
    """
    count, rank = process.num_processes, process.process_index
    device = process.device
    if count > 1:
        whole = len(batch[0])
        mine = tuple(values[rank::count] for values in batch)
        weight = len(mine[0]) * count / whole
        batch = mine if len(mine[0]) else tuple(values[:1] for values in batch)
    else:
        weight = 1.0
    moved = tuple(values.to(device, non_blocking=True) for values in batch)
    if config.channels_last:
        moved = tuple(v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for v in moved)
    return moved, weight


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Dropout and its like draw from a state that seed and epoch alone decide."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)  # a prime: distinct for each pair in use
        yield


def _bar(words: str, total: int, done: int) -> Any:
    from tqdm import tqdm

    hidden = None if words else True  # None: hidden unless a person is watching a terminal
    return tqdm(desc=words, total=total, initial=done, disable=hidden, leave=False, unit="step")


def _snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: EMA | None, losses: list[float]
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": {"state": average.state, "updates": average.updates} if average else None,
        "losses": losses,
    }


def _restore(
    store: Store | None, model: nn.Module, optimizer: torch.optim.Optimizer, average: EMA | None
) -> list[float]:
    """Put a kept training back; returns the losses of its finished epochs."""
    saved = store.load() if store is not None else None
    if saved is None:
        return []
    model.load_state_dict(saved["model"])
    restore_optimizer(optimizer, saved["optimizer"])
    if average is not None:
        average.state = {n: v.to(average.state[n]) for n, v in saved["average"]["state"].items()}
        average.updates = saved["average"]["updates"]
    return list(saved["losses"])


def logits_of(output: Any) -> Tensor:
    """The class scores in a classifier's output, of whichever library.

    A tensor is returned as it is; `transformers` puts them in `.logits`; a tuple's first entry
    counts.

    Example:
        >>> logits_of((torch.zeros(1, 2), None)).shape
        torch.Size([1, 2])
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    return logits_of(output[0])


def classification(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The objective of a classifier: mean cross-entropy.

    Args:
        model: images (or features) to class scores.
        batch: inputs, and the classes' numbers (int64).
    """
    inputs, labels = batch
    return F.cross_entropy(logits_of(model(inputs)).float(), labels)


def classification_quality(model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, " batch"]]:
    """Loss and accuracy of every example, for `evaluate`."""
    inputs, labels = batch
    logits = logits_of(model(inputs)).float()
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "accuracy": (logits.argmax(-1) == labels).float(),
    }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    quality: Callable[[nn.Module, Batch], dict[str, Tensor]],
    batches: Iterable[Batch],
    *,
    device: str = "auto",
) -> dict[str, float]:
    """The mean of every quality over all examples, in evaluation mode.

    Args:
        model: any network; its mode is put back.
        quality: gives one value an example, by name, for a batch.
        batches: each example once; a short last batch counts by its size.
        device: auto, cpu or cuda.

    Raises:
        UserError: if there is no example.
    """
    target = choose_device(device)
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluating(model.to(target)):
        for batch in batches:
            values = quality(model, tuple(v.to(target, non_blocking=True) for v in batch))
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.double().sum()
            count += len(batch[0])
    if not count:
        raise UserError("batches must hold at least one example to evaluate, got none")
    return {name: float(value) / count for name, value in sums.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode, put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in modes.items():  # one by one: a part may be frozen
            module.training = was_training
