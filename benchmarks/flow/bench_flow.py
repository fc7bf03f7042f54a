"""Flows against torchcfm and flow_matching: the same network, data and work, less time.

A step of training (draw a batch, couple, interpolate, loss, backward, Adam), 100 steps of Euler's
method, draws of the U-shaped time law against SciPy's `rv_continuous.rvs`, and the optimal
assignment within a batch. Peers run the loop that their own tutorial shows. Sides take turns within
one process; medians of CPU time over the rounds.

    pip install torchcfm flow_matching pot        # in an environment of the benchmark's own
    OMP_NUM_THREADS=1 python -m benchmarks.flow.bench_flow --out benchmarks/results/flow.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rectified.flow import Draws, Field, FlowMatching, MinibatchOT, euler, integrate, uniform_grid
from rectified.flow.couplings import gaussian
from rectified.flow.times import u_shaped
from rectified.models import UNet, VelocityMLP
from rectified.timing import interleaved, medians
from rectified.training import FitConfig, fit

Side = Callable[[], Any]
_MANY = 200  # draws at a time, where one is too short for the clock


def compare(
    name: str, sides: dict[str, Side], rounds: int, per: int | dict[str, int]
) -> dict[str, Any]:
    """Medians over interleaved rounds, and each peer's ratio: ours / theirs."""
    each = per if isinstance(per, dict) else dict.fromkeys(sides, per)
    times = {
        side: [1e3 * taken / each.get(side, 1) for taken in seconds]
        for side, seconds in interleaved(sides, rounds=rounds, clock=time.process_time).items()
    }
    row: dict[str, Any] = {"case": name, "ms": medians(times)}
    row["ratio"] = {
        peer: median(a / b for a, b in zip(times["ours"], times[peer], strict=True))
        for peer in sides
        if peer != "ours"
    }
    print(name, json.dumps(row, default=float), flush=True)
    return row


def training_sides(
    make: Callable[[], nn.Module], data: Tensor, size: int, updates: int
) -> dict[str, Side]:
    """`updates` steps of training, by each library."""
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    config = FitConfig(
        epochs=1,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        device="cpu",
    )

    def ours() -> None:
        fit(make(), FlowMatching(), Draws((data,), size=size, updates=updates), config)

    def theirs(step: Callable[[nn.Module, Tensor], Tensor]) -> Side:
        def work() -> None:
            model = make()
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            for _ in range(updates):
                optimizer.zero_grad()
                loss = step(model, data[torch.randint(len(data), (size,))])
                loss.backward()
                optimizer.step()

        return work

    matcher, path = ConditionalFlowMatcher(sigma=0.0), AffineProbPath(CondOTScheduler())

    def torchcfm(model: nn.Module, x1: Tensor) -> Tensor:
        t, x, v = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return torch.mean((model(x, t) - v) ** 2)

    def flow_matching(model: nn.Module, x1: Tensor) -> Tensor:
        sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        return torch.pow(model(sample.x_t, sample.t) - sample.dx_t, 2).mean()

    return {"ours": ours, "torchcfm": theirs(torchcfm), "flow_matching": theirs(flow_matching)}


def sampling_sides(model: nn.Module, x0: Tensor, steps: int) -> dict[str, Side]:
    """`steps` steps of Euler's method, by each library."""
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper
    from torchdiffeq import odeint

    model.eval()

    class Wrapped(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return self.model(x, t.expand(len(x)))

    @torch.no_grad()
    def ours() -> Tensor:
        return integrate(Field(model), x0, uniform_grid(steps), euler)[-1]

    @torch.no_grad()
    def torchcfm() -> Tensor:  # its tutorials integrate with torchdiffeq
        times = torch.linspace(0, 1, steps + 1)
        return odeint(lambda t, x: model(x, t.expand(len(x))), x0, times, method="euler")[-1]

    solver = ODESolver(velocity_model=Wrapped(model))

    def flow_matching() -> Tensor:
        return solver.sample(x_init=x0, method="euler", step_size=1 / steps)

    assert torch.allclose(ours(), torchcfm(), atol=1e-3)
    return {"ours": ours, "torchcfm": torchcfm, "flow_matching": flow_matching}


def time_law_sides(count: int) -> dict[str, Side]:
    """Draws of the U-shaped law, in closed form and as rf++'s code draws them."""
    from scipy.stats import rv_continuous

    class Exponential(rv_continuous):
        def _pdf(self, x: Any, a: Any) -> Any:
            return a * np.exp(a * x) / (np.exp(a) - 1)

    law = Exponential(a=0.0, b=1.0)

    def scipy() -> Any:
        one = law.rvs(4.0, size=count)
        return np.random.permutation(np.concatenate([one, 1 - one]))[:count]

    def ours() -> None:
        for _ in range(_MANY):
            u_shaped(count)

    return {"ours": ours, "scipy": scipy}


def assignment_sides(size: int) -> dict[str, Side]:
    """The exact optimal coupling of a batch of points in the plane."""
    from torchcfm.optimal_transport import OTPlanSampler

    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(size, 2, generator=generator) + 3
    sampler = OTPlanSampler(method="exact")
    return {
        "ours": lambda: MinibatchOT()(x1),
        "torchcfm": lambda: sampler.sample_plan(gaussian(x1), x1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    points = torch.randn(10_000, 2)
    images = torch.randn(512, 1, 8, 8)

    def unet() -> nn.Module:
        return UNet(1, widths=(32, 64), blocks=1)

    rounds = options.rounds
    rows = [
        compare(
            "training step, 3x64 perceptron, batch 256",
            training_sides(lambda: VelocityMLP(2), points, 256, 300),
            rounds,
            300,
        ),
        compare(
            "training step, U-Net 8x8, batch 64",
            training_sides(unet, images, 64, 15),
            rounds,
            15,
        ),
        compare(
            "100 Euler steps, 3x64 perceptron, 2000 points",
            sampling_sides(VelocityMLP(2), points[:2000], 100),
            rounds,
            1,
        ),
        compare(
            "100 Euler steps, U-Net 8x8, 16 images",
            sampling_sides(unet(), images[:16], 100),
            rounds,
            1,
        ),
        compare("U-shaped law, 512 draws", time_law_sides(512), rounds, {"ours": _MANY}),
        compare("optimal assignment, batch 256", assignment_sides(256), rounds, 1),
    ]
    if options.out:
        found = {"threads": torch.get_num_threads(), "rounds": rounds, "rows": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
