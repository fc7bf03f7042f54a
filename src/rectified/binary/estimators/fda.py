"""FDA: the sign's Fourier series."""

from __future__ import annotations

import math

import torch

from rectified.binary.estimators.surrogate import Number, Surrogate, Values, check_bounds


class FDA(Surrogate):
    """The first waves of the sign's Fourier series (frequency domain approximation).

    The noise-adaptation module of the paper is not part of this. The paper does not print its
    frequency; with pi/3 the series is near the sign for abs(x) < 3.

    Args:
        n_start: highest index of a wave at the start, at least 0.
        n_end: at the end, at least `n_start`.
        omega: frequency of the first wave, above 0.

    Raises:
        UserError: if these bounds are broken.

    References:
        Y. Xu et al., "Learning Frequency Domain Approximation for Binary Neural Networks", 2021,
        arXiv:2103.00841, equations 5-7.

    Example:
        >>> round(FDA().slope(torch.zeros(1)).item(), 3)  # 4 w / pi * 10 waves
        13.333
    """

    def __init__(
        self,
        n_start: int = 9,
        n_end: int = 18,
        omega: Number = math.pi / 3,
        *,
        normalize_gain: bool = False,
    ) -> None:
        check_bounds(
            n_start=(n_start, n_start >= 0, "at least 0"),
            n_end=(n_end, n_end >= n_start, "at least n_start"),
            omega=(omega, omega > 0, "above 0"),
        )
        super().__init__(normalize_gain=normalize_gain, n=n_start)
        self.n_start, self.n_end, self.omega = n_start, n_end, omega

    def schedule(self, progress: Number) -> None:
        self.n = round(self.n_start + progress * (self.n_end - self.n_start))

    def _near(self, x: Values) -> Values:
        # of infinity there is no sine, and in half precision 37 x soon is infinite
        return x.clamp(-1000, 1000)

    def value(self, x: Values, /) -> Values:
        n, total, x = self.state("n", x), torch.zeros_like(x), self._near(x)
        for i in range(self.n_end + 1):  # all of them: which count is decided on the device
            wave = torch.sin((2 * i + 1) * self.omega * x) / (2 * i + 1)
            total = torch.where(n >= i, total + wave, total)
        return 4 / math.pi * total

    def derivative(self, x: Values, /) -> Values:
        n, total, x = self.state("n", x), torch.zeros_like(x), self._near(x)
        for i in range(self.n_end + 1):
            total = torch.where(n >= i, total + torch.cos((2 * i + 1) * self.omega * x), total)
        return 4 * self.omega / math.pi * total
