"""Many trainings at once on one GPU: the steps of several networks as branches of one CUDA graph.

A small network's step is a few hundred small operations, and calling them one by one from Python
takes several times as long as computing them. A CUDA graph holds a step's operations and starts
them with one call; operations of different networks that were captured on streams of their own run
side by side, so that they fill the GPU. The architecture is any: each network keeps its operations.

    at, rate                    the step's number and its learning rate, tensors on the GPU
    draws -> pictures           of every distinct data set: an epoch's draws lie on the GPU
    pictures -> loss -> update  of every network, on its own stream
    at + 1

The steps are those of `fit`: the same batches, rates and optimisers in the same order, and losses
that are read once per epoch. Warming up and capturing change nothing: all state is put back.

What a graph cannot hold is refused (`CannotCapture`), to be trained by `fit`: networks that draw at
random, moving averages, several processes, batches of changing size, operations for which the host
must wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rectified.errors import UserError, first_line
from rectified.training import loop
from rectified.training.devices import accelerator, choose_device
from rectified.training.loop import TrainingState, check_loss
from rectified.training.optimizers import (
    learning_rate_factor,
    make_optimizer,
    restore_optimizer,
)
from rectified.training.protocols import Batch, Objective, Store
from rectified.training.settings import FitConfig

_WARM_UP = 2  # steps: kernels are chosen and loaded in the first, optimisers have memory after it


class CannotCapture(Exception):
    """These trainings cannot be one graph; they are as they were before.

    Attributes:
        is_memory: fewer networks at once might fit.
    """

    def __init__(self, reason: str, *, is_memory: bool = False) -> None:
        super().__init__(reason)
        self.is_memory = is_memory


@runtime_checkable
class DrawnBatches(Protocol):
    """Batches whose random draws of an epoch are made at once; `rectified.data.Batches` are."""

    size: int

    def __len__(self) -> int: ...

    def draws(self, number: int, /) -> Any: ...

    def make(self, draws: Any, /) -> Batch: ...


@dataclass(frozen=True)
class Branch:
    """One network's training.

    Attributes:
        model: trained in place.
        batches: its data; networks that share them share the pictures of every step.
        keep: called after every update, such as `hold(model, masks)`.
        state: the optimiser's state to begin with; holds that of the end afterwards.
    """

    model: nn.Module
    batches: DrawnBatches
    keep: Callable[[], object]
    state: TrainingState


def fit_branches(
    branches: Sequence[Branch],
    objective: Objective,
    config: FitConfig,
    *,
    start: int = 0,
    stop: int | None = None,
    store: Store | None = None,
    progress: str = "",
    capture: Callable[[Steps], Callable[[], None]] | None = None,
) -> list[list[float]]:
    """Train several networks side by side, each as `fit` trains it alone.

    Args:
        branches: at least one; their data must have batches of one size, and as many.
        objective: mean loss of one batch.
        config: how to train all of them.
        start: as in `fit`.
        stop: as in `fit`.
        store: as in `fit`; it holds all of them.
        progress: as in `fit`.
        capture: makes a step a callable; by default a CUDA graph.

    Returns:
        The mean loss of every epoch, for every network.

    Raises:
        CannotCapture: if a graph cannot hold the steps; nothing has changed then.
        UserError: as `fit`.
    """
    stop = config.epochs if stop is None else stop
    steps = Steps(branches, objective, config)
    losses = steps.restore(store)
    first, count = start + len(losses), len(branches[0].batches)
    saved_at = time.monotonic()
    if first < stop:
        steps.begin(steps.draw(first), first)
        launch = (capture or as_graph)(steps)
    with loop._bar(progress, count * (stop - start), count * len(losses)) as bar:
        for epoch in range(first, stop):
            for _ in range(count):
                launch()
                bar.update()
            upcoming = steps.draw(epoch + 1) if epoch + 1 < stop else []  # the device is at work
            losses.append(steps.losses())
            for mean in losses[-1]:
                check_loss(mean, epoch, config)
            due = time.monotonic() - saved_at > loop._SAVE_EVERY_SECONDS
            if store is not None and due:
                store.save({"branches": steps.snapshot(), "losses": losses})
                saved_at = time.monotonic()
            if epoch + 1 < stop:
                steps.begin(upcoming, epoch + 1)
    steps.finish()
    return [list(one) for one in zip(*losses, strict=True)] or [[] for _ in branches]


class Steps:
    """A step of every branch; called, it makes one, and asks nothing of the host."""

    def __init__(self, branches: Sequence[Branch], objective: Objective, config: FitConfig) -> None:
        _check(branches, config)
        self.branches, self.objective, self.config = branches, objective, config
        self.device = choose_device(config.device)
        self.lanes: Sequence[torch.cuda.Stream | None] = [None] * len(branches)
        self.count = len(branches[0].batches)
        # float32 as fused kernels read it; a CPU's read a Python number
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self.at = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.rate = torch.full((), config.learning_rate, dtype=kind, device=self.device)
        self.rates = torch.zeros(self.count, dtype=kind, device=self.device)
        self.summed = [torch.zeros((), dtype=torch.float64, device=self.device) for _ in branches]
        for branch in branches:
            branch.model.to(self.device).train()
            if config.channels_last:
                branch.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = [make_optimizer(b.model, config, rate=self.rate) for b in branches]
        for branch, optimizer in zip(branches, self.optimizers, strict=True):
            if branch.state.optimizer is not None:
                restore_optimizer(optimizer, branch.state.optimizer)
        first_user = {id(b.batches): i for i, b in reversed(list(enumerate(branches)))}
        self.sources = {  # data set -> its pictures, and the branch on whose stream they are made
            key: (_Source(branches[i].batches, self.device), i) for key, i in first_user.items()
        }

    def draw(self, epoch: int) -> list[Any]:
        """The draws of an epoch, of every data set."""
        return [source.batches.draws(epoch) for source, _ in self.sources.values()]

    def begin(self, draws: Sequence[Any], epoch: int) -> None:
        """Everything is ready for the first step of an epoch."""
        for (source, _), drawn in zip(self.sources.values(), draws, strict=True):
            source.load(drawn)
        done, total = epoch * self.count, self.config.epochs * self.count
        factors = [learning_rate_factor(self.config, (done + i) / total) for i in range(self.count)]
        rates = [self.config.learning_rate * factor for factor in factors]
        self.rates.copy_(torch.tensor(rates, dtype=self.rates.dtype))
        self.at.zero_()
        torch._foreach_zero_(self.summed)

    def losses(self) -> list[float]:
        """The mean loss of every branch in this epoch; the host waits here."""
        return [summed / self.count for summed in torch.stack(self.summed).tolist()]

    def __call__(self) -> None:
        """Make one step: pictures first, since branches may share them."""
        on_gpu = self.lanes[0] is not None
        main = torch.cuda.current_stream() if on_gpu else None
        self.rate.copy_(self.rates.index_select(0, self.at).squeeze(0))
        made: dict[int, Batch] = {}  # kept to the end: other streams read it
        for key, (source, lane) in self.sources.items():
            with self._on(lane, main):
                made[key] = self._laid_out(source.batch(self.at))
        for number, branch in enumerate(self.branches):
            _, lane = self.sources[id(branch.batches)]
            _wait(self.lanes[number], main)
            _wait(self.lanes[number], self.lanes[lane])
        for number, branch in enumerate(self.branches):
            with self._on(number, None):
                self.update(number, made[id(branch.batches)])
        for stream in self.lanes:
            _wait(main, stream)
        self.at.add_(1)

    def update(self, number: int, batch: Batch) -> None:
        """One branch's update, as `fit` makes it."""
        branch, optimizer, config = self.branches[number], self.optimizers[number], self.config
        optimizer.zero_grad(set_to_none=True)
        is_half = config.precision == "bf16"
        # weights that autocast keeps in half precision would outlive the graph's step
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half, cache_enabled=False):
            loss = self.objective(branch.model, batch)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(branch.model.parameters(), config.clip)
        optimizer.step()
        branch.keep()
        self.summed[number] += loss.detach()

    def _laid_out(self, batch: Batch) -> Batch:
        if not self.config.channels_last:
            return batch
        return tuple(v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for v in batch)

    @contextmanager
    def _on(self, number: int, after: torch.cuda.Stream | None) -> Iterator[None]:
        stream = self.lanes[number]
        _wait(stream, after)
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            yield

    def snapshot(self) -> list[dict[str, Any]]:
        """Networks and optimisers, for a store."""
        return [
            {"model": branch.model.state_dict(), "optimizer": optimizer.state_dict()}
            for branch, optimizer in zip(self.branches, self.optimizers, strict=True)
        ]

    def restore(self, store: Store | None) -> list[list[float]]:
        """Put back what a store holds; returns the losses of the finished epochs."""
        saved = store.load() if store is not None else None
        if saved is None:
            return []
        for branch, optimizer, held in zip(
            self.branches, self.optimizers, saved["branches"], strict=True
        ):
            branch.model.load_state_dict(held["model"])
            restore_optimizer(optimizer, held["optimizer"])
        return [list(epoch) for epoch in saved["losses"]]

    def finish(self) -> None:
        """Hand the optimisers' states over; gradients would hold the graph's memory."""
        for branch, optimizer in zip(self.branches, self.optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            branch.state.optimizer = deepcopy(optimizer.state_dict())

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever steps are made inside, networks and optimisers are put back at the end."""
        networks = [
            t.data for b in self.branches for t in (*b.model.parameters(), *b.model.buffers())
        ]
        kept = [tensor.clone() for tensor in networks]
        memories = {
            (number, parameter, name): value.clone()
            for number, optimizer in enumerate(self.optimizers)
            for parameter, memory in optimizer.state.items()
            for name, value in memory.items()
            if isinstance(value, Tensor)
        }
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            for tensor, before in zip(networks, kept, strict=True):
                tensor.copy_(before)
            self._put_back(memories)
            self.at.zero_()
            torch._foreach_zero_(self.summed)

    def _put_back(self, memories: dict[tuple[int, Tensor, str], Tensor]) -> None:
        """Put back optimisers' memories; what they first remembered inside becomes 0."""
        for number, optimizer in enumerate(self.optimizers):
            for parameter, memory in optimizer.state.items():
                for name, value in memory.items():
                    if isinstance(value, Tensor):
                        before = memories.get((number, parameter, name))
                        value.zero_() if before is None else value.copy_(before)


class _Source:
    """The batches of one data set, made where the step's number lies."""

    def __init__(self, batches: DrawnBatches, device: torch.device) -> None:
        self.batches = batches
        self.draws = batches.draws(0)
        rows, count = len(self.draws.rows), len(batches)
        if count > 1 and rows != count * batches.size:
            raise CannotCapture("batches differ in size")
        if self.draws.rows.device.type != device.type:
            raise CannotCapture("the data lie on another device")
        self.size = rows // count
        self.places = torch.arange(self.size, device=device)

    def load(self, drawn: Any) -> None:
        """Take over the draws of an epoch."""
        for here, new in zip(self.draws.tensors(), drawn.tensors(), strict=True):
            here.copy_(new)

    def batch(self, at: Tensor) -> Batch:
        """The batch of the step `at`."""
        return self.batches.make(self.draws.at(self.places + at * self.size))


def _wait(stream: torch.cuda.Stream | None, other: torch.cuda.Stream | None) -> None:
    if stream is not None and other is not None and stream != other:
        stream.wait_stream(other)


def _check(branches: Sequence[Branch], config: FitConfig) -> None:
    """Refuse what is known not to work before anything is tried."""
    if accelerator(config.device).num_processes > 1:
        raise CannotCapture("several processes train together")
    if config.ema or config.compile:
        raise CannotCapture("moving averages and compiled networks are trained alone")
    if len({len(branch.batches) for branch in branches}) > 1:
        raise CannotCapture("the data differ in the number of batches")
    if not all(isinstance(branch.batches, DrawnBatches) for branch in branches):
        raise CannotCapture("the data draw batch by batch")


def as_graph(steps: Steps) -> Callable[[], None]:
    """A step as one CUDA graph, whose branches run side by side.

    Raises:
        CannotCapture: if it cannot be captured.
    """
    try:
        main = torch.cuda.Stream(steps.device)
        steps.lanes = [torch.cuda.Stream(steps.device) for _ in steps.branches]
        with steps.unchanged(), _fastest_kernels(), _no_draws(steps.device):
            main.wait_stream(torch.cuda.current_stream(steps.device))
            with torch.cuda.stream(main):
                for _ in range(_WARM_UP):
                    steps.at.zero_()
                    steps()
            torch.cuda.synchronize(steps.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=main):
                steps()
    except (CannotCapture, UserError):
        raise
    except Exception as error:  # whatever torch or somebody's network says of it
        reason = first_line(error)
        is_memory = isinstance(error, torch.OutOfMemoryError)
        raise CannotCapture(reason, is_memory=is_memory) from error
    torch.cuda.synchronize(steps.device)
    return graph.replay


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN time its kernels and take the fastest, unless results must be repeatable."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def _no_draws(device: torch.device) -> Iterator[None]:
    """See that the steps inside draw nothing: a graph would draw for all networks from one state.

    Raises:
        CannotCapture: if they do.
    """
    before = torch.cuda.get_rng_state(device)
    yield
    if not torch.equal(before, torch.cuda.get_rng_state(device)):
        torch.cuda.set_rng_state(before, device)
        raise CannotCapture("the network draws at random, as dropout does")
