"""The formulas of `moe2.common.cost` for one request on one expert, written out.

The coordinator evaluates them for all experts at once; this is what its forecasts are held to, and what the tests of
the agents' learners look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe2.common.cost import EnergyProfile, LatencyProfile, Quantiles, RequestShape, Spread


@dataclass(frozen=True)
class LatencyPrediction:
    """Seconds on the agent's side: to the first token, between tokens, and in all."""

    ttft_s: Quantiles
    inter_token_s: Quantiles
    total_s: Quantiles


def predicted_latency(profile: LatencyProfile, shape: RequestShape) -> LatencyPrediction:
    """Seconds of a request that arrives like this."""
    a0, a1, a2, a3 = profile.prefill
    b0, b1, b2 = profile.decode
    prompt, occupancy = shape.prompt_tokens, shape.occupancy
    waiting = 0 if shape.queued_ahead is None else shape.queued_ahead + 1
    first_s = waiting * profile.service_s / profile.slots
    first_s += a0 + a1 * prompt + a2 * prompt * (occupancy - 1)
    first_s += a3 * prompt * (prompt + 2 * shape.cached_tokens) / 1000
    unread, steps = shape.unread_tokens or 0.0, max(1, shape.decoded_tokens - 1)
    first_s += a1 * min(unread, prompt)
    if occupancy <= 1 and shape.queued_ahead is None:
        first_s += profile.found_idle_s
    else:
        first_s += profile.found_busy_s
    lived = expected_occupancy(profile, shape)
    found = profile.occupancy[1] * (occupancy - 1)
    staying = found if shape.to_write_tokens is None else min(shape.to_write_tokens / steps, occupancy - 1)
    step_s = b0 + b1 * (lived - 1) + b2 * context_tokens(shape) / 1000
    step_s += (profile.newcomer_s or 0.0) * max(0.0, lived - 1 - staying) + a1 * max(0.0, unread - prompt) / steps
    return LatencyPrediction(
        ttft_s=around(first_s, profile.ttft),
        inter_token_s=around(step_s, profile.inter_token),
        # The first token comes with the prefill.
        total_s=around(first_s + max(0, shape.decoded_tokens - 1) * step_s, profile.total),
    )


def predicted_energy(profile: EnergyProfile, shape: RequestShape, occupancy: float | None = None) -> Quantiles:
    """Joules of a request of this shape. occupancy: the mean of its life, the shape's own if not given."""
    e0, e1, e2, e3 = profile.coefficients
    tokens, lived = shape.decoded_tokens, shape.occupancy if occupancy is None else occupancy
    mean_j = e0 * shape.prompt_tokens + e1 * tokens + e2 * tokens / lived + e3 * tokens * context_tokens(shape) / 1000
    return around(mean_j, profile.spread)


def expected_occupancy(profile: LatencyProfile, shape: RequestShape) -> float:
    """The mean occupancy that a request which arrives like this is expected to live in: 1 to the slots."""
    m0, m1 = profile.occupancy
    return min(max(1.0, m0 + m1 * shape.occupancy), max(1.0, float(profile.slots)))


def context_tokens(shape: RequestShape) -> float:
    """Tokens that a decoding step looks back on, on average."""
    return shape.prompt_tokens + shape.cached_tokens + shape.decoded_tokens / 2


def around(mean: float, spread: Spread) -> Quantiles:
    """The quantiles of what is predicted to be `mean`."""
    return Quantiles(p50=mean * math.exp(spread.p50), p95=mean * math.exp(spread.p95))
