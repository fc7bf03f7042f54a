"""What a training step of ResNet-20 on 32x32 pictures costs, by the way it is launched.

    fit         the loop that trains anything, operation by operation
    steps       the same step as a graph would hold it, but called from Python
    graph       one network's step as one CUDA graph
    branches    several networks' steps as branches of one graph
    compiled    as branches, through torch.compile (--compiled)

Milliseconds are per network and step of 128 pictures, the median of three rounds; `epoch` is what
351 of them take. From the same start, graph and eager steps must have the same losses; the float32
rows have TF32 off. `measuring` is what counting dead neurons and evaluating cost at the end of a
cycle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rectified import models
from rectified.data import Augment, Batches, Images
from rectified.pruning import full_masks, hold
from rectified.pruning.dead_neurons import dead_neuron_rate
from rectified.training import (
    FitConfig,
    TrainingState,
    classification,
    classification_quality,
    evaluate,
    fit,
)
from rectified.training.capture import Branch, CannotCapture, Steps, as_graph

EPOCH = 351  # batches of 45,000 pictures
SAME = 0.02  # relative difference of 20 steps' mean losses: other kernels, the same mathematics


@dataclass
class Probe:
    """What is measured, and what was found.

    Attributes:
        seconds: no measurement begins after them.
        toy: a CPU's size.
        rows: one a measurement.
    """

    seconds: float
    toy: bool
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        count, self.size, side = (24, 8, 16) if self.toy else (45_000, 128, 32)
        self.steps = 2 if self.toy else 40
        self.image_size = (side, side)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (count,), generator=generator)
        self.images = Images(pixels.to(self.device), labels.to(self.device))

    def network(self, norm: str, seed: int) -> nn.Module:
        """A network as a study makes it."""
        torch.manual_seed(seed)
        made = models.resnet20(
            num_classes=10,
            in_channels=3,
            image_size=self.image_size,
            norm=nn.BatchNorm2d if norm == "batch" else None,
        )
        return made.to(self.device)

    def batches(self, seed: int) -> Batches:
        """Its data."""
        middle = torch.full((3,), 0.47), torch.full((3,), 0.25)
        return Batches(
            self.images,
            self.size,
            seed=seed,
            augment=Augment(),
            mean=middle[0],
            std=middle[1],
            device=self.device,
        )

    def config(self, precision: Any) -> FitConfig:
        """A recipe whose loss stays finite."""
        return FitConfig(
            epochs=9,
            learning_rate=0.02,
            warmup=0,
            precision=precision,
            channels_last=True,
            device=self.device.type,
        )

    def made(self, norm: str, precision: str, count: int, objective: Any = classification) -> Steps:
        """A step of several networks, ready to begin."""
        branches = []
        for seed in range(count):
            model = self.network(norm, seed)
            masks = {name: torch.rand_like(p) < 0.3 for name, p in _weights(model).items()}
            branches.append(Branch(model, self.batches(seed), hold(model, masks), TrainingState()))
        steps = Steps(branches, objective, self.config(precision))
        steps.begin(steps.draw(0), 0)
        return steps

    def time(self, way: str, run: Callable[[], object], networks: int, **about: Any) -> None:
        """Time `run`, one step of `networks`."""
        rounds, host = [], []
        for _ in range(3):
            self.wait()
            start = time.perf_counter()
            for _ in range(self.steps):
                run()
            host.append(time.perf_counter() - start)
            self.wait()
            rounds.append(time.perf_counter() - start)
        per = 1000 / self.steps / networks
        ms = statistics.median(rounds) * per
        self.add(
            way=way,
            networks=networks,
            ms=round(ms, 4),
            host_ms=round(statistics.median(host) * per, 4),
            epoch_s=round(ms * EPOCH / 1000, 4),
            spread=round((max(rounds) - min(rounds)) * per, 4),
            **about,
        )

    def add(self, **row: Any) -> None:
        """Note a row, and say it."""
        row["at_s"] = round(time.monotonic() - self.began, 1)
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.began > self.seconds

    # --- measurements ---

    def fit(self, norm: str, precision: str) -> None:
        """Today's loop: it is timed by epochs of `steps` batches."""
        model, some = self.network(norm, 0), _Some(self.batches(0), self.steps)
        run = partial(fit, model, classification, some, self.config(precision))
        masks = {name: torch.rand_like(p) < 0.3 for name, p in _weights(model).items()}
        hooks = [hold(model, masks)]
        run(hooks=hooks, stop=1)
        rounds = []
        for _ in range(3):
            self.wait()
            start = time.perf_counter()
            run(hooks=hooks, stop=1)
            self.wait()
            rounds.append((time.perf_counter() - start) * 1000 / self.steps)
        ms = statistics.median(rounds)
        self.add(
            way="fit",
            networks=1,
            ms=round(ms, 4),
            epoch_s=round(ms * EPOCH / 1000, 4),
            norm=norm,
            precision=precision,
        )

    def eager(self, norm: str, precision: str) -> None:
        """The captured step, called from Python."""
        steps = self.made(norm, precision, 1)
        steps()
        self.time("steps", self._again(steps, steps), 1, norm=norm, precision=precision)

    def graph(self, norm: str, precision: str, networks: int, objective: Any = None) -> None:
        """Several networks as one graph; eager without a GPU."""
        way = "graph" if networks == 1 else "branches"
        way = way if objective is None else f"compiled {way}"
        start = time.perf_counter()
        steps = self.made(norm, precision, networks, objective or classification)
        about: dict[str, Any] = {"norm": norm, "precision": precision}
        try:
            launch = as_graph(steps) if self.device.type == "cuda" else steps
        except CannotCapture as refusal:
            self.add(way=way, networks=networks, error=str(refusal), **about)
            return
        self.wait()
        about["ready_s"] = round(time.perf_counter() - start, 2)
        if self.device.type == "cuda":
            about["gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        self.time(way, self._again(steps, launch), networks, **about)

    def _again(self, steps: Steps, launch: Callable[[], object]) -> Callable[[], None]:
        """A step that begins anew before the epoch is over."""
        done = 0

        def run() -> None:
            nonlocal done
            if done % steps.count == 0:
                steps.at.zero_()
            done += 1
            launch()

        return run

    def agreement(self, norm: str, precision: str) -> None:
        """Mean losses of 20 steps, eager and as branches, from the same start."""
        torch.manual_seed(0)
        eager = self.made(norm, precision, 2)
        torch.manual_seed(0)
        other = self.made(norm, precision, 2)
        for one, two in zip(eager.branches, other.branches, strict=True):
            two.model.load_state_dict(one.model.state_dict())
        launch = as_graph(other) if self.device.type == "cuda" else other
        count = min(20, eager.count)
        for _ in range(count):
            eager()
            launch()
        found = [
            [total / count for total in torch.stack(s.summed).tolist()] for s in (eager, other)
        ]
        worst = max(abs(a - b) / abs(a) for a, b in zip(*found, strict=True))
        self.add(
            way="agreement",
            norm=norm,
            precision=precision,
            eager=found[0],
            graph=found[1],
            relative=worst,
            ok=worst < SAME,
        )

    def measuring(self, norm: str) -> None:
        """What is done with a network at the end of a cycle."""
        model = self.network(norm, 0)
        masks = full_masks(model)
        images = self.images.select(torch.arange(min(10_000, len(self.images)), device=self.device))
        for size in (500, 2500):
            plain = Batches(images, size, shuffle=False, device=self.device)
            for name, run in (
                ("dead neurons", partial(dead_neuron_rate, model, plain, masks=masks)),
                (
                    "evaluate",
                    partial(
                        evaluate, model, classification_quality, plain, device=self.device.type
                    ),
                ),
            ):
                run()
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                ms = (time.perf_counter() - start) * 1000
                self.add(way=f"measuring: {name}", batch=size, ms=round(ms, 1), norm=norm)


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: dict(model.named_parameters())[name] for name in full_masks(model)}


class _Some:
    """The first batches of an epoch."""

    def __init__(self, batches: Batches, count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int) -> Any:
        return (
            batch for _, batch in zip(range(self.count), self.batches.epoch(number), strict=False)
        )


def measurements(probe: Probe, compiled: bool) -> list[Callable[[], None]]:
    """What to measure, the most wanted first."""
    several = (2,) if probe.toy else (16, 6, 24, 12)
    wanted: list[Callable[[], None]] = [
        partial(probe.agreement, "batch", "bf16"),
        partial(probe.graph, "batch", "bf16", 1),
        partial(probe.graph, "batch", "bf16", several[0]),
        partial(probe.fit, "batch", "bf16"),
        partial(probe.graph, "none", "bf16", several[0]),
        partial(probe.measuring, "batch"),
        partial(probe.agreement, "batch", "float32"),
        partial(probe.eager, "batch", "bf16"),
        *(partial(probe.graph, "batch", "bf16", count) for count in several[1:]),
        partial(probe.graph, "batch", "float32", several[0]),
        partial(probe.fit, "batch", "float32"),
        partial(probe.graph, "none", "bf16", 1),
        partial(probe.fit, "none", "bf16"),
    ]
    if compiled:
        wanted.append(partial(probe.graph, "batch", "bf16", several[0], _compiled))
    return wanted


@torch.compiler.disable
def _compiled(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return classification(_compile(model), batch)


_COMPILED: dict[nn.Module, Any] = {}


def _compile(model: nn.Module) -> Any:
    return _COMPILED.setdefault(model, torch.compile(model))


def main(arguments: list[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=65)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--toy", action="store_true", help="a few seconds on a CPU")
    parser.add_argument("--compiled", action="store_true", help="40 s and more of compiling")
    given = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    probe = Probe(given.seconds, given.toy or not torch.cuda.is_available())
    for measure in measurements(probe, given.compiled):
        if probe.is_over:
            probe.add(way="left out", what=str(measure.args))
            continue
        try:
            measure()
        except Exception as error:  # one that fails must not cost the others
            probe.add(way="failed", what=str(measure.args), error=repr(error)[:300])
        if given.out is not None:
            given.out.write_text(json.dumps({"device": _device(), "rows": probe.rows}, indent=1))
    _show(probe.rows)
    return int(any(row.get("ok") is False or row["way"] == "failed" for row in probe.rows))


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{_device()}, ms per network and step, seconds per network and epoch")
    for row in rows:
        if "epoch_s" in row:
            print(
                f"{row['way']:18} {row['networks']:3} {row['norm']:6} {row['precision']:8} "
                f"{row['ms']:8.3f} {row['epoch_s']:8.3f}"
            )
    for row in rows:
        if "epoch_s" not in row:
            print({k: v for k, v in row.items() if k != "at_s"})


if __name__ == "__main__":
    raise SystemExit(main())
