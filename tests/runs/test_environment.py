import pytest
import torch

from rectified.runs import environment


def test_the_environment_names_versions_machine_and_command():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "processor", "cores", "gpu", "command", "started"} <= set(found)


@pytest.mark.parametrize("on", [True, False])
def test_the_environment_says_how_exact_and_repeatable_a_gpu_is(monkeypatch, on):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: on)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=on):
        found = environment()
    assert (found["tf32"], found["deterministic"]) == (on, on)
