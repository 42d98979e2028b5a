"""How far predictions are off: honest quantiles after few requests, calibrated ones after many. PURE.

A residual is ln(actual / predicted), where the prediction was made before the request was learned from. With 20 or more
of them the quantile is the conformal one, the ceil((n + 1) q)-th smallest (Vovk et al., Algorithmic Learning in a
Random World): its coverage needs no assumption about their distribution. With fewer it is that of a Student t
distribution, the posterior prediction under a weak normal-inverse-gamma prior: wide first, narrower with each request.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist, median

from moe2.common.cost import Spread

_ENOUGH = 20
_MEMORY = 200
_PRIOR_SCALE = 0.35
_PRIOR_WEIGHT = 3.0
_MIN_SCALE = 0.05
_LIKELY_SCATTER = 0.2
_SCATTER_WEIGHT = 5

_SLACK = 1.0
_CLIP = 3.0
_ALARM = 5.0
"""CUSUM in units of the usual scatter: a shift is believed after three residuals of three or more. One outlier, however
far off, cannot raise the alarm (Page, Continuous inspection schemes, Biometrika 1954)."""
AGREEING = 3
"""Residuals that show a change of pace."""
_KEPT = 10


class ResidualPool:
    """The last 200 residuals and, if it is to watch, whether they have shifted."""

    def __init__(self, *, watch: bool = True) -> None:
        self._watch = watch
        self._residuals: deque[float] = deque(maxlen=_MEMORY)
        self._above = 0.0
        self._below = 0.0

    def __len__(self) -> int:
        return len(self._residuals)

    @property
    def spread(self) -> Spread:
        """The residuals' median and 95 % quantile."""
        if len(self._residuals) >= _ENOUGH:
            return Spread(p50=median(self._residuals), p95=self._conformal(0.95))
        centre, scale, freedom = self._posterior()
        return Spread(p50=centre, p95=centre + scale * student_t_quantile(0.95, freedom))

    def add(self, residual: float) -> bool:
        """Takes in a residual. Returns True if it and those just before show that the pace has changed.

        After a change the residuals that showed it are seen from the new pace; few of the older ones are kept.
        """
        centre, scale = self._usual()
        shift = max(-_CLIP, min(_CLIP, (residual - centre) / scale))
        self._above = max(0.0, self._above + shift - _SLACK)
        self._below = max(0.0, self._below - shift - _SLACK)
        self._residuals.append(residual)
        if not self._watch or max(self._above, self._below) <= _ALARM:
            return False
        recent = list(self._residuals)[-AGREEING:]
        moved = median(recent)
        self.pace_changed()
        self._residuals.extend(one - moved for one in recent)
        return True

    def pace_changed(self) -> None:
        """Forgets the former residuals, as the predictions were just set to another pace.

        The residuals that showed the change are dropped; of those before them, ten still tell the usual scatter.
        """
        before = list(self._residuals)[:-AGREEING]
        centre = median(before) if before else 0.0
        self._residuals.clear()
        self._residuals.extend(one - centre for one in before[-_KEPT:])
        self._above = self._below = 0.0

    def clear(self) -> None:
        """Forget everything: something else is predicted from now on."""
        self._residuals.clear()
        self._above = self._below = 0.0

    def _usual(self) -> tuple[float, float]:
        """Centre and scatter of the residuals; robust, so that those of a new pace hide neither."""
        if len(self._residuals) < AGREEING:
            return 0.0, _PRIOR_SCALE
        centre = median(self._residuals)
        scatter = 1.4826 * median(abs(one - centre) for one in self._residuals)
        count = len(self._residuals)
        # A few residuals that happen to lie close together say little about the scatter.
        mixed = (count * scatter**2 + _SCATTER_WEIGHT * _LIKELY_SCATTER**2) / (count + _SCATTER_WEIGHT)
        return centre, max(_MIN_SCALE, math.sqrt(mixed))

    def _conformal(self, q: float) -> float:
        rank = math.ceil((len(self._residuals) + 1) * q)
        return sorted(self._residuals)[min(rank, len(self._residuals)) - 1]

    def _posterior(self) -> tuple[float, float, float]:
        """Centre, scale and degrees of freedom of the next residual, with one prior residual of 0."""
        count = len(self._residuals)
        mean = sum(self._residuals) / count if count else 0.0
        freedom = _PRIOR_WEIGHT + count
        squares = sum((one - mean) ** 2 for one in self._residuals) + mean * mean * count / (count + 1)
        variance = (_PRIOR_WEIGHT * _PRIOR_SCALE**2 + squares) / freedom
        return count * mean / (count + 1), math.sqrt(variance * (1 + 1 / (count + 1))), freedom


def student_t_quantile(q: float, freedom: float) -> float:
    """Quantile of Student's t distribution for 3 or more degrees of freedom, within 1 % for 0.05 <= q <= 0.95.

    Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf(q)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
