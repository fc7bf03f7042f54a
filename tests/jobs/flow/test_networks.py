"""Networks of flows in files."""

import pytest
import torch

from rectified.errors import UserError
from rectified.jobs.flow.networks import load_field


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no flow at"),
        (lambda path: path.write_bytes(b"damaged"), "is damaged or no flow of ours"),
        (
            lambda path: __import__("safetensors.torch").torch.save_file(
                {"a": torch.zeros(1)}, path
            ),
            "is damaged or no flow of ours",
        ),
    ],
)
def test_a_file_that_is_no_flow_is_refused(study, tmp_path, damage, message):
    copy = tmp_path / "model.safetensors"
    copy.write_bytes((study[0] / "model.safetensors").read_bytes())
    damage(copy)
    with pytest.raises(UserError, match=message):
        load_field(copy)
