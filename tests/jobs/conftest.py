"""What studies of flows are run with, where it is not of interest and takes most of the time."""

from contextlib import contextmanager

import pytest
import torch

from rectified.jobs.flow import figures, trial
from rectified.jobs.flow.features import Classifier, Features
from rectified.report import Text


def untrained_classifier(images, layout, *, seed, device, progress):
    """A classifier that is not trained, which is nearly all of a small study of images."""
    torch.manual_seed(seed)
    shape = (images.channels, images.height, images.width)
    network = Features(shape, len(images.classes), layout)
    return Classifier(network.eval().requires_grad_(False), 0.1)


def without_figures(patch):
    """Words in place of every figure of a page of flows."""
    for name in ("curves", "bends"):
        patch.setattr(figures, name, lambda *_, **__: Text(("a figure",)))
    patch.setattr(figures, "drawings", lambda *_: ())


@contextmanager
def quick_studies():
    """Without figures, and without training of classifiers."""
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        patch.setattr(trial, "train_classifier", untrained_classifier)
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """Without the page's figures."""
    without_figures(monkeypatch)


@pytest.fixture
def untrained(monkeypatch):
    """Without training of classifiers."""
    monkeypatch.setattr(trial, "train_classifier", untrained_classifier)
