"""Readers of files that one verb has: packed networks, pairs, points, chains, pipelines, flows.

A row whose name begins with `malicious` is of a file whose tensors are right and whose header
somebody made.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rectified.binary import STE, BinaryLinear, convert
from rectified.data.points import read_points
from rectified.flow.pairs import PairStore
from rectified.inference.bits import load_packed, pack, save_packed
from rectified.jobs import JOBS, job_of
from rectified.jobs.flow.networks import load_field
from rectified.jobs.report import combined
from rectified.jobs.values import from_settings
from rectified.models import VelocityMLP, cnn
from rectified.runs import read_config, read_results, write_config
from tests.torture import material
from tests.torture.reader import Reader, parted, with_header, written

# ---- settings


def _configs(folder: Path) -> list[bytes]:
    made = []
    for verb in JOBS:
        settings = asdict(job_of(verb).default)
        made.append(written(lambda path, v=verb, s=settings: write_config(path, v, s))(folder))
    return made


def _read_config(path: Path) -> None:
    verb, settings = read_config(path)
    base = job_of(verb if verb in JOBS else "flow")
    job = base.of(settings)
    job.resolve(from_settings(type(job.default), settings, source=str(path)))


# ---- results


def _results(_: Path) -> list[bytes]:
    return [(folder / "results.json").read_bytes() for folder in material.finished()]


def _read_results(path: Path) -> None:
    """Results of any verb, beside the details of a run of that verb."""
    try:
        verb = read_results(path.parent)["verb"]
    finally:
        (path.parent / "details.json").unlink(missing_ok=True)
    for folder in material.finished():
        if read_results(folder)["verb"] == verb and (folder / "details.json").exists():
            shutil.copy(folder / "details.json", path.parent)
    combined([path.parent])


# ---- 1-bit networks


@cache
def _packed_networks() -> tuple[Any, ...]:
    torch.manual_seed(0)
    convolutions = cnn(num_classes=2, in_channels=1, image_size=(4, 4), widths=(2, 3))
    linear = nn.Sequential(BinaryLinear(9, 5), nn.BatchNorm1d(5), BinaryLinear(5, 2))
    return (pack(convert(convolutions.eval(), estimator=STE)), pack(linear.eval()))


def _packed(folder: Path) -> list[bytes]:
    return [
        written(lambda path, one=one: save_packed(one, path))(folder) for one in _packed_networks()
    ]


def _packed_header(folder: Path) -> list[bytes]:
    _, header = parted(folder, lambda path: save_packed(_packed_networks()[0], path))
    unfolded = {k: json.loads(v) if v[:1] in "{[" else v for k, v in header.items()}
    return [json.dumps(unfolded).encode()]


def _read_packed(path: Path) -> None:
    network = load_packed(path)
    for inputs in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 9)):
        with contextlib.suppress(Exception):  # of another shape, say: but no memory is overrun
            network(inputs)


def _read_packed_header(path: Path) -> None:
    tensors, _ = parted(path.parent, lambda made: save_packed(_packed_networks()[0], made))
    made = with_header(path, tensors)
    if made is not None:
        _read_packed(made)


# ---- flows: points, pairs, networks


def _tables(folder: Path) -> list[bytes]:
    points = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    wide = [written(lambda p: np.save(p, points), "made.npy")(folder)]
    wide.append(written(lambda p: np.save(p, points.astype(">f8").T), "made.npy")(folder))
    return wide


def _texts(_: Path) -> list[bytes]:
    return [b"x,y\n1,2\n-3.5,4e2\n0,0\n", b"1,2,3\n4,5,6\n"]


def _store(folder: Path, **options: Any) -> PairStore:
    return PairStore(folder, count=6, shard=4, seed=3, identity={"model": "m"}, **options)


def _filled_store(folder: Path) -> PairStore:
    shutil.rmtree(folder, ignore_errors=True)
    store = _store(folder)
    for index in range(store.shards):
        rows = store.size(index)
        store.write(index, {"x1": torch.ones(rows, 2), "label": torch.arange(rows)})
    return store


def _shards(folder: Path) -> list[bytes]:
    return [_filled_store(folder / "pairs").path(index).read_bytes() for index in (0, 1)]


def _read_shard(path: Path) -> None:
    store = _filled_store(path.parent / "pairs")
    store.path(0).write_bytes(path.read_bytes())
    _store(store.folder).load()


def _stores(folder: Path) -> list[bytes]:
    return [(_filled_store(folder / "pairs").folder / "store.json").read_bytes()]


def _read_store(path: Path) -> None:
    store = _filled_store(path.parent / "pairs")
    (store.folder / "store.json").write_bytes(path.read_bytes())
    _store(store.folder).load()


def _flow(path: Path) -> None:
    from safetensors.torch import save_file

    about = {"model": "mlp", "shape": "2", "classes": "0", "path": "straight"}
    torch.manual_seed(0)
    save_file(VelocityMLP(2).state_dict(), path, {**about, "predict": "velocity"})


def _flow_header(folder: Path) -> list[bytes]:
    return [json.dumps(parted(folder, _flow)[1]).encode()]


def _read_flow_header(path: Path) -> None:
    made = with_header(path, parted(path.parent, _flow)[0])
    if made is not None:
        load_field(made)


# ---- proteins


def _structure(*, kind: str) -> Any:
    import gemmi

    from rectified.protein.structure_files import pdb_text
    from tests.protein.conftest import helix

    text = pdb_text([helix(6)], sequence="ACDEFG")
    if kind == "pdb":
        return text.encode()
    structure = gemmi.read_pdb_string(text)
    structure.setup_entities()
    return structure.make_mmcif_document().as_string().encode()


def _read_structure(path: Path) -> None:
    from rectified.protein.structure_files import ChainRules, read_structure

    read_structure(path, ChainRules(3, 512))


def _read_compressed(path: Path) -> None:
    other = path.with_name("packed.pdb.gz")
    other.write_bytes(path.read_bytes())
    _read_structure(other)


def _sets(_: Path) -> list[bytes]:
    plain = material.chains().read_bytes()
    arrays = dict(np.load(material.chains()))
    return [plain, written(lambda p: np.savez(p, **arrays), "made.npz")(material.place())]


def _read_set(path: Path) -> None:
    from rectified.protein.chain_sets import load_chains
    from rectified.protein.structure_files import ChainRules

    load_chains(path, ChainRules(3, 512))


@cache
def _protein_network() -> Any:
    from rectified.protein.model import FlowModel
    from tests.protein.conftest import SMALL

    torch.manual_seed(0)
    return FlowModel(SMALL)


def _lightning(folder: Path) -> list[bytes]:
    state = {f"model.{k}": v for k, v in _protein_network().state_dict().items()}
    return [
        written(lambda p: torch.save({"state_dict": state, "epoch": 3, "hyper": {"a": (1,)}}, p))(
            folder
        )
    ]


def _pickles(folder: Path) -> list[bytes]:
    """The pickle of a checkpoint, and one without tensors."""
    import pickle
    import zipfile

    (folder / "whole.ckpt").write_bytes(_lightning(folder)[0])
    with zipfile.ZipFile(folder / "whole.ckpt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        found = archive.read(name)
    return [found, pickle.dumps({"state_dict": {"model.x": [1, {2}, (3.5, None)]}}, protocol=2)]


def _read_pickle(path: Path) -> None:
    """The same archive with another pickle, whose checksum is right."""
    import zipfile

    whole = path.parent / "whole.ckpt"
    if not whole.exists():
        whole.write_bytes(_lightning(path.parent)[0])
    made = path.with_suffix(".ckpt")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(made, "w") as archive:
        for name in source.namelist():
            content = path.read_bytes() if name.endswith("data.pkl") else source.read(name)
            archive.writestr(name, content)
    _read_checkpoint(made)


def _read_checkpoint(path: Path) -> None:
    from rectified.protein.checkpoints import load_checkpoint

    load_checkpoint(path)


def _protein(path: Path) -> None:
    from rectified.protein.checkpoints import save_checkpoint

    save_checkpoint(_protein_network(), path)


def _protein_header(folder: Path) -> list[bytes]:
    _, header = parted(folder, _protein)
    return [
        json.dumps({k: json.loads(v) if v[:1] == "{" else v for k, v in header.items()}).encode()
    ]


def _read_protein_header(path: Path) -> None:
    made = with_header(path, parted(path.parent, _protein)[0])
    if made is not None:
        _read_checkpoint(made)


# ---- pipelines

_PARTS = {
    "index": "model_index.json",
    "unet": "unet/config.json",
    "schedule": "scheduler/scheduler_config.json",
    "weights": "unet/diffusion_pytorch_model.safetensors",
}


def _pipeline_reader(part: str) -> Reader:
    """One file of a pipeline's folder, the others being whole."""
    place = _PARTS[part]

    def valid(_: Path) -> list[bytes]:
        return [(material.pipeline() / place).read_bytes()]

    def read(path: Path) -> None:
        from rectified.flow.pipelines import load_pipeline, pipeline_field, sample_shape

        folder = path.parent / "pipeline"
        if not folder.exists():
            shutil.copytree(material.pipeline(), folder)
        shutil.copy(material.pipeline() / place, folder / place)
        (folder / place).write_bytes(path.read_bytes())
        pipeline = load_pipeline(str(folder))
        pipeline_field(pipeline)
        sample_shape(pipeline)

    name = f"part{Path(place).suffix}"
    return Reader(name, valid, read, part != "weights", ("diffusers", "transformers"), every=5)


VERB_READERS = {
    "results_of_verbs": Reader(
        *("results.json", _results, _read_results, True),
        needs=("diffusers", "transformers", "gemmi", "biotite"),
        every=50,
    ),
    "settings": Reader("config.yaml", _configs, _read_config, text=True),
    "packed": Reader("packed.safetensors", _packed, _read_packed, needs=("numba",)),
    "malicious_packed": Reader(
        "packed.json", _packed_header, _read_packed_header, text=True, needs=("numba",)
    ),
    "points": Reader("points.npy", _tables, read_points),
    "points_text": Reader("points.csv", _texts, read_points, text=True),
    "pair_shard": Reader("shard.bin", _shards, _read_shard),
    "pair_store": Reader("facts.json", _stores, _read_store, text=True),
    "flow": Reader("model.safetensors", lambda f: [written(_flow)(f)], load_field),
    "malicious_flow": Reader("model.json", _flow_header, _read_flow_header, text=True),
    "pdb": Reader(
        "chain.pdb", lambda _: [_structure(kind="pdb")], _read_structure, True, ("gemmi",)
    ),
    "mmcif": Reader(
        "chain.cif", lambda _: [_structure(kind="cif")], _read_structure, True, ("gemmi",)
    ),
    "pdb_gzip": Reader(
        "chain.gz",
        lambda _: [gzip.compress(_structure(kind="pdb"), mtime=0)],
        _read_compressed,
        needs=("gemmi",),
    ),
    "chains": Reader("chains.npz", _sets, _read_set, needs=("gemmi",)),
    "lightning": Reader("epoch.ckpt", _lightning, _read_checkpoint),
    "malicious_lightning": Reader("data.pkl", _pickles, _read_pickle),
    "protein": Reader("model.safetensors", lambda f: [written(_protein)(f)], _read_checkpoint),
    "malicious_protein": Reader("model.json", _protein_header, _read_protein_header, text=True),
    **{f"pipeline_{part}": _pipeline_reader(part) for part in _PARTS},
}
