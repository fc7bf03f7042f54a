"""The transformer: in pipelines, in clones, and with the scaling that keeps accuracy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline

import rectified.scattering
from rectified.errors import UserError
from rectified.scattering import Scattering2D, ScatteringTransformer


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


def test_a_pipeline_learns_digits_from_200_of_them(digits):
    images, labels = digits
    model = make_pipeline(ScatteringTransformer(J=1), RidgeClassifier(30.0))
    model.fit(images[:200], labels[:200])
    assert model.score(images[1000:], labels[1000:]) > 0.9


def test_features_are_scaled_coefficients(digits):
    images = digits[0][:30]
    transformer = ScatteringTransformer(J=2, L=4)
    found = transformer.fit_transform(images)
    raw = Scattering2D(2, (8, 8), 4)(torch.from_numpy(images)).flatten(1).numpy()
    spread = raw.std(0)
    expected = (raw - raw.mean(0)) / (spread + 0.02 * spread.max())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weak_features_are_not_blown_up(digits):
    found = ScatteringTransformer(J=2).fit_transform(digits[0][:50])
    blown_up = ScatteringTransformer(J=2, floor=0.0).fit_transform(digits[0][:50])
    assert found.std(0).min() < 0.5
    assert blown_up.std(0).min() > 0.9


def test_flat_and_colour_images_are_taken(digits):
    images = digits[0][:10]
    plain = ScatteringTransformer(J=1).fit_transform(images)
    flat = ScatteringTransformer(J=1, shape=(8, 8)).fit_transform(images.reshape(10, -1))
    np.testing.assert_array_equal(flat, plain)
    colour = ScatteringTransformer(J=1, shape=(2, 8, 4)).fit_transform(images.reshape(10, -1))
    assert colour.shape == (10, 2 * 9 * 4 * 2)


def test_logarithms_are_of_coefficients(digits):
    images = digits[0][:20].astype(np.float64)
    found = ScatteringTransformer(J=1, log=True).fit_transform(images)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_it_can_be_cloned_and_pickled(digits):
    transformer = ScatteringTransformer(J=1, L=4, log=True).fit(digits[0][:10])
    assert clone(transformer).get_params() == transformer.get_params()
    again = pickle.loads(pickle.dumps(transformer))
    np.testing.assert_array_equal(again.transform(digits[0]), transformer.transform(digits[0]))


def test_it_must_be_fitted_first(digits):
    with pytest.raises(NotFittedError):
        ScatteringTransformer().transform(digits[0])


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"floor": -0.1}, (2, 8, 8), "floor must be at least 0, got -0.1"),
        ({}, (2, 64), "X must be"),
        ({"J": 4}, (2, 8, 8), "2\\^J at most"),
    ],
)
def test_bad_settings_and_images_are_refused(options, shape, message):
    with pytest.raises(UserError, match=message):
        ScatteringTransformer(**options).fit(np.zeros(shape, np.float32))


def test_the_package_has_no_other_lazy_names():
    with pytest.raises(AttributeError, match="no attribute 'Scattering3D'"):
        rectified.scattering.Scattering3D  # noqa: B018
