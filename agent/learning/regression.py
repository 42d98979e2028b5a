"""Least squares that forgets, with coefficients that cannot be negative. PURE.

Errors are taken relative to the observed value: a request of 10 s and one of 100 ms count alike. The prior keeps what
the observations do not tell apart (Bayesian linear regression with Gaussian prior; exponential forgetting as in Haykin,
Adaptive Filter Theory, recursive least squares).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

_RELATIVE_NOISE = 0.1
"""Scatter of single requests that the prior is weighed against. Only its order of magnitude matters."""
_WORST_RATIO = 3.0
_RECENT = 10


class RelativeRegression:
    """y = w . x with w >= 0, learned from one (x, y) after another.

    mean, scale: the prior's coefficients and how far they may be off. forgetting: weight that an observation keeps at
    each later one; 0.98 looks back on about 50.
    """

    def __init__(self, mean: Sequence[float], scale: Sequence[float], *, forgetting: float = 0.98) -> None:
        self._mean = tuple(mean)
        self._precision = tuple(1 / (one * one) for one in scale)
        self._forgetting = forgetting
        size = len(self._mean)
        self._products = [[0.0] * size for _ in range(size)]
        self._targets = [0.0] * size
        self._coefficients: tuple[float, ...] | None = self._mean
        self._recent: deque[tuple[tuple[float, ...], float, tuple[float, ...]]] = deque(maxlen=_RECENT)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor of each feature as estimated now, all >= 0."""
        if self._coefficients is None:
            self._coefficients = self._solve()
        return self._coefficients

    def observe(self, features: Sequence[float], value: float) -> None:
        """Takes in one observation of a `value` above 0."""
        if value <= 0:
            raise ValueError(f"relative errors need a positive value, got {value}")
        self._recent.append((tuple(features), value, self.coefficients))
        # Relative to the expectation, not to the value: otherwise low values would outweigh high ones. Bounded, because
        # one wrong expectation must not make a single observation count for hundreds.
        expected = min(max(self.predict(features), value / _WORST_RATIO), value * _WORST_RATIO)
        unit = _RELATIVE_NOISE * expected
        scaled = [feature / unit for feature in features]
        for row, left in zip(self._products, scaled, strict=True):
            for column, right in enumerate(scaled):
                row[column] = self._forgetting * row[column] + left * right
        self._targets = [
            self._forgetting * target + one * value / unit for target, one in zip(self._targets, scaled, strict=True)
        ]
        self._coefficients = None

    def predict(self, features: Sequence[float]) -> float:
        """The mean of what is estimated, for a request with these features."""
        return _dot(self.coefficients, features)

    def repaced(self, count: int) -> RelativeRegression:
        """The law before the last `count` observations (10 at most), at the pace of these, ready to be corrected.

        All coefficients are multiplied by one factor, and forget what they were learned from.
        """
        recent = list(self._recent)[-count:]
        law = recent[0][2] if recent else self.coefficients
        ratios = [value / expected for features, value, _ in recent if (expected := _dot(law, features)) > 0]
        factor = median(ratios) if ratios else 1.0
        fresh = around([factor * one for one in law], forgetting=self._forgetting)
        for features, value, _ in recent:
            fresh.observe(features, value)
        return fresh

    def _solve(self) -> tuple[float, ...]:
        """Drop the most negative coefficient until none is negative."""
        used = list(range(len(self._mean)))
        while used:
            matrix = [[self._products[i][j] + (self._precision[i] if i == j else 0.0) for j in used] for i in used]
            right = [self._targets[i] + self._precision[i] * self._mean[i] for i in used]
            solution = dict(zip(used, _gauss(matrix, right), strict=True))
            worst = min(used, key=lambda index: solution[index])
            if solution[worst] >= 0:
                return tuple(solution.get(index, 0.0) for index in range(len(self._mean)))
            used.remove(worst)
        return tuple(0.0 for _ in self._mean)


def around(
    coefficients: Sequence[float], *, forgetting: float = 0.98, unlearned: Sequence[float] = ()
) -> RelativeRegression:
    """A regression that begins with these coefficients and is ready to be corrected.

    unlearned: further ones of which nothing is known but how large they may be.
    """
    # What was never seen may turn out to cost a little after all.
    smallest = max(1e-3 * max(coefficients), 1e-12)
    scale = [*(max(0.3 * one, smallest) for one in coefficients), *unlearned]
    return RelativeRegression([*coefficients, *(0.0 for _ in unlearned)], scale, forgetting=forgetting)


def _dot(coefficients: Sequence[float], features: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(coefficients, features, strict=True))


def _gauss(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small, symmetric, positive definite system; such a one needs no pivoting."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
            right[row] -= factor * right[pivot]
    solution = [0.0] * size
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * solution[column] for column in range(row + 1, size))
        solution[row] = (right[row] - known) / matrix[row][row]
    return solution
