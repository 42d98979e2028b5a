"""One request with what its choice of experts rests on, before the mode is known in which it is served. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import msgspec
import numpy as np
from msgspec.structs import replace

from moe2.coordinator.choosing.candidates import problem_of
from moe2.coordinator.choosing.fine_level import best_experts
from moe2.coordinator.choosing.forecast import NOTHING_UNREAD, FloatArray, Forecast, IntArray, Roster, WorkLeft
from moe2.coordinator.choosing.panel_cost import DEFAULT_PANEL, Load, Work, by_vocabulary, incapable_experts, work_in
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.choosing.quality import PromptScores, SetWorth
from moe2.coordinator.choosing.refusal import ruled_out_by
from moe2.coordinator.choosing.request import (
    ROUTE_ONLY,
    Budgets,
    Mode,
    ScopePrice,
    SelectionRequest,
    no_final_answer,
)
from moe2.coordinator.choosing.result import Outlook
from moe2.coordinator.planning.problem import Problem

LOOKED_AT = (8, 64, 512)
"""Candidates that are asked at a time what those at work there have left."""

AskWorkLeft = Callable[[str, int], WorkLeft | None]
"""What the so many requests in progress on an expert, by its key, have left; None where not all of them are known."""


def nobody_knows(key: str, busy: int) -> WorkLeft | None:
    """Nothing is known of those at work."""
    return None


class Case(msgspec.Struct, frozen=True, eq=False, dict=True):
    """One request with what it rests on, before the mode is known in which it is served."""

    roster: Roster
    load: Load
    prompt_scores: PromptScores
    worth: SetWorth
    budgets: Budgets
    ruled_out: Mapping[str, str]
    category: str
    affinity: Affinity | None = None
    draw: FleetDraw | None = None
    price_per_j: float = 0.0
    prices: tuple[ScopePrice, ...] = ()
    modes: frozenset[Mode] = ROUTE_ONLY
    asks_final_answer: Callable[[], bool] = no_final_answer
    confidence: float | None = None
    work_left: AskWorkLeft = nobody_knows

    @cached_property
    def prompt_worth(self) -> SetWorth:
        """The worth of sets of experts for this prompt alone: that of their best."""
        return SetWorth(self.prompt_scores.scores[None, :])

    @property
    def _usual_tokens(self) -> FloatArray | None:
        """(N,) lengths of answers to expect, none longer than the client allows; None where none is known."""
        usual, most = self.prompt_scores.answer_tokens, self.load.max_tokens
        return usual if usual is None or most is None else np.minimum(usual, most)

    def beside_work(self, outlook: Outlook, places: IntArray) -> Outlook:
        """The outlook with what those at work have left on the experts at these places, as far as that is known.

        A request that waits in a queue begins when those have ended.
        """
        left: dict[int, WorkLeft] = {}
        for place, n in zip(places.tolist(), self.load.busy[places].tolist(), strict=True):
            expert = self.roster.experts[place]
            latency = expert.report.latency
            if 0 < n < expert.report.slots and latency is not None and latency.tells_newcomers:
                work = self.work_left(expert.key, n)
                if work is not None:
                    left[place] = work
        return replace(outlook, forecast=outlook.forecast.beside(left)) if left else outlook

    def first_in_time(self, outlook: Outlook, candidates: IntArray) -> tuple[Outlook, IntArray, IntArray]:
        """The outlook beside the work of those who were asked, and the places of the first candidates that are in time
        beside it, and of those that would be late.

        A few candidates are asked at a time, and ever more where all so far would be late; all of a large fleet would
        take longer than all else. Nobody is in time where all that were asked would be late.
        """
        known, nobody = outlook, candidates[:0]
        late, left = nobody, candidates
        for most in LOOKED_AT:
            if not left.size:
                break
            nearest = best_experts(outlook, left, self.affinity, most)
            former, known = known, self.beside_work(known, nearest)
            too_late = nobody if known is former else known.late(nearest)
            if not too_late.size:
                return known, nearest, late
            late = np.union1d(late, too_late)
            if too_late.size < nearest.size:
                return known, nearest[~np.isin(nearest, too_late)], late
            left = np.setdiff1d(candidates, late)
        return known, nobody, late

    def in_time_at_best(self, outlook: Outlook) -> IntArray:
        """Places of the experts that keep the limits on seconds where those at work read no more, and stay."""
        busy = np.flatnonzero(self.load.busy)
        best = replace(outlook, forecast=outlook.forecast.beside(dict.fromkeys(busy.tolist(), NOTHING_UNREAD)))
        return np.setdiff1d(np.arange(len(self.roster)), best.late(busy))

    def alone(self) -> Case:
        """The case with panels limited to one member."""
        return replace(self, budgets=self.budgets.model_copy(update={"max_experts": 1}))

    def outlooks(self, mode: Mode) -> list[Outlook]:
        """The outlooks of a mode: one for each set of experts that could be a panel, and for each relevant size."""
        if mode is Mode.ROUTE:
            forecast = self.load.writing(self.roster)
            # A limited set of candidates is chosen by what they are worth for this very prompt, not on average.
            worth = self.worth if self.budgets.max_experts is None else self.prompt_worth
            return [self._outlook(forecast, worth, self.ruled_out, answer_tokens=self._usual_tokens)]
        largest = self.budgets.max_experts or DEFAULT_PANEL
        out = {**incapable_experts(mode, self.roster), **self.ruled_out}
        return [
            self._panel(mode, size, {**others, **out})
            for others in _outside_the_vocabulary(mode, self.roster, out)
            # Only what ranking costs depends on the panel's size.
            for size in (range(1, largest + 1) if mode is Mode.RANK else (largest,))
        ]

    def with_busy(self, busy: IntArray, request: SelectionRequest, budgets: Budgets) -> Case:
        """The case with other budgets and `busy` (N,) requests in progress on each expert."""
        ruled_out = ruled_out_by(request, self.roster, busy)
        return replace(self, load=replace(self.load, busy=busy), ruled_out=ruled_out, budgets=budgets)

    def _panel(self, mode: Mode, size: int, ruled_out: Mapping[str, str]) -> Outlook:
        """The outlook for panels of up to `size` members without the experts that are ruled out."""
        eligible = np.array([key not in ruled_out for key in self.roster.keys])
        work = work_in(mode, self.roster, self.load, size, eligible)
        # Who writes well need not score options well.
        scores = self.prompt_scores.by_scoring if mode is Mode.VOTE else None
        # Only where a member's one job is to write an answer does its usual length say what the job takes.
        usual = self._usual_tokens if mode is Mode.CONSENSUS else None
        return self._outlook(work.forecast, self.worth.together, ruled_out, work, scores, answer_tokens=usual)

    def _outlook(
        self,
        forecast: Forecast,
        worth: SetWorth,
        ruled_out: Mapping[str, str],
        work: Work | None = None,
        scores: PromptScores | None = None,
        *,
        answer_tokens: FloatArray | None,
    ) -> Outlook:
        return Outlook(
            forecast,
            scores or self.prompt_scores,
            worth,
            self.budgets,
            ruled_out,
            work,
            self.draw,
            self.price_per_j,
            self.prices,
            answer_tokens,
        )


def stated_problem(outlook: Outlook) -> Problem:
    """The planning problem of an outlook."""
    return problem_of(
        outlook.forecast, outlook.worth, outlook.budgets, outlook.ruled_out, outlook.work, draw=outlook.draw
    )


def _outside_the_vocabulary(mode: Mode, roster: Roster, out: Mapping[str, str]) -> list[dict[str, str]]:
    """For each set of experts that could be a panel: the reasons by key why all other experts are outside it.

    Only in mode MIX is there more than one set: one for each vocabulary.
    """
    if mode is not Mode.MIX:
        return [{}] if len(out) < len(roster) else []
    return [
        {key: "its vocabulary differs from the panel's" for key in roster.keys if key not in group}
        for group in by_vocabulary(roster, out)
    ]
