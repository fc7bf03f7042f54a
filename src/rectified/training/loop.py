"""The loop: epochs, updates, and going on from where a training stood."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rectified.errors import UserError
from rectified.seeds import seeded
from rectified.training.devices import accelerator
from rectified.training.ema import EMA
from rectified.training.optimizers import learning_rate_factor, make_optimizer, restore_optimizer
from rectified.training.protocols import Batch, Batches, Hook, Objective, Step, Store
from rectified.training.settings import FitConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

_SAVE_EVERY_SECONDS = 20.0  # what a kill may cost; saving a small network takes milliseconds


@dataclass
class TrainingState:
    """The state of a training, for the next `fit` to go on from.

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
            with seeded(config.seed, epoch, "training", device=process.device):  # dropout's draws
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


def _agree_on_buffers(model: nn.Module) -> None:
    """Running statistics come from each process's own slices: the main one's count for all."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


@dataclass(frozen=True)
class _Loop:
    """The constants over the updates of one `fit`."""

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
