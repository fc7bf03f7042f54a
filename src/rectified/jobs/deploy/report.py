"""The report of a deployment: how much smaller, how much faster, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rectified.report import Column, Section, Table, Text, Verdict
from rectified.report.page import Cell

WAYS = {
    "dense": "dense, PyTorch",
    "compact": "without empty channels, PyTorch",
    "lean": "lean: compact and sparse",
    "onnxruntime": "compact, onnxruntime",
}
Row = Mapping[str, Any]


def sections(deployment: Row) -> Iterator[Section]:
    """The sections of a deployment.

    Args:
        deployment: the fields of `rectified.jobs.deploy.Deployment`.
    """
    sizes = deployment["sizes"]
    times = sizes["milliseconds"]
    speeds = (_speed(batch, of_ways) for batch, of_ways in times.items())
    yield Section("Deployment", (_size(sizes), *speeds, _times(times)), is_brief=True)
    remarks = Text(tuple(f"{note[0].upper()}{note[1:]}." for note in deployment["notes"]))
    layers = (_parameters(deployment["parameters"]), _layers(deployment["layers"]), remarks)
    yield Section("Deployment, layer by layer", layers)


def _size(sizes: Row) -> Verdict:
    return Verdict(
        f"{sizes['bytes_dense'] / sizes['bytes_lean']:.1f} times smaller on disk",
        f"{sizes['bytes_dense']:,} bytes of dense weights, {sizes['bytes_lean']:,} in "
        f"lean.safetensors. Outputs differ by at most {sizes['max_abs_difference']:.1e}.",
        "gain" if sizes["bytes_lean"] < sizes["bytes_dense"] else "loss",
    )


def _speed(batch: str, times: Mapping[str, float]) -> Verdict:
    ratio = times["dense"] / times["lean"]
    others = {way: time for way, time in times.items() if way != "lean"}
    best = min(others, key=others.__getitem__)
    return Verdict(
        f"{ratio:.1f} times the dense speed at {_words(batch)}",
        f"{times['lean']:.3f} ms against {times['dense']:.3f} ms dense; the fastest other way is "
        f"{_way(best)} with {others[best]:.3f} ms.",
        "gain" if ratio > 1.05 else "neutral",
    )


def _times(milliseconds: Mapping[str, Mapping[str, float]]) -> Table:
    batches = [Column(_words(batch), "ms", "lower", 3) for batch in milliseconds]
    rows: list[tuple[Cell, ...]] = [
        (_way(way), *(times[way] for times in milliseconds.values()))
        for way in next(iter(milliseconds.values()))
    ]
    return Table(
        "Time of the whole network",
        ("way to run", *batches),
        rows,
        note="Medians, the ways taking turns on this machine.",
    )


def _parameters(counts: Mapping[str, int]) -> Table:
    rows = [
        ("at full size", counts["dense"]),
        ("without empty channels", counts["compact"]),
        ("of these, not zero", counts["nonzero"]),
    ]
    return Table("Parameters", ("network", Column("parameters", digits=0)), rows)


def _layers(layers: Sequence[Row]) -> Table:
    batches = list(dict.fromkeys(batch for layer in layers for batch in layer.get("engines", {})))
    rows = [
        (
            layer["name"],
            _shrunk(layer.get("inputs")),
            _shrunk(layer.get("outputs")),
            layer.get("density"),
            *(cell for batch in batches for cell in _engine(layer, batch)),
            "; ".join(filter(None, (layer.get("stays"), layer.get("reason")))),
        )
        for layer in layers
    ]
    measured = [f"{what}, {_words(batch)}" for batch in batches for what in ("engine", "ms")]
    return Table(
        "Layer by layer",
        ("layer", "inputs", "outputs", Column("density", "%"), *measured, "remark"),
        rows,
        note=(
            "Inputs and outputs before and after compaction; the engine that is fastest for the "
            "layer alone, and the time of each, onnxruntime's beside them. Inside a sparse network "
            "a layer costs less: it pays for no call of its own."
        ),
    )


def _engine(layer: Row, batch: str) -> tuple[str | None, str | None]:
    times = layer.get("milliseconds", {}).get(batch)
    each = ", ".join(f"{engine} {time:.3f}" for engine, time in (times or {}).items())
    return layer.get("engines", {}).get(batch), each or None


def _shrunk(sizes: Sequence[int] | None) -> str | None:
    return None if sizes is None else f"{sizes[0]} → {sizes[1]}"


def _words(batch: str) -> str:
    return batch.replace("_", " ")


def _way(name: str) -> str:
    return WAYS.get(name, name)
