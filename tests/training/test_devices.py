import pytest
import torch

from rectified.errors import UserError
from rectified.training import accelerator, choose_device


def test_devices_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device cuda is not available here; write --device cpu"):
        choose_device("cuda")
    with pytest.raises(UserError, match="unknown device 'tpu'; choose from auto, cpu, cuda"):
        choose_device("tpu")


def test_one_process_is_one_process():
    assert accelerator("cpu") is accelerator("cpu")
    assert accelerator("cpu").num_processes == 1
