"""What guessed tokens save on an expert, beside decoding without them. PURE.

How many guesses are right depends on the text, which is not known before it is written: what the latest requests saved
is expected of the next one, and how far that is off widens the spread of its prediction.
"""

from __future__ import annotations

import math

_WEIGHT = 0.2
"""Weight of the newest request."""


class RatioForecast:
    """The ratio to expect of the next request: the geometric mean of the latest ones, 1 before any."""

    def __init__(self) -> None:
        self._log = 0.0

    @property
    def expected(self) -> float:
        """The ratio that the next request is expected to have."""
        return math.exp(self._log)

    def observe(self, ratio: float) -> None:
        """Take in a request's ratio, which is above 0."""
        self._log += _WEIGHT * (math.log(ratio) - self._log)
