"""One expert's speed in one power mode, learned from its own requests. PURE.

The formulas are those of `moe2.common.cost`. Between tokens, coefficients are learned with the batch occupancy that a
request really had, and apart from them what occupancy to expect; the spread is learned with what was known when it
arrived, which is what a prediction has to go by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from moe2.agent.learning.guesses import RatioForecast
from moe2.agent.learning.occupancy import OccupancyForecast
from moe2.agent.learning.regression import RelativeRegression, around
from moe2.agent.learning.residuals import AGREEING, ResidualPool
from moe2.common.cost import LatencyProfile, RequestShape, expected_to_live, inter_token_features, prefill_features

_FEWEST_TOKENS = 4
"""Shorter phases say more about the clock than about the model."""
_SERVICE_WEIGHT = 0.2
_SLOWEST_PACE = 1.5
"""Guesses never make decoding slower by more, whatever is said to have been saved."""
_NEWCOMER = 0.3
"""Of the seconds of a step, what a newcomer may add to each; only its order of magnitude matters."""
_MIN_OWN = 0.1
"""Of the seconds of a request's tokens at least this share is its own, however much of others' prompts was read."""


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """A finished phase of a request. Seconds; None where a phase was not reached or cut short.

    shape: with the numbers of tokens that really occurred, and occupancy and queue as they were at its arrival.
    mean_occupancy: requests in the batch while it ran, itself included; None if unknown. newcomers: those of them that
    came after it. wait_s: from the slot until the engine was done with the batch in progress; not part of `queue_s`.
    saved_s: what guesses have taken off `decode_s`. effort: joules of a decoded token beside one without guesses.
    """

    shape: RequestShape
    queue_s: float = 0.0
    wait_s: float = 0.0
    prefill_s: float | None = None
    decode_s: float | None = None
    mean_occupancy: float | None = None
    newcomers: float = 0.0
    saved_s: float = 0.0
    effort: float = 1.0


class _Phase:
    """One phase's law, and how far it is off for requests that have just arrived."""

    def __init__(self, prior: Callable[[float], RelativeRegression]) -> None:
        self._prior = prior
        self.law: RelativeRegression | None = None
        self.residuals = ResidualPool()

    def begin(self, token_s: float) -> None:
        """Start from seconds per token, unless more is known already."""
        if self.law is None:
            self.law = self._prior(token_s)

    def observe(
        self,
        features: tuple[float, ...],
        lived: tuple[float, ...],
        seconds: float,
        *,
        pace: float = 1.0,
        expected_pace: float = 1.0,
    ) -> bool:
        """Learn; True if the pace has changed. features: as known at the arrival. lived: as it turned out.

        pace: the share of the law's seconds that it took, as tokens were guessed; expected_pace: what was expected.
        """
        assert self.law is not None  # noqa: S101 - begun by the caller
        expected_s = self.law.predict(features) * expected_pace
        changed = expected_s > 0 and self.residuals.add(math.log(seconds / expected_s))
        self.law.observe(lived, seconds / pace)
        if changed:
            self.law = self.law.repaced(AGREEING)
        return changed


class LatencyModel:
    """Learns how long requests take with `observe`; `profile` is what is known."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._prefill = _Phase(_prefill_prior)
        self._decode = _Phase(_decode_prior)
        self._ttft = ResidualPool(watch=False)
        self._total = ResidualPool(watch=False)
        self._occupancy = OccupancyForecast()
        self._pace = RatioForecast()
        self._service_s: float | None = None
        self._n_requests = 0
        self.changes = 0
        """How often the pace of a phase was found to have changed."""

    @classmethod
    def starting_from(cls, profile: LatencyProfile) -> LatencyModel:
        """A model whose law is taken over (from another power mode, or stored) but not confirmed by any request."""
        model = cls(profile.slots)
        a0, *others, a4, a5 = profile.prefill_law
        model._prefill.law = around((*others, a0 + a4, a0 + a5))
        if profile.newcomer_s is None:
            model._decode.law = around(profile.decode, unlearned=[_NEWCOMER * profile.decode[0]])
        else:
            model._decode.law = around((*profile.decode, profile.newcomer_s))
        model._service_s = profile.service_s
        return model

    def warmed_up(self, prefill_tokens_per_s: float | None, decode_tokens_per_s: float | None) -> None:
        """Take in the rates of the run after loading: a first guess, as uncertain as no measurement at all."""
        if prefill_tokens_per_s:
            self._prefill.begin(1 / prefill_tokens_per_s)
        if decode_tokens_per_s:
            self._decode.begin(1 / decode_tokens_per_s)

    @property
    def profile(self) -> LatencyProfile | None:
        """What is known; None before both phases were measured."""
        if self._prefill.law is None or self._decode.law is None:
            return None
        a1, a2, a3, idle_s, busy_s = self._prefill.law.coefficients
        a0 = min(idle_s, busy_s)
        b0, b1, b2, b3 = (each * self._pace.expected for each in self._decode.law.coefficients)
        return LatencyProfile(
            prefill=(a0, a1, a2, a3),
            decode=(b0, b1, b2),
            slots=self.slots,
            # Before the first request: one of a hundred tokens.
            service_s=self._service_s if self._service_s is not None else 100 * (a1 + b0),
            ttft=self._ttft.spread,
            inter_token=self._decode.residuals.spread,
            total=self._total.spread,
            n_requests=self._n_requests,
            occupancy=self._occupancy.coefficients,
            found_idle_s=idle_s - a0,
            newcomer_s=b3,
            found_busy_s=busy_s - a0,
        )

    def observe(self, timing: RequestTiming) -> None:
        """Learn from a request, finished or not: from the phases that it completed."""
        shape = timing.shape
        prefill_s = timing.prefill_s if shape.prompt_tokens >= _FEWEST_TOKENS else None
        decode_s = timing.decode_s if shape.decoded_tokens > _FEWEST_TOKENS else None
        if not prefill_s and not decode_s:
            return
        prefill_s = None if prefill_s is None else timing.wait_s + prefill_s
        self._compare(shape, timing.queue_s, prefill_s, decode_s)
        self._n_requests += 1
        if prefill_s:
            self._prefill.begin(prefill_s / shape.prompt_tokens)
            # What is fixed is learned apart for who finds the expert idle and who finds it at work.
            features = prefill_features(shape, shape.found_idle)[1:]
            if self._prefill.observe(features, features, prefill_s):
                self._pace_changed()
        if decode_s:
            # The first token comes with the prefill.
            step_s = self._own_step_s(shape, decode_s / (shape.decoded_tokens - 1))
            pace = decode_s / max(decode_s + timing.saved_s, decode_s / _SLOWEST_PACE)
            self._decode.begin(step_s / pace)
            expected = expected_to_live(shape, self._occupancy.coefficients, self.slots)
            lived = msgspec.structs.replace(
                shape, occupancy=timing.mean_occupancy or shape.occupancy, newcomers=timing.newcomers
            )
            if self._decode.observe(
                inter_token_features(expected)[:-1],
                inter_token_features(lived)[:-1],
                step_s,
                pace=pace,
                expected_pace=self._pace.expected,
            ):
                self._pace_changed()
            self._pace.observe(pace)
            self._occupancy.observe(shape.occupancy, lived.occupancy)
        if prefill_s and decode_s:
            held_s = prefill_s + decode_s
            old_s = self._service_s if self._service_s is not None else held_s
            self._service_s = old_s + _SERVICE_WEIGHT * (held_s - old_s)

    def _own_step_s(self, shape: RequestShape, step_s: float) -> float:
        """Seconds between two tokens without what others' prompts took, whose price the prefill's law knows."""
        a1 = self._prefill.law.coefficients[0] if self._prefill.law else 0.0
        return max(_MIN_OWN * step_s, step_s - a1 * inter_token_features(shape)[-1])

    def _compare(self, shape: RequestShape, queue_s: float, prefill_s: float | None, decode_s: float | None) -> None:
        """Add what predictions of first token and total, made at the arrival, would have been off by."""
        profile = self.profile
        if profile is None or not prefill_s:
            return
        first_s = profile.queue_s(shape) + profile.prefill_s(shape)
        if first_s <= 0:
            return
        self._ttft.add(math.log((queue_s + prefill_s) / first_s))
        if decode_s:
            total_s = first_s + (shape.decoded_tokens - 1) * profile.inter_token_s(profile.lived(shape))
            self._total.add(math.log((queue_s + prefill_s + decode_s) / total_s))

    def _pace_changed(self) -> None:
        """A phase takes longer or shorter from now on (power mode, throttling).

        The phases change apart: the one is bound by arithmetic, the other by memory.
        """
        self.changes += 1
        self._ttft.pace_changed()
        self._total.pace_changed()
        self._n_requests = AGREEING


def _prefill_prior(token_s: float) -> RelativeRegression:
    """A prior around seconds per prompt token: no fixed costs known, some slowing in a batch and with the length."""
    scale = (0.5 * token_s, 0.5 * token_s, 0.1 * token_s, 20 * token_s, 20 * token_s)
    return RelativeRegression(mean=(token_s, 0.0, 0.0, 0.0, 0.0), scale=scale)


def _decode_prior(token_s: float) -> RelativeRegression:
    """A prior around seconds per decoded token, slowing in a batch, with the context and by newcomers."""
    scale = (0.5 * token_s, 0.3 * token_s, 0.1 * token_s, _NEWCOMER * token_s)
    return RelativeRegression(mean=(token_s, 0.0, 0.0, 0.0), scale=scale)
