"""The cost of one request when all members of a panel work for it, and the weights of those members. PURE.

The cost depends on the mode, with k the panel's size:

- vote: every member reads the prompt and all choices, and writes nothing.
- rank: every member writes an answer, then reads the prompt and k answers to score them. Its prefix cache is taken to
  hold none of that.
- consensus: members write whole answers. All of them are counted, although most votes are settled before everybody was
  asked, and their seconds are those of the slowest, as they can be asked at the same time.
- mix: every member writes the whole answer at the pace of the slowest, and each token takes a round trip. A member that
  waits draws at least its idle power, where that is known.

The panel's energy is the sum of its members' energies, its delay the longest of their delays. In rank nobody scores
before the last member has written, and in mix nobody writes before the last member has read the prompt; this overhead
is at most the difference between the slowest and the fastest scoring, or reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from moe2.common.cost import Quantiles
from moe2.common.energy import worst_quality
from moe2.coordinator.choosing.forecast import BoolArray, FloatArray, Forecast, IntArray, Prediction, Range, Roster
from moe2.coordinator.choosing.mixture import gate_weights
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.choosing.workload import Workload

DEFAULT_PANEL = 3
"""Largest size of a panel where nobody sets `max_experts`."""
MIN_WEIGHT = 0.02
"""A member with less weight costs joules and decides next to nothing, so it is left out."""
MIN_PROTOCOL = 2
"""Version of the link protocol from which on agents can score texts and follow another member's tokens."""

_NO_TIME = Quantiles(0.0, 0.0)


class Load(Workload, frozen=True, eq=False, kw_only=True):
    """What a request asks of each expert of a roster, in whatever mode."""

    choice_tokens: int
    """Length of all given choices together; 0 without choices."""
    max_tokens: int | None = None
    """Longest answer that the client allows; None where it sets no limit."""

    def writing(self, roster: Roster) -> Forecast:
        """What it takes each expert of the roster to write a whole answer."""
        return roster.forecast(
            self.prompt_tokens, self.answer_tokens, self.busy, self.cached_tokens, self.longest_tokens
        )


@dataclass(frozen=True, eq=False)
class Work:
    """What every member of a panel of up to `size` members has to do in one mode."""

    mode: Mode
    size: int
    forecast: Forecast
    """What all of a member's jobs take."""
    overhead_s: Quantiles = _NO_TIME
    """Seconds that panels of two and more take on top of their slowest member."""
    parts: tuple[Forecast, ...] = ()
    """What each of a member's jobs takes, in their order; empty where there is only one job."""

    @property
    def delivers_at_once(self) -> bool:
        """True where the whole answer comes at once, so that its first token is no sooner than its last."""
        return self.mode is not Mode.MIX


def work_in(mode: Mode, roster: Roster, load: Load, size: int, eligible: BoolArray) -> Work:
    """The work of panels of up to `size` members in one mode.

    eligible: (N,) True for experts that may become members; the pace that members share depends on these alone.
    """
    if mode is Mode.VOTE:
        return Work(mode, size, _vote(roster, load))
    if mode is Mode.RANK:
        return _rank(roster, load, size, eligible)
    if mode is Mode.CONSENSUS:
        writing = load.writing(roster)
        return Work(mode, size, replace(writing, ttft_s=writing.total_s))
    forecast = _mix(roster, load, eligible)
    return Work(mode, size, forecast, _spread(forecast.ttft_s, eligible))


def incapable_experts(mode: Mode, roster: Roster) -> dict[str, str]:
    """Experts that cannot work in a panel of this mode, with the reason by their key."""
    reasons: dict[str, str] = {}
    for expert in roster.experts:
        if expert.protocol < MIN_PROTOCOL and mode is not Mode.CONSENSUS:
            reasons[expert.key] = (
                f"its agent speaks protocol {expert.protocol}, and mode {mode.value} needs {MIN_PROTOCOL}"
            )
        elif mode is Mode.MIX and expert.report.vocabulary_sha256 is None:
            reasons[expert.key] = "its vocabulary is not known"
    return reasons


def by_vocabulary(roster: Roster, out: Mapping[str, str]) -> list[frozenset[str]]:
    """Groups of experts with one vocabulary each, as their keys. out: reasons by key of experts that are left out."""
    groups: dict[str, set[str]] = {}
    for expert in roster.experts:
        vocabulary = expert.report.vocabulary_sha256
        if expert.key not in out and vocabulary is not None:
            groups.setdefault(vocabulary, set()).add(expert.key)
    return [frozenset(group) for group in groups.values()]


def weighted_members(places: Sequence[int], logits: FloatArray) -> list[tuple[int, float]]:
    """Members with at least `MIN_WEIGHT` as (place, weight), heaviest first; the weights sum to 1.

    logits: (N,) the gate's.
    """
    ranked = sorted(places, key=lambda place: -logits[place])
    weights = gate_weights(logits[ranked])
    # The heaviest has at least 1/M, so there is always one.
    counting = [place for place, weight in zip(ranked, weights, strict=True) if weight >= MIN_WEIGHT] or ranked[:1]
    return list(zip(counting, gate_weights(logits[counting]).tolist(), strict=True))


def coverage(scores: FloatArray) -> float:
    """Chance that at least one of the members answers well, from their scores (M,), taken as independent."""
    return float(1 - np.prod(1 - scores))


def joint_prediction(work: Work, places: Sequence[int]) -> Prediction:
    """What the panel of the experts at `places` takes: its members' joules together, its slowest member's seconds."""
    members = [work.forecast.prediction(place) for place in places]
    overhead_s = work.overhead_s if len(members) > 1 else _NO_TIME
    qualities = [member.energy_quality for member in members if member.energy_quality is not None]
    total_s = _delayed(_slowest([member.total_s for member in members]), overhead_s)
    return Prediction(
        shape=members[0].shape,
        ttft_s=total_s if work.delivers_at_once else _slowest([member.ttft_s for member in members]),
        per_token_s=None if work.delivers_at_once else _slowest([member.per_token_s for member in members]),
        total_s=total_s,
        energy_j=_summed([member.energy_j for member in members]),
        energy_quality=worst_quality(qualities) if qualities else None,
        transmit_s=max(member.transmit_s for member in members),
    )


def _vote(roster: Roster, load: Load) -> Forecast:
    """What it takes each expert to read the prompt with all choices."""
    # A forecast has at least one answer token, which comes with the prefill.
    return roster.forecast(load.prompt_tokens + load.choice_tokens, 1, load.busy, load.cached_tokens)


def _rank(roster: Roster, load: Load, size: int, eligible: BoolArray) -> Work:
    """The work of writing an answer, then reading and scoring those of all `size` members."""
    writing = load.writing(roster)
    if size < 2:
        return Work(Mode.RANK, size, replace(writing, ttft_s=writing.total_s))
    scoring = _scoring(roster, load, size, load.answer_tokens)
    if load.longest_tokens is not None:
        longest = _scoring(roster, load, size, load.longest_tokens)
        scoring = replace(
            scoring,
            ttft_s=Range(scoring.ttft_s.p50, longest.ttft_s.p95),
            total_s=Range(scoring.total_s.p50, longest.total_s.p95),
            energy_j=Range(scoring.energy_j.p50, longest.energy_j.p95),
        )
    total_s = _sum(writing.total_s, scoring.total_s)
    energy_j = _sum(writing.energy_j, scoring.energy_j)
    whole = replace(writing, ttft_s=total_s, total_s=total_s, energy_j=energy_j)
    return Work(Mode.RANK, size, whole, _spread(scoring.total_s, eligible), (writing, scoring))


def _scoring(roster: Roster, load: Load, size: int, answer_tokens: int | IntArray) -> Forecast:
    """What it takes each expert to read the prompt and `size` answers of so many tokens."""
    return roster.forecast(load.prompt_tokens + size * answer_tokens, 1, load.busy, load.cached_tokens)


def _mix(roster: Roster, load: Load, eligible: BoolArray) -> Forecast:
    """What it takes each expert to write an answer at the pace of the slowest eligible one."""
    alone = load.writing(roster)
    steps = np.maximum(0, np.asarray(load.answer_tokens) - 1)
    most_steps = steps if load.longest_tokens is None else np.maximum(0, load.longest_tokens - 1)
    step_s = Range(*(figures + roster.transmit_s for figures in (alone.per_token_s.p50, alone.per_token_s.p95)))
    pace_s = np.where(eligible, np.nan_to_num(step_s.p50), 0.0).max()
    waits_s = np.maximum(pace_s - alone.per_token_s.p50, 0.0)
    waits_j = np.nan_to_num(roster.idle_w * waits_s)
    return replace(
        alone,
        per_token_s=step_s,
        total_s=_shifted(alone.total_s, steps * roster.transmit_s, most_steps * roster.transmit_s),
        energy_j=_shifted(alone.energy_j, steps * waits_j, most_steps * waits_j),
    )


def _shifted(costs: Range, by: FloatArray, by_most: FloatArray) -> Range:
    return Range(costs.p50 + by, costs.p95 + by_most)


def _sum(left: Range, right: Range) -> Range:
    """The quantiles of a sum, taken as the sum of the quantiles, so that they hold where both are late together."""
    return Range(left.p50 + right.p50, left.p95 + right.p95)


def _spread(seconds: Range, eligible: BoolArray) -> Quantiles:
    """The slowest minus the fastest of the eligible experts whose seconds are known; 0 where there is none."""
    known = eligible & ~np.isnan(seconds.p50)
    if not known.any():
        return _NO_TIME
    return Quantiles(float(np.ptp(seconds.p50[known])), float(np.ptp(seconds.p95[known])))


def _slowest(parts: Sequence[Quantiles | None]) -> Quantiles | None:
    """The largest of each quantile; None where any part is unknown."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Quantiles(max(part.p50 for part in known), max(part.p95 for part in known))


def _summed(parts: Sequence[Quantiles | None]) -> Quantiles | None:
    """The sum of each quantile; None where any part is unknown."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Quantiles(sum(part.p50 for part in known), sum(part.p95 for part in known))


def _delayed(seconds: Quantiles | None, by: Quantiles) -> Quantiles | None:
    return None if seconds is None else Quantiles(seconds.p50 + by.p50, seconds.p95 + by.p95)
