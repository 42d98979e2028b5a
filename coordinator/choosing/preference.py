"""The fine level where one expert answers: which of a pool of experts suits the prompt best. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moe2.common.link.messages import ExpertState
from moe2.coordinator.choosing.forecast import IntArray
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.choosing.result import Outlook
from moe2.coordinator.planning.values import BoolArray

SAME_SCORE = 0.005
"""Scores that differ by less count as equal, and the faster expert answers."""


@dataclass(frozen=True, eq=False)
class Preference:
    """An order of the N experts for one prompt: by score, and among equal scores by the soonest end."""

    outlook: Outlook
    """The experts with their scores and predictions."""
    busy: IntArray
    """(N,) requests in progress on each expert."""
    affinity: Affinity | None = None
    """Who holds the beginning of the conversation in its cache."""

    def best(self, pool: BoolArray) -> int:
        """The place of the best expert of a non-empty pool (N,)."""
        scores = self.outlook.prompt_scores.scores
        equals = np.flatnonzero(pool & (scores >= scores[pool].max() - SAME_SCORE))
        return int(equals[0] if equals.size == 1 else equals[self._by_end[equals].argmin()])

    @cached_property
    def _by_end(self) -> IntArray:
        """(N,) rank of each expert among all, from 0 for the one that is done first."""
        forecast = self.outlook.forecast
        keys, total_s = forecast.roster.keys, forecast.total_s.p50

        def end(place: int) -> tuple[float, bool, int, str]:
            # An unmeasured expert is tried first when idle, so that it gets measured; last when busy or not in memory.
            is_ready = forecast.roster.experts[place].report.state is ExpertState.READY
            unmeasured_s = 0.0 if self.busy[place] == 0 and is_ready else np.inf
            end_s = float(total_s[place])
            is_uncached = self.affinity is None or self.affinity.expert_key != keys[place]
            return (unmeasured_s if np.isnan(end_s) else end_s, is_uncached, int(self.busy[place]), keys[place])

        ranks = np.empty(len(keys), dtype=np.intp)
        ranks[sorted(range(len(keys)), key=end)] = np.arange(len(keys))
        return ranks
