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

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_aten = torch.ops.aten
_WAITS = {  # the host must know a number before it can go on
    *(_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.bincount, _aten.equal),
    *(_aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave),
    *(_aten.is_nonzero, _aten.linalg_eigh, _aten._linalg_svd, _aten._linalg_eigh),
}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten.copy_, _aten._to_copy, _aten._foreach_copy_}
_LEAVES = ("numpy", "__array__", "__dlpack__")
_MARKS_BETWEEN_SWEEPS = 4096


class MixedDevices(RuntimeError):
    """What a real GPU would refuse."""


def _where() -> str:
    """The innermost line of the project that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/rectified/" in name and "/tests/" not in name:
            return f"{name.split('/rectified/')[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside"


class Pretend:
    """See the module.

    Attributes:
        waits: (what, where) -> how often the host had to wait.
        operations: how many the device was asked for.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.operations = 0
        self.is_muted = False
        self.inside = 0  # calls with a tensor on the GPU: what they make by themselves lies there
        self._marks: dict[int, StorageWeakRef] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Pretend:
        state = torch.zeros(16, dtype=torch.uint8)
        for name, value in {
            **dict.fromkeys(("is_available", "is_bf16_supported", "is_initialized"), True),
            "current_device": 0,
            "device_count": 1,
            "get_device_capability": (9, 0),
            "get_device_name": "pretended",
            "get_rng_state": state,
            **dict.fromkeys(("set_rng_state", "manual_seed", "manual_seed_all", "_lazy_init")),
            **dict.fromkeys(("empty_cache", "set_device", "synchronize")),
        }.items():
            self._replace(torch.cuda, name, lambda *_, value=value: value)
        autocast = torch.autocast.__init__
        self._replace(  # the CPU's casts the same operations
            torch.autocast, "__init__", lambda s, _, *a, **k: autocast(s, "cpu", *a, **k)
        )
        group = torch._C._group_tensors_by_device_and_dtype

        def by_device(
            lists: Any, indices: bool = False
        ) -> Any:  # C++ sees where tensors really are
            return {(self.place(g[0][0][0]), k[1]): g for k, g in group(lists, indices).items()}

        self._replace(torch._C, "_group_tensors_by_device_and_dtype", by_device)
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._stack.enter_context(mock.patch.object(owner, name, value))

    def place(self, tensor: Tensor) -> torch.device:
        """Where a tensor seems to lie."""
        tensor = _unwrapped(tensor)
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return tensor.device  # meta, or what only a CPU has
        return CUDA if tensor.untyped_storage()._cdata in self._marks else CPU

    def mark(self, tensor: Tensor, place: torch.device) -> None:
        """Let a tensor lie there."""
        tensor = _unwrapped(tensor)
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        if place.type != "cuda":
            self._marks.pop(storage._cdata, None)
        elif storage._cdata not in self._marks:
            self._marks[storage._cdata] = StorageWeakRef(storage)
            if len(self._marks) % _MARKS_BETWEEN_SWEEPS == 0:
                self._marks = {k: v for k, v in self._marks.items() if not v.expired()}

    def is_on(self, value: Any) -> bool:
        """Whether it is a tensor on the GPU."""
        return isinstance(value, Tensor) and self.place(value).type == "cuda"

    def refuse(self, what: str) -> None:
        """Do as a real GPU does."""
        raise MixedDevices(f"{what} at {_where()}")

    def wait(self, what: str) -> None:
        """Count a wait of the host."""
        self.waits[what, _where()] += 1

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Marks are set by hand in here."""
        self.is_muted = True
        try:
            yield
        finally:
            self.is_muted = False


def _unwrapped(tensor: Any) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _device(value: Any) -> torch.device | None:
    """The device that an argument names."""
    if isinstance(value, torch.device):
        return value
    named = isinstance(value, str) and (value in ("cpu", "cuda") or value.startswith("cuda:"))
    return torch.device(value) if named else None


class _Functions(TorchFunctionMode):
    """What Python sees: devices, and the ways out of a tensor."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, gpu = kwargs or {}, self.gpu
        name, first = getattr(function, "__name__", ""), args[0] if args else None
        if function is torch.device or name == "_parse_to":
            return function(*args, **kwargs)
        if name == "__get__" and isinstance(first, Tensor):
            owner, place = getattr(function, "__self__", None), gpu.place(first)
            for attribute, value in (
                (Tensor.device, place),
                (Tensor.is_cuda, place.type == "cuda"),
                (Tensor.is_cpu, place.type == "cpu"),
            ):
                if owner is attribute:
                    return value
        if name in _LEAVES and gpu.is_on(first):
            gpu.refuse(f"Tensor.{name} of a CUDA tensor")
        if name == "__deepcopy__":
            return self._copied(function, args)
        if name in ("tolist", "new_tensor") and gpu.is_on(first):
            gpu.wait(name)
        if name in ("cuda", "cpu"):
            return self._moved(first, first, CUDA if name == "cuda" else CPU)
        leaves, spec = tree_flatten((args, kwargs))
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):  # x.to(other)
            return self._moved(first, function(*args, **kwargs), gpu.place(args[1]))
        place = next((d for d in map(_device, leaves) if d is not None), None)
        if place is None or name in ("__get__", "__set__"):
            on_gpu = any(gpu.is_on(leaf) for leaf in leaves)
            gpu.inside += on_gpu
            try:
                made = function(*args, **kwargs)
            finally:
                gpu.inside -= on_gpu
            if on_gpu and name == "new_tensor":
                gpu.mark(made, CUDA)
            return made
        return self._placed(function, name, tree_unflatten(_on_cpu(leaves), spec), place, first)

    def _placed(self, function: Any, name: str, call: Any, place: torch.device, first: Any) -> Any:
        """A call that names a device."""
        gpu, (args, kwargs) = self.gpu, call
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != place.type:
            gpu.refuse(f"{name}: a {generator.device.type} generator for a {place.type} tensor")
        found = function(*args, **kwargs)
        if not isinstance(found, Tensor):
            return found
        if name == "to":
            return self._moved(first, found, place)
        if name in ("tensor", "as_tensor") and place.type == "cuda":
            gpu.wait("host to device")
            found = found.clone() if isinstance(first, Tensor) else found
        gpu.mark(found, place)
        return found

    def _moved(self, before: Tensor, after: Tensor, place: torch.device) -> Tensor:
        gpu, came = self.gpu, self.gpu.place(before)
        if came.type == place.type or "meta" in (came.type, place.type):
            if after is not before:
                gpu.mark(after, place)
            return after
        gpu.wait("device to host" if came.type == "cuda" else "host to device")
        with gpu.muted():
            after = after.clone(memory_format=torch.preserve_format)
        gpu.mark(after, place)
        return after

    def _copied(self, function: Any, args: Sequence[Any]) -> Any:
        place = self.gpu.place(args[0])
        with self.gpu.muted():
            copied = function(*args)
        for one in (copied, copied.grad):
            if one is not None:
                self.gpu.mark(one, place)
        return copied


def _on_cpu(leaves: Sequence[Any]) -> list[Any]:
    return [leaf if _device(leaf) is None or _device(leaf) == CPU else CPU for leaf in leaves]


class _Operations(TorchDispatchMode):
    """What the device sees: every operation, the backward pass's too."""

    def __init__(self, gpu: Pretend) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, gpu, packet = kwargs or {}, self.gpu, function.overloadpacket
        if gpu.is_muted:
            return function(*args, **kwargs)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        places = [gpu.place(t) for t in tensors]
        on_gpu = any(place.type == "cuda" for place in places)
        if on_gpu:
            self._check(function, tensors, places)
        found = function(*args, **kwargs)
        if on_gpu or (not tensors and gpu.inside):
            target = places[0] if packet in _COPIES else CUDA
            self._check_generator(function, kwargs, target)
            gpu.operations += not function.is_view
            for out in tree_flatten(found)[0]:
                if isinstance(out, Tensor):
                    gpu.mark(out, target)
        return found

    def _check_generator(
        self, function: Any, kwargs: Mapping[str, Any], target: torch.device
    ) -> None:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu" and target.type == "cuda":
            self.gpu.refuse(f"{function}: a cpu generator for a cuda tensor")

    def _check(
        self, function: Any, tensors: Sequence[Tensor], places: Sequence[torch.device]
    ) -> None:
        gpu, packet = self.gpu, function.overloadpacket
        if packet in _COPIES:
            if len({place.type for place in places if place.type != "meta"}) > 1:
                gpu.wait("host to device" if places[0].type == "cuda" else "device to host")
            return
        on_cpu = [t.ndim > 0 and p.type == "cpu" for t, p in zip(tensors, places, strict=True)]
        if packet in _INDEXES:
            if places[0].type == "cpu":
                gpu.refuse(f"{function}: CUDA indices into a CPU tensor")
            if any(on_cpu[1:]) or any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
                gpu.wait("a mask, or CPU indices, as an index")
            return
        if packet in _WAITS:
            gpu.wait(str(packet).split(".")[-1])
        if any(on_cpu):
            shapes = [(tuple(t.shape), p.type) for t, p in zip(tensors, places, strict=True)]
            gpu.refuse(f"{function} with tensors on {shapes}")
