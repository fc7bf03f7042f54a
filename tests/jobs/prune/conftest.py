"""Studies of the digits, and how their results are looked up."""

import pytest

from rectified.jobs.prune import layers, report
from rectified.report import Figure
from tests.jobs.prune.studies import prune


@pytest.fixture
def no_figures(monkeypatch):
    """They take most of the time of a small study."""
    for module, name in ((report, "lines"), (layers, "bars")):
        monkeypatch.setattr(module, name, lambda *_, **__: Figure("", "<svg></svg>", ""))


@pytest.fixture(scope="package")
def study(tmp_path_factory):
    """Four arms, three seeds, three cycles of the digits MLP."""
    folder = tmp_path_factory.mktemp("study") / "run"
    return folder, prune(folder, "--ap off,lite,pro,off_pro --cycles 3 --seeds 3")
