"""What a request takes on an expert: quantiles of seconds and joules, from what its agent has learned. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.cost import Quantiles, RequestShape
from moe2.common.energy import Quality
from moe2.common.messages import ExpertState
from moe2.coordinator.table import Expert

BYTES_PER_TOKEN = 4.0
"""Rough length of a token in UTF-8 bytes of English text. Only the expert's own tokenizer knows; it checks again."""
CHAT_OVERHEAD_TOKENS = 8
"""Tokens that a chat template adds to each message, roughly."""
ASSUMED_ANSWER_TOKENS = 256
"""Length of an answer when the request sets no limit: most answers end by themselves long before the context does."""


@dataclass(frozen=True)
class Demand:
    """What a request asks of an expert.

    prompt_tokens: estimated. max_tokens: None where the client set none.
    """

    prompt_tokens: int
    max_tokens: int | None

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is planned for."""
        return ASSUMED_ANSWER_TOKENS if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True)
class Prediction:
    """Of one request on one expert. None: the expert has not been measured in this respect.

    transmit_s: one round trip to its host; 0 before one was measured. energy_quality: of the measurements that the
    joules rest on. shape: the request as it was taken to be.
    """

    shape: RequestShape
    ttft_s: Quantiles | None
    per_token_s: Quantiles | None
    total_s: Quantiles | None
    energy_j: Quantiles | None
    energy_quality: Quality | None = None
    transmit_s: float = 0.0


def estimate_prompt_tokens(texts: list[str]) -> int:
    """Tokens of a prompt given as its messages' texts."""
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return int(n_bytes / BYTES_PER_TOKEN) + CHAT_OVERHEAD_TOKENS * len(texts)


def predict(expert: Expert, demand: Demand, in_flight: int) -> Prediction:
    """The request's costs with `in_flight` requests already on the expert; one that is not in memory has to be loaded
    first, which takes as long as it last did."""
    report = expert.report
    shape = RequestShape(
        prompt_tokens=demand.prompt_tokens,
        decoded_tokens=demand.answer_tokens,
        occupancy=min(in_flight + 1, report.slots),
        queued_ahead=in_flight - report.slots if in_flight >= report.slots else None,
    )
    return predict_shape(expert, shape)


def predict_shape(expert: Expert, shape: RequestShape) -> Prediction:
    """The costs of a request of this shape."""
    report = expert.report
    lived = report.latency.lived(shape) if report.latency else shape
    energy_j = report.energy.predict(lived) if report.energy else None
    energy_quality = report.energy.quality if report.energy else None
    load_s = 0.0 if report.state is ExpertState.READY else report.load_s
    if report.latency is None:
        return Prediction(shape, None, None, None, energy_j, energy_quality)
    latency = report.latency.predict(shape)
    transmit_s = expert.rtt_s or 0.0
    before_s = None if load_s is None else transmit_s + load_s
    return Prediction(
        shape=shape,
        ttft_s=_later(latency.ttft_s, before_s),
        per_token_s=latency.inter_token_s,
        total_s=_later(latency.total_s, before_s),
        energy_j=energy_j,
        energy_quality=energy_quality,
        transmit_s=transmit_s,
    )


def _later(seconds: Quantiles, by_s: float | None) -> Quantiles | None:
    return None if by_s is None else Quantiles(seconds.p50 + by_s, seconds.p95 + by_s)
