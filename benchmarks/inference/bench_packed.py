"""Products of signs on bits against the best dense engine, as ratios within one run.

    OMP_NUM_THREADS=2 python -m benchmarks.inference.bench_packed --threads 2

Every case is timed in floating point with PyTorch (linear layers: `F.linear` and oneDNN;
convolutions and networks: contiguous and channels last) and with onnxruntime if it is installed, in
PyTorch's int8, and packed: taking signs, the product and the scale, floats in and floats out.
Before it is timed the packed network must have the outputs of its float twin, to 1e-4. In each
round every engine runs a few times in a row, the first uncounted; its time is the median of those,
and its result the median over rounds. With several threads each engine first waits until those of
the one before sleep. A ratio is the median over rounds of (fastest float engine / packed), and
`ratio_of_best` that of the fastest rounds, as a check: on a shared machine a long call is
interrupted more often than a short one, and the first ratio is then too high. One thread is timed
by the process's own CPU time, which other processes do not lengthen; several by the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectified.binary import convert
from rectified.inference import pack
from rectified.models import one_bit_resnet20, vgg_small

CLOSE = 1e-4  # logits of whole networks are some units large
QUIET = 0.06  # seconds for which the threads of an engine may occupy their cores after a call
SECONDS = 0.01  # of one engine in one round, if a call is shorter


@dataclass(frozen=True)
class Case:
    """What is timed, and the ratios it should reach against float and int8; None: only reported."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    against_float: float | None
    against_int8: float | None = None


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs))


def _conv(channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, size, padding=size // 2, bias=False))


def _network(factory: Callable[..., nn.Module]) -> nn.Module:
    return factory(num_classes=10, in_channels=3, image_size=(32, 32))


CASES = (
    Case("linear 4096x4096, batch 128", partial(_linear, 4096, 4096), (128, 4096), 20, 5),
    Case("linear 4096x4096, batch 16", partial(_linear, 4096, 4096), (16, 4096), None),
    Case("linear 4096x4096, batch 1", partial(_linear, 4096, 4096), (1, 4096), 50, 6),
    Case("linear 1024x1024, batch 1024", partial(_linear, 1024, 1024), (1024, 1024), None),
    Case("conv 3x3 128 at 32x32, batch 16", partial(_conv, 128, 3), (16, 128, 32, 32), 13),
    Case("conv 3x3 128 at 32x32, batch 1", partial(_conv, 128, 3), (1, 128, 32, 32), None),
    Case("conv 1x1 256 at 32x32, batch 16", partial(_conv, 256, 1), (16, 256, 32, 32), None),
    Case("vgg_small, batch 1", partial(_network, vgg_small), (1, 3, 32, 32), 8),
    Case("vgg_small, batch 16", partial(_network, vgg_small), (16, 3, 32, 32), 6),
    Case("resnet20, batch 1", partial(_network, one_bit_resnet20), (1, 3, 32, 32), None),
    Case("resnet20, batch 16", partial(_network, one_bit_resnet20), (16, 3, 32, 32), None),
)


def main() -> None:
    """Time the cases and print one line each."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in case.name:
            rows.append(bench(case, options.threads, 2 if options.quick else options.rounds))
    print("\n" + table(rows) + "\n")
    result = {"machine": _machine(options.threads), "sizes": sizes(), "rows": rows}
    print(
        f"vgg_small's 1-bit weights: {result['sizes']['bytes_float']:,} bytes as float32, "
        f"{result['sizes']['bytes_packed']:,} packed "
        f"({result['sizes']['bytes_float'] / result['sizes']['bytes_packed']:.1f}x)"
    )
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=2, help="for every engine")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def sizes() -> dict[str, int]:
    """Bytes of the weights of VGG-small's 1-bit layers."""
    layers = pack(convert(_network(vgg_small))).layers
    return {
        "bytes_float": sum(layer.bytes_float for layer in layers),
        "bytes_packed": sum(layer.bytes_packed for layer in layers),
    }


@torch.no_grad()
def bench(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """Time one case.

    Args:
        case: what to time.
        threads: for every engine.
        rounds: how many, interleaved over engines.
    """
    torch.manual_seed(0)
    model = case.build().eval()
    x = torch.randn(case.shape)
    binary = _binary(model)
    packed = pack(binary)
    off = float((packed(x) - binary(x)).abs().max())
    if off > CLOSE:
        raise SystemExit(f"{case.name}: outputs differ by {off:.1e}, more than {CLOSE:g}")
    floats, int8 = _float_engines(model, x, threads), _int8_engines(model, x)
    calls: dict[str, Callable[[], object]] = {**floats, **int8, "packed": partial(packed, x)}
    times = _rounds(calls, rounds, threads)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    best = min(floats, key=medians.__getitem__)
    mine = times["packed"]
    row: dict[str, Any] = {
        "case": case.name,
        "threads": threads,
        "target": case.against_float,
        "ratio": _ratio(times[best], mine),
        "ratio_of_best": min(times[best]) / min(mine),
        "packed_ms": medians["packed"],
        "best_float": best,
        "milliseconds": medians,
        "max_abs_difference": off,
    }
    words = f"{row['ratio']:6.1f}x (best rounds {row['ratio_of_best']:.1f}x, "
    words += f"target {case.against_float or 'none'}) against {best} {medians[best]:.3f} ms"
    if int8:
        quick = min(int8, key=medians.__getitem__)
        row |= {
            "best_int8": quick,
            "target_int8": case.against_int8,
            "ratio_int8": _ratio(times[quick], mine),
            "ratio_int8_of_best": min(times[quick]) / min(mine),
        }
        words += f"; {row['ratio_int8']:.1f}x (target {case.against_int8 or 'none'}) against "
        words += f"{quick} {medians[quick]:.3f} ms"
    print(
        f"{case.name:32} {words}; packed {medians['packed']:.3f} ms, outputs within {off:.1e}",
        flush=True,
    )
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the table of docs/performance.md; targets that were met are bold.

    Args:
        rows: of one run.
    """
    lines = ["| work | against float | target | against int8 | target | packed, ms |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [
            row["case"],
            _cell(row["ratio"], row["target"]),
            _target(row["target"]),
            _cell(row.get("ratio_int8"), row.get("target_int8")),
            _target(row.get("target_int8")),
            f"{row['packed_ms']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(ratio: float | None, target: float | None) -> str:
    if ratio is None:
        return "none"
    if target is None:
        return f"{ratio:.1f}x"
    return f"**{ratio:.1f}x**" if ratio >= target else f"{ratio:.1f}x (missed)"


def _target(target: float | None) -> str:
    return "none" if target is None else f"{target:g}x"


def _ratio(theirs: list[float], mine: list[float]) -> float:
    return statistics.median(t / m for t, m in zip(theirs, mine, strict=True))


def _binary(model: nn.Module) -> nn.Module:
    """The same network with 1-bit layers: all layers of a single one."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return convert(model, keep=() if len(layers) == 1 else None).eval()


def _float_engines(model: nn.Module, x: Tensor, threads: int) -> dict[str, Callable[[], object]]:
    engines: dict[str, Callable[[], object]] = {"torch": partial(model, x)}
    if x.ndim == 4:
        last: Any = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = x.contiguous(memory_format=torch.channels_last)
        engines["torch channels_last"] = partial(last, images)
    else:
        layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
        weight, bias = layer.weight.detach().to_mkldnn(), layer.bias.detach().to_mkldnn()

        def onednn() -> Tensor:
            return torch._C._nn.mkldnn_linear(x.to_mkldnn(), weight, bias).to_dense()

        engines["onednn"] = onednn
    session = _onnx_session(model, x, threads)
    return engines if session is None else engines | {"onnxruntime": session}


def _onnx_session(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object] | None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter needs
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/float.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def _int8_engines(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """PyTorch's dynamic int8 for linear layers, its static int8 for convolutions and networks."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(layers) > 1:
            return {"int8 static": _static_network(model, x)}
        if x.ndim == 2:
            quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
            engines: dict[str, Callable[[], object]] = {"int8 dynamic": partial(quantized, x)}
            if len(x) > 16:  # what torch._int_mm asks for
                signs = torch.where(x >= 0, 1, -1).to(torch.int8)
                weight = torch.where(layers[0].weight >= 0, 1, -1).to(torch.int8).t()
                engines["int8 _int_mm, signs given"] = partial(torch._int_mm, signs, weight)
            return engines
        return {"int8 static": _static_conv(layers[0], x)}


def _static_network(model: nn.Module, x: Tensor) -> Callable[[], object]:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)  # the ranges of its values
    return partial(convert_fx(prepared), x)


def _static_conv(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    assert isinstance(layer, nn.Conv2d)
    weight = torch.quantize_per_tensor(layer.weight.detach(), 0.01, 0, torch.qint8)
    prepared = torch.ops.quantized.conv2d_prepack(
        weight, None, layer.stride, layer.padding, layer.dilation, 1
    )
    images = x.contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        given = torch.quantize_per_tensor(images, 0.05, 64, torch.quint8)
        return torch.ops.quantized.conv2d(given, prepared, 0.05, 64).dequantize()

    return run


def _rounds(
    calls: dict[str, Callable[[], object]], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Milliseconds of each engine in each round."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if threads > 1:
                time.sleep(QUIET)
                until = time.perf_counter() + SECONDS
                while time.perf_counter() < until:  # the core has to get up to speed again
                    call()
            repeats = max(3, min(300, round(SECONDS / max(1e-6, _seconds(call, clock)))))
            spent = [_seconds(call, clock) for _ in range(repeats)]
            times[name].append(1e3 * statistics.median(spent))
    return times


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
