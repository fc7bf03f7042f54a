"""What deployment says: how much smaller, how much faster, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rectified.report import Part, Table, Text, Verdict

WAYS = {
    "dense": "dense, PyTorch",
    "compact": "without empty channels, PyTorch",
    "lean": "lean: compact and sparse",
    "onnxruntime": "compact, onnxruntime",
}
Row = Mapping[str, Any]


def parts(deployment: Row) -> Iterator[Part]:
    """Cards and tables for the report.

    Args:
        deployment: the fields of `rectified.jobs.deploy.Deployment`.
    """
    sizes = deployment["sizes"]
    yield Verdict(
        f"{sizes['bytes_dense'] / sizes['bytes_lean']:.1f} times smaller on disk",
        f"{sizes['bytes_dense']:,} bytes of dense weights, {sizes['bytes_lean']:,} in "
        f"lean.safetensors. Outputs differ by at most {sizes['max_abs_difference']:.1e}.",
        "gain" if sizes["bytes_lean"] < sizes["bytes_dense"] else "loss",
    )
    yield from (_speed(batch, times) for batch, times in sizes["milliseconds"].items())
    yield _times(sizes["milliseconds"])
    yield _parameters(deployment["parameters"])
    yield _layers(deployment["layers"])
    yield Text(tuple(f"{note[0].upper()}{note[1:]}." for note in deployment["notes"]))


def lines(deployment: Row) -> list[str]:
    """The same for the terminal, in a few lines."""
    sizes = deployment["sizes"]
    said = [
        f"\ndeployed: {sizes['bytes_dense']:,} bytes dense, {sizes['bytes_lean']:,} lean "
        f"({sizes['bytes_dense'] / sizes['bytes_lean']:.1f}x smaller), outputs within "
        f"{sizes['max_abs_difference']:.1e}"
    ]
    for batch, times in sizes["milliseconds"].items():
        shown = ", ".join(f"{way} {time:.3f} ms" for way, time in times.items())
        said.append(f"  {batch.replace('_', ' ')}: {shown}")
    return said


def _speed(batch: str, times: Mapping[str, float]) -> Verdict:
    ratio = times["dense"] / times["lean"]
    others = {way: time for way, time in times.items() if way != "lean"}
    best = min(others, key=others.__getitem__)
    return Verdict(
        f"{ratio:.1f} times the dense speed at {batch.replace('_', ' ')}",
        f"{times['lean']:.3f} ms against {times['dense']:.3f} ms dense; the fastest other way is "
        f"{WAYS[best]} with {others[best]:.3f} ms.",
        "gain" if ratio > 1.05 else "neutral",
    )


def _times(milliseconds: Mapping[str, Mapping[str, float]]) -> Table:
    ways = list(next(iter(milliseconds.values())))
    columns = ("way to run", *(f"ms, {batch.replace('_', ' ')}" for batch in milliseconds))
    rows: list[list[str | float]] = [
        [WAYS[way], *(times[way] for times in milliseconds.values())] for way in ways
    ]
    return Table(
        "Time of the whole network",
        columns,
        rows,
        note="Medians, the ways taking turns on this machine.",
        formats=dict.fromkeys(columns[1:], ".3f"),
    )


def _parameters(counts: Mapping[str, int]) -> Table:
    rows = [
        ("at full size", counts["dense"]),
        ("without empty channels", counts["compact"]),
        ("of these, not zero", counts["nonzero"]),
    ]
    return Table("Parameters", ("network", "parameters"), rows, formats={"parameters": ",d"})


def _layers(layers: list[Row]) -> Table:
    batches = list(dict.fromkeys(batch for layer in layers for batch in layer.get("engines", {})))
    rows = [
        (
            layer["name"],
            _shrunk(layer.get("inputs")),
            _shrunk(layer.get("outputs")),
            layer.get("density"),
            *(cell for batch in batches for cell in _engines(layer, batch)),
            "; ".join(filter(None, (layer.get("stays"), layer.get("reason")))),
        )
        for layer in layers
    ]
    shown = [batch.replace("_", " ") for batch in batches]
    measured = [name for batch in shown for name in (f"engine, {batch}", f"ms, {batch}")]
    columns = ("layer", "inputs", "outputs", "density", *measured, "remark")
    return Table(
        "Layer by layer",
        columns,
        rows,
        note=(
            "Inputs and outputs before and after compaction; the engine that is fastest for the "
            "layer alone, and the time of each, onnxruntime's beside them. Inside a sparse network "
            "a layer costs less: it pays for no call of its own."
        ),
        formats={"density": ".2%"},
    )


def _engines(layer: Row, batch: str) -> tuple[str | None, str | None]:
    times = layer.get("milliseconds", {}).get(batch)
    return layer.get("engines", {}).get(batch), _each(times)


def _shrunk(sizes: tuple[int, int] | None) -> str | None:
    return None if sizes is None else f"{sizes[0]} → {sizes[1]}"


def _each(milliseconds: Mapping[str, float] | None) -> str | None:
    if not milliseconds:
        return None
    return ", ".join(f"{engine} {time:.3f}" for engine, time in milliseconds.items())
