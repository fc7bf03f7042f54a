"""Devices: where training runs, and which processes share it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from rectified.errors import UserError, choose

if TYPE_CHECKING:
    from accelerate import Accelerator


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if cuda is asked for and there is none.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    choose("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda is not available here; write --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@lru_cache(maxsize=1)
def accelerator(device: str) -> Accelerator:
    """The process-wide Accelerate object for `auto`, `cpu` or `cuda`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # the first device of a process would be the one of all later calls; a group of processes stays
    alone = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(cpu=choose_device(device).type == "cpu")


def everyone(device: str) -> torch.distributed.ProcessGroup | None:
    """All processes that `fit` shares its batches over; None for one alone.

    Example:
        >>> everyone("cpu") is None
        True
    """
    return torch.distributed.group.WORLD if accelerator(device).num_processes > 1 else None
