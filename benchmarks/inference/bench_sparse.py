"""Sparse against the best dense engine, as ratios within one run.

    python benchmarks/inference/bench_sparse.py --threads 1 --out sparse.json

Every case is timed dense with PyTorch (contiguous and channels last), oneDNN (linear layers) and
ONNX Runtime if it is installed, norms folded for all, and sparse as `sparsify` returns it, at three
shares of random zeros. In each round every engine runs a few times in a row, the first uncounted;
its time is the median of those, and its result the median over rounds. With several threads each
engine first waits until all cores are idle: OpenMP's and ONNX Runtime's threads occupy theirs for
10 to 40 milliseconds after a call, and would slow down whoever comes next. Before it is timed every
sparse network must have the dense one's outputs, to 1e-5 of the largest. Rounds in which other
processes took more than a tenth of a core are repeated, up to twice as many, and the quietest
count; `others` says how much of a core they took in those. A ratio is the median
over rounds of (fastest dense engine / sparse); `ratio_of_best` uses the fastest round of each,
as a check: on a shared machine a long call is interrupted more often than a short one, and the
first ratio is then too high. One thread is timed by the process's own CPU time, which other
processes do not lengthen; several by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.graphs.shapes import trace_graph
from rectified.inference.batch_norm import fold_norms_
from rectified.inference.sparse import sparsify
from rectified.inference.sparse.engines import ChannelsLast, OneDnnLinear
from rectified.models import resnet20, vgg16

SPARSITIES = (0.9, 0.95, 0.98)
SECONDS = 0.004  # of one engine in one round, if a call is shorter
CLOSE = 1e-5  # share of the largest output: rounding in another order
TRIES = 2  # times as many rounds, if others compute
QUIET = 0.06  # seconds without work before an engine that has threads


@dataclass(frozen=True)
class Case:
    """What is timed, and the ratios it should reach at `SPARSITIES`."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    targets: tuple[float, float, float]


def _network(factory: Callable[..., nn.Module]) -> nn.Module:
    return factory(num_classes=10, in_channels=3, image_size=(32, 32))


_LINEAR = partial(nn.Linear, 4096, 4096)
_CONV3 = partial(nn.Conv2d, 64, 64, 3, padding=1)
_CONV1 = partial(nn.Conv2d, 256, 256, 1)
CASES = (
    Case("linear 4096x4096, batch 1", _LINEAR, (1, 4096), (1, 1, 1)),
    Case("linear 4096x4096, batch 16", _LINEAR, (16, 4096), (4, 7, 16)),
    Case("linear 4096x4096, batch 128", _LINEAR, (128, 4096), (3, 5, 12)),
    Case("conv 3x3 64 at 32x32, batch 1", _CONV3, (1, 64, 32, 32), (3, 6, 10)),
    Case("conv 3x3 64 at 32x32, batch 16", _CONV3, (16, 64, 32, 32), (3, 6, 10)),
    Case("conv 1x1 256 at 32x32, batch 1", _CONV1, (1, 256, 32, 32), (4, 8, 16)),
    Case("resnet20 at 32x32, batch 1", partial(_network, resnet20), (1, 3, 32, 32), (2, 3, 5)),
    Case("vgg16 at 32x32, batch 1", partial(_network, vgg16), (1, 3, 32, 32), (2, 3, 5)),
    Case("resnet20 at 32x32, batch 16", partial(_network, resnet20), (16, 3, 32, 32), (1, 1, 1)),
    Case("vgg16 at 32x32, batch 16", partial(_network, vgg16), (16, 3, 32, 32), (1, 1, 1)),
)


def main() -> None:
    """Time the cases and print one line each."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in case.name:
            rows += bench(case, options.threads, 2 if options.quick else options.rounds)
    print("\n" + table(rows))
    result = {"machine": _machine(options.threads), "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=1, help="for every engine")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


@torch.no_grad()
def bench(case: Case, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time one case.

    Args:
        case: what to time.
        threads: for every engine.
        rounds: how many, interleaved over engines.

    Returns:
        One row a sparsity.
    """
    torch.manual_seed(0)
    model = _settled(case.build()).eval()
    x = torch.randn(case.shape)
    with tempfile.TemporaryDirectory() as folder:
        dense = _dense_engines(model, x, threads, folder)
        _wait_for_quiet()
        pruned = {share: _pruned(model, share) for share in SPARSITIES}
        sparse = {share: sparsify(pruned[share], x, threads=threads) for share in SPARSITIES}
        off = {share: _difference(sparse[share](x), pruned[share](x)) for share in SPARSITIES}
        times, others = _rounds(
            dense | {str(share): partial(sparse[share], x) for share in SPARSITIES}, rounds, threads
        )
    best = min(dense, key=lambda name: statistics.median(times[name]))
    rows = []
    for share, target in zip(SPARSITIES, case.targets, strict=True):
        mine = times[str(share)]
        ratio = statistics.median(d / s for d, s in zip(times[best], mine, strict=True))
        row: dict[str, Any] = {
            "case": case.name,
            "threads": threads,
            "sparsity": share,
            "target": target,
            "ratio": ratio,
            "ratio_of_best": min(times[best]) / min(mine),
            "sparse_ms": statistics.median(mine),
            "relative_difference": off[share],
            "chosen": sparse[share].chosen,
            "best_dense": best,
            "others": others,
            "dense_ms": {name: statistics.median(times[name]) for name in dense},
        }
        rows.append(row)
        print(
            f"{case.name:32} {share:4.0%} zeros  {ratio:6.2f}x (best {row['ratio_of_best']:6.2f}x, "
            f"target {target:g}x)  sparse {row['sparse_ms']:.3f} ms ({row['chosen']}), {best} "
            f"{row['dense_ms'][best]:.3f} ms; outputs within {off[share]:.0e}, others "
            f"{others:.0%} of a core",
            flush=True,
        )
    return rows


def _difference(got: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest output."""
    off = float((got - expected).abs().max() / expected.abs().max())
    if off > CLOSE:
        raise SystemExit(f"outputs differ by {off:.1e} of the largest, more than {CLOSE:g}")
    return off


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the table of docs/performance.md; targets that were met are bold.

    Args:
        rows: of one run.
    """
    lines = ["| work | 90 % | 95 % | 98 % | target | against PyTorch's best alone |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == name]
        asked = any(row["target"] != 1 for row in mine)
        ratios = [
            f"{row['ratio']:.1f}x"
            if not asked
            else f"**{row['ratio']:.1f}x**"
            if row["ratio"] >= row["target"]
            else f"{row['ratio']:.1f}x (missed)"
            for row in mine
        ]
        targets = "/".join(f"{row['target']:g}" for row in mine) if asked else "none"
        alone = [
            min(ms for engine, ms in row["dense_ms"].items() if engine != "onnxruntime")
            / row["sparse_ms"]
            for row in mine
        ]
        shown = ", ".join(f"{ratio:.1f}x" for ratio in alone)
        lines.append(f"| {name} | {' | '.join(ratios)} | {targets} | {shown} |")
    return "\n".join(lines)


def _settled(model: nn.Module) -> nn.Module:
    """Norms that are not the identity."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return model


def _pruned(model: nn.Module, share: float) -> nn.Module:
    """Each weight of a layer is zero with probability `share`."""
    pruned = deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in pruned.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(torch.rand(parameter.shape, generator=generator) >= share)
    return pruned


def _dense_engines(
    model: nn.Module, x: Tensor, threads: int, folder: str
) -> dict[str, Callable[[], object]]:
    """The network dense, norms folded, in every engine at hand."""
    model = nn.Sequential(model)
    folded = trace_graph(model.eval(), (x,))
    fold_norms_(folded)
    engines: dict[str, Callable[[], object]] = {"torch": partial(folded, x)}
    if x.ndim == 4:
        inner = ChannelsLast(deepcopy(folded)).inner
        images = x.contiguous(memory_format=torch.channels_last)
        engines["torch channels_last"] = partial(inner, images)
    elif isinstance(model[0], nn.Linear):
        engines["onednn"] = partial(OneDnnLinear(model[0]), x)
    session = _onnx_session(folded, x, threads, f"{folder}/dense.onnx")
    if session is not None:
        engines["onnxruntime"] = session
    return engines


def _onnx_session(
    model: nn.Module, x: Tensor, threads: int, path: str
) -> Callable[[], object] | None:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return None
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def _rounds(
    calls: dict[str, Callable[[], object]], rounds: int, threads: int
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each engine in each of the quietest rounds, and how much others computed."""
    tries: list[tuple[float, dict[str, float]]] = []
    while len(tries) < TRIES * rounds and sum(others < 0.1 for others, _ in tries) < rounds:
        before = (_core_seconds(), time.process_time(), time.perf_counter())
        times = {name: _milliseconds(call, threads) for name, call in calls.items()}
        busy, own, passed = (
            now - then
            for now, then in zip(
                (_core_seconds(), time.process_time(), time.perf_counter()), before, strict=True
            )
        )
        tries.append((max(0.0, busy - own) / passed, times))
    kept = sorted(tries, key=lambda one: one[0])[:rounds]
    others = statistics.median(share for share, _ in kept)
    return {name: [times[name] for _, times in kept] for name in calls}, others


def _milliseconds(call: Callable[[], object], threads: int) -> float:
    """One round of one engine."""
    clock = time.process_time if threads == 1 else time.perf_counter
    if threads > 1:
        _wait_for_quiet()
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:  # the core has to get up to speed again
            call()
    repeats = max(1, min(50, round(SECONDS / _seconds(call, clock))))
    return 1e3 * statistics.median(_seconds(call, clock) for _ in range(repeats))


def _wait_for_quiet() -> None:
    """Wait until nobody uses the cores: threads of the engine before, or somebody else's work."""
    for _ in range(5):  # on a busy machine nothing is ever quiet
        before = _core_seconds()
        time.sleep(QUIET)
        if _core_seconds() - before < 0.4 * QUIET:
            return


def _core_seconds() -> float:
    """Seconds that all cores together have worked so far; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system = map(int, fields[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    before = clock()
    call()
    return clock() - before


def _machine(threads: int) -> dict[str, object]:
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
