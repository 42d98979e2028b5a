"""Measured speed of one expert, learned from its own jobs. PURE."""

from __future__ import annotations

from moe2.agent.engine.protocol import Finished
from moe2.common.messages import Performance

# Weight of a new observation: after about five jobs a change of speed (power mode, throttling) dominates.
WEIGHT = 0.3
# Shorter phases say more about the clock than about the model.
FEWEST_TOKENS = 4


class PerformanceEstimate:
    """Exponentially weighted rates in tokens per second, and time to first token in seconds."""

    def __init__(self) -> None:
        self.performance = Performance()

    def warmed_up(self, prefill_tokens_per_s: float | None, decode_tokens_per_s: float | None) -> None:
        """The run after loading: the first figures of a fresh model, replacing those of its predecessor."""
        self.performance = Performance(
            prefill_tokens_per_s=prefill_tokens_per_s, decode_tokens_per_s=decode_tokens_per_s
        )

    def job_finished(self, finished: Finished, ttft_s: float | None) -> None:
        """Learn from a job; phases that were cut short or too small to time are left out."""
        old = self.performance
        prefilled = finished.prompt_tokens - finished.cached_tokens
        self.performance = Performance(
            prefill_tokens_per_s=_blend(old.prefill_tokens_per_s, prefilled, finished.prefill_s),
            decode_tokens_per_s=_blend(old.decode_tokens_per_s, finished.decoded_tokens, finished.decode_s),
            ttft_s=old.ttft_s if ttft_s is None else _mix(old.ttft_s, ttft_s),
            n_requests=old.n_requests + 1,
        )


def _blend(old_rate: float | None, tokens: int, seconds: float | None) -> float | None:
    if tokens < FEWEST_TOKENS or not seconds:
        return old_rate
    return _mix(old_rate, tokens / seconds)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
