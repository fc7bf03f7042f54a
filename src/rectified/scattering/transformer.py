"""Scattering features in scikit-learn: a transformer for pipelines.

    make_pipeline(ScatteringTransformer(J=2), RidgeClassifierCV()).fit(images, labels)

Features are divided by their standard deviation plus a small share of the largest one. Without that
share, features that hold next to nothing (there are many in tight banks) would be blown up to unit
variance, and accuracy falls by ten points and more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from rectified.errors import UserError
from rectified.scattering.scattering2d import Scattering2D

_BATCH = 256


class ScatteringTransformer(TransformerMixin, BaseEstimator):
    """Images to scaled scattering coefficients.

    Args:
        J: log2 of the scale.
        L: orientations.
        max_order: 1 or 2.
        shape: height and width, or channels, height and width, if images come flattened.
        log: whether to take the logarithm of coefficients (plus 1e-3 of their largest mean).
        floor: share of the largest standard deviation that is added to each, at least 0.
        device: where to compute: cpu or cuda.

    Example:
        >>> images = np.random.default_rng(0).random((20, 16, 16), dtype=np.float32)
        >>> ScatteringTransformer(J=2, L=4).fit_transform(images).shape
        (20, 400)
    """

    def __init__(
        self,
        J: int = 2,
        L: int = 8,
        max_order: int = 2,
        *,
        shape: tuple[int, ...] | None = None,
        log: bool = False,
        floor: float = 0.02,
        device: str = "cpu",
    ) -> None:
        self.J = J
        self.L = L
        self.max_order = max_order
        self.shape = shape
        self.log = log
        self.floor = floor
        self.device = device

    def fit(self, X: Any, y: Any = None) -> ScatteringTransformer:
        """Learn the scale of every feature.

        Args:
            X: `(n, height, width)`, `(n, channels, height, width)`, or flat with `shape`.
            y: not used.

        Raises:
            UserError: if X has another shape or NaN, or a setting breaks its rule.
        """
        if self.floor < 0:
            raise UserError(f"floor must be at least 0, got {self.floor}")
        found = self._coefficients(X)
        self.offset_ = 1e-3 * float(found.mean(0).max()) if self.log else 0.0
        found = self._logged(found)
        spread = found.std(0)
        scale = spread + self.floor * spread.max()
        self.mean_ = found.mean(0)
        self.scale_ = np.where(scale > 0, scale, 1.0).astype(found.dtype)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of images, `(n, features)`, in float32 (float64 if X is).

        Raises:
            UserError: as in `fit`.
        """
        check_is_fitted(self)
        return (self._logged(self._coefficients(X)) - self.mean_) / self.scale_

    def _logged(self, found: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(found, 0) + self.offset_) if self.log else found

    @torch.no_grad()
    def _coefficients(self, X: Any) -> np.ndarray:
        images = self._images(X)
        scattering = Scattering2D(self.J, tuple(images.shape[-2:]), self.L, self.max_order)
        parts = [scattering(part.to(self.device)).flatten(1).cpu() for part in images.split(_BATCH)]
        return torch.cat(parts).numpy()

    def _images(self, X: Any) -> torch.Tensor:
        images = torch.as_tensor(np.asarray(X))
        images = images if images.dtype == torch.float64 else images.float()
        if self.shape is not None:
            images = images.reshape(len(images), *self.shape)
        if images.ndim not in (3, 4):
            raise UserError(
                "X must be (n, height, width) or (n, channels, height, width), or flat with "
                f"shape given, got {tuple(images.shape)}"
            )
        return images
