"""A GPU that is not there: CPU tensors marked `cuda`, with the rules of a real one.

    with Pretend() as gpu:          # "cuda" is a device; its data stay in main memory
        step()                      # raises MixedDevices where a real GPU would refuse
    gpu.waits                       # Counter: what made the host wait, and in which line

A mark belongs to a storage, so that views share it. Python sees `cuda` wherever it asks for a
device; operations run on the CPU, and their results are marked as a GPU's would lie. Refused is
what stops a real run: CPU and GPU tensors in one operation, a CPU generator for a draw on the GPU,
`.numpy()`. Counted is what makes the host wait: `.item()`, copies between host and device,
`nonzero` and masks as indices. It knows no kernels, no speed, no memory and no graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from re import fullmatch
from traceback import walk_stack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from rectified import seeds

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_aten = torch.ops.aten
_WAITS = {  # the host must know a number before it can go on
    *(_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.bincount, _aten.equal),
    *(_aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave),
    *(_aten.is_nonzero, _aten.linalg_eigh, _aten._linalg_svd, _aten._linalg_eigh),
}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten.copy_, _aten._to_copy, _aten._foreach_copy_}
_CUDA_SAYS = {
    **dict.fromkeys(("is_available", "is_bf16_supported", "is_initialized"), True),
    **dict.fromkeys(("set_rng_state", "manual_seed", "manual_seed_all", "_lazy_init")),
    **dict.fromkeys(("empty_cache", "set_device", "synchronize")),
    "current_device": 0,
    "device_count": 1,
    "get_device_capability": (9, 0),
    "get_device_name": "pretended",
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
}


class MixedDevices(RuntimeError):
    """What a real GPU would refuse."""


class Pretend(ExitStack):
    """See the module.

    Attributes:
        waits: (what, where) -> how often the host had to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.inside = 0  # calls with a tensor on the GPU: what they make by themselves lies there
        self._marks: dict[int, StorageWeakRef] = {}

    def __enter__(self) -> Pretend:
        autocast, group = torch.autocast.__init__, torch._C._group_tensors_by_device_and_dtype

        def on_cpu(context: Any, _: str, *args: Any, **kwargs: Any) -> None:
            autocast(context, "cpu", *args, **kwargs)  # casts the same operations

        def by_device(lists: Any, indices: bool = False) -> Any:  # C++ sees the real place
            return {(self.place(g[0][0][0]), k[1]): g for k, g in group(lists, indices).items()}

        said = {name: lambda *_, value=value: value for name, value in _CUDA_SAYS.items()}
        drawn = seeds.generator

        def drawing_on_cpu(*entropy: int | str, device: Any = CPU) -> torch.Generator:
            return drawn(*entropy)  # no generator of a GPU can be made

        self.enter_context(mock.patch.multiple(torch.cuda, **said))
        self.enter_context(mock.patch.object(torch.autocast, "__init__", on_cpu))
        self.enter_context(mock.patch.object(seeds, "generator", drawing_on_cpu))
        self.enter_context(mock.patch.object(torch._C, group.__name__, by_device))
        self.enter_context(_Functions(self))
        self.enter_context(_Operations(self))
        return self

    def place(self, tensor: Tensor) -> torch.device:
        """Where a tensor seems to lie."""
        storage = _storage(tensor)
        is_marked = storage is not None and storage._cdata in self._marks
        return CUDA if is_marked else tensor.device

    def mark(self, tensor: Tensor, place: torch.device) -> Tensor:
        """Let a tensor lie there."""
        storage = _storage(tensor)
        if storage is None:
            return tensor
        if place.type != "cuda":
            self._marks.pop(storage._cdata, None)
        elif storage._cdata not in self._marks:
            self._marks[storage._cdata] = StorageWeakRef(storage)
            if len(self._marks) % 4096 == 0:  # forget what is no more
                self._marks = {k: v for k, v in self._marks.items() if not v.expired()}
        return tensor

    def is_on(self, value: Any) -> bool:
        """Whether it is a tensor on the GPU."""
        return isinstance(value, Tensor) and self.place(value).type == "cuda"

    def refuse(self, what: str) -> None:
        """Do as a real GPU does."""
        raise MixedDevices(f"{what} at {_where()}")

    def wait(self, what: str) -> None:
        """Count a wait of the host."""
        self.waits[what, _where()] += 1

    def check_generator(self, what: Any, kwargs: Mapping[str, Any], place: torch.device) -> None:
        """Refuse a draw by a generator of another device."""
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != place.type:
            self.refuse(f"{what}: a {generator.device.type} generator for a {place.type} tensor")


def _where() -> str:
    """The innermost line of the project that is running."""
    for frame, line in walk_stack(None):
        name = frame.f_code.co_filename
        if "/rectified/" in name and "/tests/" not in name:
            return f"{name.split('/rectified/')[-1]}:{line} {frame.f_code.co_name}"
    return "outside"


def _storage(tensor: Any) -> Any:
    """What a mark belongs to; None on the meta device, and in a layout that only a CPU has."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    is_here = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return tensor.untyped_storage() if is_here else None


def _device(value: Any) -> torch.device | None:
    """The device that an argument names."""
    if isinstance(value, str) and fullmatch(r"cpu|cuda(:\d+)?", value):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


class _Functions(TorchFunctionMode):
    """What Python sees: devices, and the ways out of a tensor."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        name, first = getattr(call, "__name__", ""), args[0] if args else None
        if call is torch.device or name == "_parse_to":
            return call(*args, **kwargs)
        if name == "__get__" and isinstance(first, Tensor):
            own, owner = gpu.place(first), getattr(call, "__self__", None)
            is_on = {Tensor.is_cuda: own.type == "cuda", Tensor.is_cpu: own.type == "cpu"}
            seen: dict[Any, Any] = {Tensor.device: own, **is_on}
            if owner in seen:
                return seen[owner]
        if name in ("numpy", "__array__", "__dlpack__") and gpu.is_on(first):
            gpu.refuse(f"Tensor.{name} of a CUDA tensor")
        if name == "__deepcopy__":
            return self._copied(call, args)
        if name in ("tolist", "new_tensor") and gpu.is_on(first):
            gpu.wait(name)
        if name in ("cuda", "cpu"):
            return self._moved(first, first, CUDA if name == "cuda" else CPU)
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):  # x.to(other)
            return self._moved(first, call(*args, **kwargs), gpu.place(args[1]))
        leaves = tree_flatten((args, kwargs))[0]
        place = next((d for d in map(_device, leaves) if d is not None), None)
        if place is not None and name not in ("__get__", "__set__"):
            return self._placed(call, name, args, kwargs, place)
        on_gpu = any(map(gpu.is_on, leaves))
        gpu.inside += on_gpu
        try:
            made = call(*args, **kwargs)
        finally:
            gpu.inside -= on_gpu
        return gpu.mark(made, CUDA) if on_gpu and name == "new_tensor" else made

    def _placed(self, call: Any, name: str, args: Any, kwargs: Any, place: torch.device) -> Any:
        """A call that names a device."""
        gpu, first = self.gpu, args[0] if args else None
        gpu.check_generator(name, kwargs, place)
        args, kwargs = tree_map(lambda leaf: CPU if _device(leaf) else leaf, (args, kwargs))
        found = call(*args, **kwargs)
        if not isinstance(found, Tensor):
            return found
        if name == "to":
            return self._moved(first, found, place)
        if name in ("tensor", "as_tensor") and place.type == "cuda":
            gpu.wait("host to device")
            found = found.clone() if isinstance(first, Tensor) else found
        return gpu.mark(found, place)

    def _moved(self, before: Tensor, after: Tensor, place: torch.device) -> Tensor:
        gpu, came = self.gpu, self.gpu.place(before)
        if came.type == place.type or "meta" in (came.type, place.type):
            return after if after is before else gpu.mark(after, place)
        gpu.wait("device to host" if came.type == "cuda" else "host to device")
        with _disable_current_modes():
            after = after.clone(memory_format=torch.preserve_format)
        return gpu.mark(after, place)

    def _copied(self, call: Any, args: Sequence[Any]) -> Any:
        place = self.gpu.place(args[0])
        with _disable_current_modes():
            copied = call(*args)
        tree_map_only(Tensor, lambda one: self.gpu.mark(one, place), (copied, copied.grad))
        return copied


class _Operations(TorchDispatchMode):
    """What the device sees: every operation, the backward pass's too."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        places = [gpu.place(t).type for t in tensors]
        if "cuda" in places:
            self._check(call, tensors, places)
        found = call(*args, **kwargs)
        if "cuda" in places or (not tensors and gpu.inside):
            target = gpu.place(tensors[0]) if call.overloadpacket in _COPIES else CUDA
            gpu.check_generator(call, kwargs, target)
            tree_map_only(Tensor, lambda out: gpu.mark(out, target), found)
        return found

    def _check(self, call: Any, tensors: Sequence[Tensor], places: Sequence[str]) -> None:
        gpu, packet = self.gpu, call.overloadpacket
        on_cpu = [t.ndim > 0 and place == "cpu" for t, place in zip(tensors, places, strict=True)]
        if packet in _COPIES:
            if {"cpu", "cuda"} <= set(places):
                gpu.wait("host to device" if places[0] == "cuda" else "device to host")
        elif packet in _INDEXES:
            if places[0] == "cpu":
                gpu.refuse(f"{call}: CUDA indices into a CPU tensor")
            if any(on_cpu[1:]) or any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
                gpu.wait("a mask, or CPU indices, as an index")
        else:
            if packet in _WAITS:
                gpu.wait(str(packet).split(".")[-1])
            if any(on_cpu):
                shapes = [(tuple(t.shape), place) for t, place in zip(tensors, places, strict=True)]
                gpu.refuse(f"{call} with tensors on {shapes}")
