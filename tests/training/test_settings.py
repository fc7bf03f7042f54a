import copy
import math

import pytest

from rectified.errors import UserError
from tests.training.material import PLAIN


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose from sgd, adam, adamw"),
        ({"schedule": "x"}, "unknown schedule 'x'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"drops": (0.5, 1.0)}, r"drops must be in \(0, 1\)"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"ema": 1.0}, "ema must be in"),
    ],
)
def test_impossible_settings_are_named(values, message):
    config = copy.copy(PLAIN)
    for name, value in values.items():
        # past the type checker of the tests, which would refuse unknown words first
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message):
        config.__post_init__()
