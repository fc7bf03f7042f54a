"""What studies of flows are run with, where it is not of interest and takes most of the time."""

from contextlib import contextmanager

import pytest
import torch

from rectified.jobs import flow_report, flow_study
from rectified.jobs.flow_data import Features, Looker


def untrained_features(samples, *, widths, has_norms, seed, device, progress):
    """A classifier that is not trained, which is nearly all of a small study of images."""
    torch.manual_seed(seed)
    network = Features(samples.shape, widths, samples.classes, has_norms=has_norms)
    return Looker(network.eval().requires_grad_(False), 0.1)


@contextmanager
def quick_studies():
    """Without figures, and without training of classifiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_report, "page", lambda *_: "")
        patch.setattr(flow_study, "train_features", untrained_features)
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """Without the page's figures."""
    monkeypatch.setattr(flow_report, "page", lambda *_: "")


@pytest.fixture
def untrained(monkeypatch):
    """Without training of classifiers."""
    monkeypatch.setattr(flow_study, "train_features", untrained_features)
