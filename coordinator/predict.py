"""What a request will take on an expert: predicted from the expert's measured rates. PURE."""

from __future__ import annotations

from dataclasses import dataclass

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
    def expected_answer_tokens(self) -> int:
        if self.max_tokens is None:
            return ASSUMED_ANSWER_TOKENS
        return min(self.max_tokens, ASSUMED_ANSWER_TOKENS)


@dataclass(frozen=True)
class Prediction:
    """Seconds until the first and the last token. None: the expert has not been measured."""

    ttft_s: float | None
    total_s: float | None


def estimate_prompt_tokens(texts: list[str]) -> int:
    """Tokens of a prompt given as its messages' texts."""
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return int(n_bytes / BYTES_PER_TOKEN) + CHAT_OVERHEAD_TOKENS * len(texts)


def predict(expert: Expert, demand: Demand, in_flight: int) -> Prediction:
    """Completion time with `in_flight` requests already on the expert.

    Running requests share the decoder, so a request beside `k` others is assumed to decode at its measured rate; one
    that finds no free slot waits until enough of those before it have ended, each taking as long as this one would.
    """
    performance = expert.report.performance
    if not performance.prefill_tokens_per_s or not performance.decode_tokens_per_s:
        return Prediction(None, None)
    prefill_s = demand.prompt_tokens / performance.prefill_tokens_per_s
    decode_s = demand.expected_answer_tokens / performance.decode_tokens_per_s
    rounds_before = in_flight // expert.report.slots
    wait_s = rounds_before * (prefill_s + decode_s)
    return Prediction(ttft_s=wait_s + prefill_s, total_s=wait_s + prefill_s + decode_s)
