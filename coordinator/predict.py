"""What a request asks of an expert, and what it is predicted to take there. PURE.

The predictions themselves are made in `moe2.coordinator.roster`.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.cost import Quantiles, RequestShape
from moe2.common.energy import Quality

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
