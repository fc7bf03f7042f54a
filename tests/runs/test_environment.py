import torch

from rectified.runs import environment


def test_the_environment_names_versions_machine_and_command():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "processor", "cores", "gpu", "command", "started"} <= set(found)
