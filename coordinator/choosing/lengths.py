"""The lengths of prompt and answer that requests are predicted by, on each expert of a roster. PURE."""

from __future__ import annotations

import msgspec
import numpy as np

from moe2.coordinator.choosing.answer_lengths import AnswerLengths, LengthSums
from moe2.coordinator.choosing.forecast import IntArray, Roster
from moe2.coordinator.choosing.prompt_lengths import LineSums, PromptLengths
from moe2.coordinator.choosing.request import Demand

VERSION = 1


class SavedLengths(msgspec.Struct, frozen=True, kw_only=True):
    """All that outlives a restart: of prompts by the model's identity, of answers by category and model."""

    version: int = VERSION
    prompts: dict[str, LineSums] = {}
    answers: tuple[LengthSums, ...] = ()


class Lengths:
    """What is learned of lengths. One writer: the coordinator's event loop.

    saved: from an earlier run. n_learned counts what was learned from, so that nothing new need not be kept.
    """

    def __init__(self, saved: SavedLengths | None = None) -> None:
        saved = saved or SavedLengths()
        self.prompts = PromptLengths(saved.prompts)
        self.answers = AnswerLengths(saved.answers)
        self.n_learned = 0

    @property
    def saved(self) -> SavedLengths:
        """What a restarted coordinator has to know."""
        return SavedLengths(prompts=self.prompts.saved, answers=self.answers.saved)

    def prompt_tokens(self, roster: Roster, demand: Demand) -> IntArray:
        """(N,) predicted length of the prompt to each expert's model."""
        lengths = [self.prompts.demand_on(model, demand).prompt_tokens for model in roster.different_models]
        return np.array(lengths)[roster.model_place]

    def answer_tokens(
        self, roster: Roster, demand: Demand, category: str, prompt_tokens: IntArray
    ) -> tuple[int | IntArray, IntArray | None]:
        """The answer's length, and the length (N,) that 95 of 100 keep below where the client sets no limit.

        prompt_tokens: (N,) of the prompt; a context holds no longer answer than it has room for beside it.
        """
        if demand.max_tokens is not None or demand.longest_text_tokens is not None:
            return demand.answer_tokens, None
        p50, p95 = self.answers.of(category, roster.different_models)
        room = np.maximum(1, roster.context_tokens - prompt_tokens)
        return np.minimum(p50[roster.model_place], room), np.minimum(p95[roster.model_place], room)
