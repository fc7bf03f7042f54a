"""Published ReQFlow checkpoints, read without running anything in them.

A run of the reference leaves `config.yaml` and a Lightning checkpoint `NAME.ckpt`: a zip archive
whose pickle holds the weights as `state_dict`, under names with the prefix `model.`, beside the
settings as OmegaConf objects. A pickle is a program: it may import any function and call it. Here
it is read by an unpickler that knows tensors and plain containers; every other class it names is
replaced by an empty stand-in, whatever its name, and no function of that name is ever looked up.

Names and shapes must fit one to one. Sizes are inferred from the shapes; what shapes do not tell
(the transformer's heads, how the residue's features are split) is taken from `config.yaml` if it is
there, else from the published settings. The same network has FrameFlow's weights, which differ in
size alone.

Weights of ours are safetensors, with the sizes as metadata.
"""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import re
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from rectified.errors import UserError, first_line
from rectified.files import check_archive, from_json, read_tensors, with_no_weights, write_tensors
from rectified.protein.model import FlowModel, ModelSizes

PREFIX = "model."
SIZES_KEY = "sizes"  # of the metadata in a safetensors file

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LARGEST_CONFIG = 1_000_000  # bytes; the published ones have 4 kB


class Stub:
    """Stands for an object of a class that is not loaded: it takes anything, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Stub:
        """An empty object."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __call__(self, *_: Any, **__: Any) -> Stub:
        """Take anything."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget an entry."""

    def __hash__(self) -> int:
        """By identity: a stub may be a key."""
        return id(self)

    def append(self, value: Any) -> None:
        """Forget an entry."""

    def extend(self, values: Any) -> None:
        """Forget entries."""

    def add(self, value: Any) -> None:
        """Forget an entry."""


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Do as `torch._utils._rebuild_tensor_v2`, within the bounds of the storage."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    is_beyond = 0 not in size and (last >= len(storage) or math.prod(size) > len(storage))
    if min((offset, *size, *stride)) < 0 or is_beyond:
        raise UserError("a tensor reaches beyond its data: the checkpoint is damaged")
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Storage:
    """A storage's type, as a pickle names it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: defaultdict(),  # a factory would be called later
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "str"): str,
    **{("torch", name): _Storage(dtype) for name, dtype in _STORAGES.items()},
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads tensors and plain containers; every other name becomes a `Stub`.

    Args:
        file: the pickle.
        archive: the zip archive that holds the tensors' data.
        root: the folder inside it.
    """

    def __init__(self, file: Any, archive: ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A known class, or a stand-in; nothing is imported."""
        known = _KNOWN.get((module, name))
        return known if known is not None else type(name.rpartition(".")[2] or "Stub", (Stub,), {})

    def persistent_load(self, pid: Any) -> Any:
        """The data of a tensor, as a flat tensor."""
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not re.fullmatch(r"\w+", key):
            raise UserError("the checkpoint stores tensors in a way that is not known")
        if key not in self.storages:
            data = self.archive.read(f"{self.root}/data/{key}")
            size = torch.empty((), dtype=storage.dtype).element_size()
            if len(data) != count * size:
                raise UserError(f"tensor data {key} is {len(data)} bytes, not {count * size}")
            buffer = bytearray(data)
            self.storages[key] = (
                torch.frombuffer(buffer, dtype=storage.dtype)
                if buffer
                else torch.empty(0, dtype=storage.dtype)
            )
        return self.storages[key]


def read_lightning(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint: tensors and plain values, and stubs for the rest.

    Raises:
        UserError: if the file is no such checkpoint, or is damaged.
    """
    try:
        check_archive(path, stored=True)
        with ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(inside) != 1:
                raise UserError(f"{path} is not a PyTorch checkpoint: it has no data.pkl")
            root = inside[0].rpartition("/")[0]
            _check_pickle(archive.read(inside[0]))
            with archive.open(inside[0]) as file:
                found = RestrictedUnpickler(file, archive, root).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (
        *(OSError, BadZipFile, pickle.UnpicklingError, KeyError, ValueError, TypeError),
        *(EOFError, AttributeError, IndexError, RuntimeError, AssertionError, OverflowError),
        *(NotImplementedError, MemoryError, zlib.error),
    ) as error:
        raise UserError(
            f"{path} is damaged or not a Lightning checkpoint ({first_line(error)})"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    return found


def _check_pickle(content: bytes) -> None:
    """See that a pickle asks for no more memory than it has bytes.

    A few of them can make the memo of Python's unpickler, or an empty bytearray, gigabytes long.

    Raises:
        ValueError: if it does, or ends before it should.
    """
    for number, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number:
            raise ValueError(f"it remembers object {argument} after {number} steps")


def load_checkpoint(path: Path | str) -> FlowModel:
    """A network with published weights, or with weights of ours.

    Args:
        path: a folder with `config.yaml` and one `.ckpt`, the `.ckpt`, a `.safetensors` file of
            ours, or the folder of a run.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: if there is no checkpoint, it is damaged, or names or shapes do not fit.
    """
    path = _checkpoint_file(Path(path))
    if path.suffix == ".safetensors":
        return _load_ours(path)
    state = {
        name.removeprefix(PREFIX): value.float()
        for name, value in read_lightning(path)["state_dict"].items()
        if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, Tensor)
    }
    if not state:
        raise UserError(f"{path}: no weight's name begins with {PREFIX!r}")
    return _filled(infer_sizes(state, _settings_beside(path), source=path), state, path)


def _checkpoint_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"no checkpoint at {path}: give a folder with config.yaml and a .ckpt")
        return path
    for pattern in ("model.safetensors", "*.ckpt"):
        files = sorted(path.glob(pattern))
        if len(files) > 1:
            raise UserError(f"{path} holds {len(files)} checkpoints: name one of them")
        if files:
            return files[0]
    raise UserError(f"{path} holds neither a .ckpt nor a model.safetensors")


def infer_sizes(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], *, source: Path
) -> ModelSizes:
    """The sizes of a network from the shapes of its weights.

    Args:
        state: weights by name.
        settings: the `model` part of a config.yaml, or nothing.
        source: of the weights, for messages.

    Raises:
        UserError: if weights are missing or their shapes contradict one another.
    """

    def rows(name: str) -> int:
        if name not in state:
            raise UserError(f"{source}: {name} is missing; these are not ReQFlow's weights")
        return state[name].shape[0]

    first = "trunk.ipa_0."
    heads, node = rows(f"{first}head_weights"), rows("trunk.ipa_ln_0.weight")
    query_points = rows(f"{first}linear_q_points.weight") // (3 * heads)
    both = rows(f"{first}linear_kv_points.weight") // (3 * heads)
    rows("node_feature_net.linear.weight")
    width = state["node_feature_net.linear.weight"].shape[1] - 1
    time = int(_setting(settings, "node_features.c_timestep_emb", width // 3))
    count = "trunk.seq_tfmr_0.layers.{}.linear1.weight".format
    return ModelSizes(
        node=node,
        pair=rows("edge_feature_net.edge_embedder.4.weight"),
        position=width - 2 * time,
        time=time,
        feature=rows("edge_feature_net.linear_s_p.weight"),
        hidden=rows(f"{first}linear_q.weight") // heads,
        heads=heads,
        query_points=query_points,
        value_points=both - query_points,
        sequence_heads=int(_setting(settings, "ipa.seq_tfmr_num_heads", 4)),
        sequence_layers=sum(count(n) in state for n in range(64)),
        blocks=sum(f"trunk.ipa_{n}.head_weights" in state for n in range(256)),
        bias=state.get(
            "trunk.edge_transition_0.initial_embed.weight", torch.empty(node // 2)
        ).shape[0],
    )


def _settings_beside(path: Path) -> Mapping[str, Any]:
    """The `model` settings of the config.yaml beside a checkpoint."""
    import yaml

    file = path.parent / "config.yaml"
    if not file.is_file():
        return {}
    if file.stat().st_size > _LARGEST_CONFIG:
        raise UserError(f"{file} is too large for a file of settings")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a YAML file ({first_line(error)})") from error
    return _dict(_dict(found).get("model"))


def _setting(settings: Mapping[str, Any], name: str, default: int) -> int:
    """A number by its dotted name; `${model.a.b}` is looked up, anything else is the default."""
    value: Any = settings
    for part in name.split("."):
        value = _dict(value).get(part)
    for _ in range(8):  # references to references end somewhere
        found = re.fullmatch(r"\$\{model\.([\w.]+)\}", value) if isinstance(value, str) else None
        if not found:
            break
        value = settings
        for part in found[1].split("."):
            value = _dict(value).get(part)
    return value if isinstance(value, int) and value > 0 else default


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _filled(sizes: ModelSizes, state: Mapping[str, Tensor], source: Path) -> FlowModel:
    """The network with these weights: all of them, and no others."""
    expected = with_no_weights(lambda: FlowModel(sizes))
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights, among them {missing[0]}")
    if extra:
        raise UserError(f"{source} has {len(extra)} weights too many, among them {extra[0]}")
    for name, shape in expected.items():
        if shape != tuple(state[name].shape):
            raise UserError(
                f"{source}: {name} must be {list(shape)}, got {list(state[name].shape)}"
            )
    model = FlowModel(sizes)
    model.load_state_dict(dict(state))
    return model.eval()


def metadata(model: FlowModel) -> dict[str, str]:
    """The metadata of a safetensors file of ours, about its weights."""
    return {"format": "pt", SIZES_KEY: json.dumps(asdict(model.sizes))}


def save_checkpoint(model: FlowModel, path: Path | str) -> None:
    """Write weights and sizes as safetensors."""
    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    write_tensors(Path(path), weights, metadata(model))


def _load_ours(path: Path) -> FlowModel:
    try:
        state, about = read_tensors(path)
        sizes = from_json(about[SIZES_KEY])
        known = {field.name for field in fields(ModelSizes)}
        sizes = ModelSizes(**{name: int(value) for name, value in sizes.items() if name in known})
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is damaged, or not weights of a protein flow ({error})") from error
    return _filled(sizes, state, path)
