"""What a request will take on an expert: seconds and joules with quantiles. PURE.

Agents learn these profiles from their own requests (`moe2.agent.learning`) and report them; the coordinator evaluates
them for requests that have not run yet, on all experts at once (`moe2.coordinator.choosing.forecast`). Both use the
formulas below, so that a prediction means the same on either side.

With p prompt tokens to prefill after k that are cached, n tokens to decode, o requests in the batch (this one included)
and c = k + p + n/2 tokens of context on average, u tokens that are unread of others' prompts when it begins, and j of o
that come later:

    prefill seconds     a0 + a1 (p + min(u, p)) + a2 p (o - 1) + a3 p (p + 2 k) / 1000 + (a4 where nothing else ran)
                        + (a5 where something did)
    inter-token seconds b0 + b1 (o - 1) + b2 c / 1000 + b3 j + a1 max(0, u - p) / (n - 1)
    joules              e0 p + e1 n + e2 n / o + e3 n c / 1000

For inter-token seconds and joules, o is the mean over the request's life, which is expected to be m0 + m1 * (what it
finds at its arrival), between 1 and the slots; for the prefill, o is what it finds. Short prompts come first: as much
of u comes before the first token as p itself has, the rest is read beside the other tokens. Newcomers bring prompts:
j is the company to expect less that of those it finds, who stay while they write. That is w / (n - 1) of them on
average, and no more than all, where they have w tokens still to write; where that is not known it is m1 of each.

The prefill is all from the slot to the first token. After a pause clocks and caches have gone down, which costs the
first request a4. Who finds the expert at work waits first until the batch in progress is done, which costs a5 beyond
what that batch reads of u. Attention looks back from each prompt token on all before it: on p/2 of its own and k cached
ones on average.

All coefficients are >= 0: more work never costs less. e1 is what every sequence costs on its own, e2 what a batch
shares (reading the weights, idle power).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from moe2.common.energy import Quality, Scope


class RequestShape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The shape of a request: what its cost depends on.

    prompt_tokens: to be prefilled, without `cached_tokens`. decoded_tokens: that will be generated. occupancy: requests
    that share the batch, this one included. queued_ahead: requests that wait for a slot before this one; None if it
    gets a slot at once. unread_tokens: of the prompts of those it finds, as it comes. to_write_tokens: that these still
    have to write. None of either is unknown: nothing is then unread. newcomers: of `occupancy`, those that come later.
    """

    prompt_tokens: int
    decoded_tokens: int
    cached_tokens: int = 0
    occupancy: float = 1.0
    queued_ahead: int | None = None
    unread_tokens: float | None = None
    to_write_tokens: float | None = None
    newcomers: float = 0.0

    @property
    def found_idle(self) -> bool:
        """True where the expert has nothing else to do as the request begins."""
        return self.occupancy <= 1 and self.queued_ahead is None

    @property
    def mean_context_tokens(self) -> float:
        """Tokens that a decoding step looks back on, on average."""
        return self.prompt_tokens + self.cached_tokens + self.decoded_tokens / 2


class Quantiles(msgspec.Struct, frozen=True, gc=False):
    """Half of the requests stay below `p50`, 95 of 100 below `p95`."""

    p50: float
    p95: float


class Spread(msgspec.Struct, frozen=True, gc=False):
    """Quantiles of ln(actual / mean prediction)."""

    p50: float
    p95: float


class LatencyProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An expert's learned speed.

    prefill, decode: coefficients a0.. to a3 and b0.. to b2 of the module's formulas. found_idle_s: a4. newcomer_s: b3;
    None from earlier releases, whose other coefficients were learned without u and j. found_busy_s: a5. occupancy: m0,
    m1. service_s: mean seconds that a request holds a slot. n_requests: requests that it rests on since the last change
    of pace; 0 for the warm-up alone.
    """

    prefill: tuple[float, float, float, float]
    decode: tuple[float, float, float]
    slots: int
    service_s: float
    ttft: Spread
    inter_token: Spread
    total: Spread
    n_requests: int = 0
    occupancy: tuple[float, float] = (0.0, 1.0)
    found_idle_s: float = 0.0
    newcomer_s: float | None = None
    found_busy_s: float = 0.0

    @property
    def tells_newcomers(self) -> bool:
        """True where the law knows of others' prompts and of newcomers."""
        return self.newcomer_s is not None

    @property
    def prefill_law(self) -> tuple[float, ...]:
        """What `prefill_features` is multiplied by."""
        return (*self.prefill, self.found_idle_s, self.found_busy_s)

    @property
    def inter_token_law(self) -> tuple[float, ...]:
        """What `inter_token_features` is multiplied by."""
        return (*self.decode, self.newcomer_s or 0.0, self.prefill[1])

    def prefill_s(self, shape: RequestShape) -> float:
        """Mean seconds of the prefill."""
        return _dot(self.prefill_law, prefill_features(shape, shape.found_idle))

    def inter_token_s(self, shape: RequestShape) -> float:
        """Mean seconds between two tokens of a request that lives in this shape."""
        return _dot(self.inter_token_law, inter_token_features(shape))

    def queue_s(self, shape: RequestShape) -> float:
        """Mean seconds in the queue: slots fall free one by one, every `service_s / slots`."""
        return 0.0 if shape.queued_ahead is None else (shape.queued_ahead + 1) * self.service_s / self.slots

    def lived(self, shape: RequestShape) -> RequestShape:
        """Returns the shape with the mean occupancy that the request is expected to meet, and how much of that are
        requests that come later."""
        return expected_to_live(shape, self.occupancy, self.slots)


class EnergyProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An expert's learned energy, idle share included.

    coefficients: e0.. of the module's formulas. quality: of the worst measurement that it rests on. scope: what the
    joules cover; profiles of different scopes are not comparable without saying so.
    """

    coefficients: tuple[float, float, float, float]
    spread: Spread
    quality: Quality
    scope: Scope | None = None
    idle_w: float | None = None
    n_requests: int = 0

    def mean_j(self, shape: RequestShape) -> float:
        """Mean joules of a request of this shape."""
        return _dot(self.coefficients, energy_features(shape))

    def j_per_prefilled_token(self) -> float:
        """Mean J per prompt token."""
        return self.coefficients[0]

    def j_per_decoded_token(self, occupancy: float = 1.0, context_tokens: float = 0.0) -> float:
        """Mean J per generated token in a batch of `occupancy`."""
        _, own, shared, context = self.coefficients
        return own + shared / occupancy + context * context_tokens / 1000


def expected_to_live(shape: RequestShape, occupancy: tuple[float, float], slots: int) -> RequestShape:
    """The shape with the mean occupancy of its life in place of that at its arrival, and the newcomers of it.

    occupancy: m0, m1.
    """
    m0, m1 = occupancy
    lived = min(max(1.0, m0 + m1 * shape.occupancy), max(1.0, float(slots)))
    staying = m1 * (shape.occupancy - 1) if shape.to_write_tokens is None else staying_on(shape)
    return msgspec.structs.replace(shape, occupancy=lived, newcomers=max(0.0, lived - 1 - staying))


# The functions below take arrays as well as numbers. Nothing of what is common needs numpy.


def staying_on(shape: RequestShape) -> float:
    """How many of those that a request finds are beside it on average, by what they have still to write."""
    assert shape.to_write_tokens is not None  # noqa: S101 - asked only where it is known
    return _smaller(shape.to_write_tokens / _steps(shape), shape.occupancy - 1)


def prefill_features(shape: RequestShape, found_idle: float) -> tuple[float, ...]:
    """What the prefill's coefficients multiply. found_idle: 1 where nothing else runs, 0 otherwise."""
    tokens = shape.prompt_tokens
    read = tokens if shape.unread_tokens is None else tokens + _smaller(shape.unread_tokens, tokens)
    looked_back = tokens * (tokens + 2 * shape.cached_tokens) / 1000
    return (1.0, read, tokens * (shape.occupancy - 1), looked_back, 1.0 * found_idle, 1.0 - found_idle)


def inter_token_features(shape: RequestShape) -> tuple[float, ...]:
    """What the inter-token time's coefficients multiply; the last one is a1."""
    unread, after = shape.unread_tokens, 0.0
    if unread is not None:
        after = (unread - _smaller(unread, shape.prompt_tokens)) / _steps(shape)
    return (1.0, shape.occupancy - 1, shape.mean_context_tokens / 1000, shape.newcomers, after)


def energy_features(shape: RequestShape) -> tuple[float, ...]:
    """What the energy's coefficients multiply."""
    tokens = shape.decoded_tokens
    return (
        shape.prompt_tokens,
        tokens,
        tokens / shape.occupancy,
        tokens * shape.mean_context_tokens / 1000,
    )


def _steps(shape: RequestShape) -> float:
    """Tokens after the first one, at least 1."""
    return 1 - _smaller(0.0, 2.0 - shape.decoded_tokens)


def _smaller(one: float, other: float) -> float:
    return (one + other - abs(one - other)) / 2


def _dot(coefficients: Sequence[float], features: Sequence[float]) -> float:
    return sum([a * b for a, b in zip(coefficients, features, strict=True)])
