"""What the choice of experts learns from a request that has ended: the lengths of prompt and answer. PURE."""

from __future__ import annotations

from moe2.coordinator.choosing.lengths import Lengths
from moe2.coordinator.serving.attempt import Purpose
from moe2.coordinator.serving.effects import Completed
from moe2.coordinator.serving.life import Lifecycle


def learn_lengths(lengths: Lengths, life: Lifecycle) -> None:
    """Learns from every prompt that was read, and from an answer that one expert wrote from beginning to end."""
    for attempt in life.attempts:
        usage = attempt.usage
        # What is only scored was in the cache, or came with the choices.
        if attempt.purpose is not Purpose.SCORE and usage is not None and usage.decoded_tokens:
            foreseen = attempt.prediction.shape
            lengths.prompts.ran(attempt.expert.identity, life.request.demand, usage, foreseen)
            lengths.n_learned += 1
    _learn_answer(lengths, life)


def _learn_answer(lengths: Lengths, life: Lifecycle) -> None:
    attempt, outcome = life.leading, life.outcome
    # A panel's text is not one model's, and two authors in turn say nothing about either.
    if attempt is None or attempt.purpose is not Purpose.ANSWER or len(life.authors) > 1:
        return
    if isinstance(outcome, Completed) and attempt.usage is not None:
        lengths.answers.ended(
            attempt.selection.category,
            attempt.expert.identity,
            life.request.demand,
            attempt.usage.decoded_tokens,
            is_cut=outcome.reason == "length",
        )
