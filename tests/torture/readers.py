"""Every reader of files that may come from anybody, as a table: what it reads, and valid inputs.

Those that one verb alone has stand in `readers_of_verbs`. A reader joins by a row.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from rectified.data import load_images
from rectified.files import write_tensors
from rectified.inference.sparse import load_sparse, save_sparse
from rectified.jobs import job_of
from rectified.jobs.classifiers import load_weights
from rectified.jobs.deploy import load_lean
from rectified.jobs.report import combined
from rectified.jobs.sweep.grid import points
from rectified.jobs.values import from_settings
from rectified.models import mlp
from rectified.runs import checkpoint, load_tree, read_config, read_results, save_tree, write_config
from tests.torture.reader import Reader, written
from tests.torture.readers_of_verbs import VERB_READERS

PruneConfig = type(job_of("prune").default)


def _configs(folder: Path) -> list[bytes]:
    whole = written(lambda path: write_config(path, "prune", asdict(PruneConfig())))(folder)
    return [whole, b"verb: prune\nscore: [lamp]\nrate: 0.5\nseed: 3\nmodel: a:b\n"]


def _read_config(path: Path) -> None:
    _, settings = read_config(path)
    from_settings(PruneConfig, settings, source=str(path))


def _results(_: Path) -> list[bytes]:
    row = {"seed": 0, "score": "magnitude", "ap": "off", "cycle": 0, "density": 1.0}
    row |= {"accuracy": 0.5, "loss": 1.0, "dynamic_dnr": 0.1, "static_dnr": None, "seconds": 1.0}
    summary = {"score": "magnitude", "ap": "off", "cycle": 0, "density": 1.0, "n": 1}
    summary |= {"accuracy_mean": 0.5, "accuracy_ci95": None, "dynamic_dnr_mean": 0.1}
    found = {"config": {"data": "digits", "of": "prune", "grid": "seed=0", "settings": {}}}
    found |= {"environment": {"command": "x"}, "rows": [row], "summary": [summary]}
    sweep = {"runs": [{"run": "a", "seed": 0}], "failed": [], "verb": "sweep"}
    plain = {"verb": "scatter", **found}
    return [json.dumps(one).encode() for one in (plain, {**found, **sweep}, {**plain, "rows": []})]


def _read_results(path: Path) -> None:
    read_results(path.parent)
    combined([path.parent])


def _trees(folder: Path) -> list[bytes]:
    tree = {"rows": [{"a": 1.5, "b": None}], "state": {"w": torch.arange(6.0).view(2, 3)}, 3: "x"}
    return [written(lambda path, one=one: save_tree(path, one))(folder) for one in (tree, [1, {}])]


def _skeletons(_: Path) -> list[bytes]:
    tree = {"dict": [[{"value": "a"}, {"list": [{"tensor": "t0"}, {"value": 1.5}]}]]}
    return [json.dumps(tree).encode(), b'{"value": null}']


def _read_skeleton(path: Path) -> None:
    """A checkpoint whose hash is right, whatever else is wrong: not damage, but malice."""
    skeleton = path.read_bytes().decode("utf-8", "replace")
    tensors = {"t0": torch.arange(3.0)}
    made = path.with_suffix(".safetensors")
    about = {"tree": skeleton, "sha256": checkpoint._hash(skeleton, tensors)}
    write_tensors(made, tensors, about)
    load_tree(made)


def _sparse(folder: Path) -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 30, generator=generator)
    states = [
        {"w": weights * (torch.rand(40, 30, generator=generator) < d), "n": torch.arange(3)}
        for d in (0.01, 0.3, 1.0)
    ]
    return [written(lambda path, one=one: save_sparse(one, path))(folder) for one in states]


def _weights(folder: Path) -> list[bytes]:
    from safetensors.torch import save

    state = mlp(num_classes=2, image_size=(2, 2), in_channels=1, widths=(3,)).state_dict()
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return [save(state), buffer.getvalue(), legacy.getvalue()]


def _read_weights(path: Path) -> None:
    network = mlp(num_classes=2, image_size=(2, 2), in_channels=1, widths=(3,))
    content = path.read_bytes()
    for suffix in (".safetensors", ".pt"):
        if (suffix == ".pt") == (content[:1] in (b"P", b"\x80")):
            other = path.with_suffix(suffix)
            other.write_bytes(content)
            load_weights(network, other)


def _lean(_: Path) -> list[bytes]:
    about = {"model": "mlp", "num_classes": 2, "in_channels": 1, "image_size": [2, 2]}
    return [json.dumps({**about, "norm": False}).encode()]


def _read_lean(path: Path) -> None:
    weights = path.parent / "lean.safetensors"
    if not weights.exists():
        save_sparse(mlp(num_classes=2, image_size=(2, 2), in_channels=1), weights)
    load_lean(path.parent)


def _pictures(_: Path) -> list[bytes]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    made = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        made.append(buffer.getvalue())
    return made


def _read_picture(path: Path) -> None:
    from PIL import Image

    for name in ("train/a/1.png", "train/b/1.png", "train/a/2.png", "train/b/2.png"):
        other = path.parent / "set" / name
        if not other.exists():
            other.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(other)
    (path.parent / "set" / "train" / "a" / "1.png").write_bytes(path.read_bytes())
    load_images(str(path.parent / "set"))


def _parquets(folder: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = _pictures(folder)[0]
    table = {"img": [{"bytes": png, "path": None}] * 8, "label": [0, 1] * 4}
    names = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    plain = pa.table(table)
    named = plain.replace_schema_metadata({b"huggingface": json.dumps(names).encode()})
    write = [
        lambda path: pq.write_table(plain, path),
        lambda path: pq.write_table(named, path, compression="gzip", row_group_size=3),
    ]
    return [written(one)(folder) for one in write]


def _read_grid(path: Path) -> None:
    points(path.read_bytes().decode("utf-8", "replace"), PruneConfig)


READERS = {
    "config": Reader("config.yaml", _configs, _read_config, text=True),
    "results": Reader("results.json", _results, _read_results, text=True),
    "checkpoint": Reader("study.safetensors", _trees, load_tree),
    "malicious_checkpoint": Reader("tree.json", _skeletons, _read_skeleton, text=True),
    "sparse": Reader("lean.safetensors", _sparse, load_sparse),
    "weights": Reader("weights.bin", _weights, _read_weights),
    "lean": Reader("lean.json", _lean, _read_lean, text=True),
    "picture": Reader("picture.png", _pictures, _read_picture),
    "parquet": Reader(
        "train.parquet", _parquets, lambda path: load_images(str(path), validation=0.0)
    ),
    "grid": Reader(
        "grid.txt", lambda _: [b"score=magnitude,lamp seed=0..9 ap=off+lite"], _read_grid, text=True
    ),
    **VERB_READERS,
}
