"""What guessing gains and costs, on a clock that each step of a simulated model moves on by its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from moe2.agent.engine.distribution import Logits
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.ngrams import TokenHistory
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import VOCABULARY_SIZE, Engine

ON_CPU, BETWEEN, ON_GPU = 0.55, 0.2, 0.02
"""What each further token of a batch takes beside the first: a small model on two cores, and what waits for memory."""


def _seconds(token_s: float) -> Callable[[int], float]:
    return lambda tokens: 0.01 * (1 + token_s * (tokens - 1))


def _chosen(token: int) -> Logits:
    logits = np.zeros(VOCABULARY_SIZE, np.float32)
    logits[token] = 9
    return logits


def _repeats(tokens: Sequence[int]) -> Logits:
    """An answer that repeats the prompt."""
    return _chosen(tokens[-13])


def _never_holds(tokens: Sequence[int]) -> Logits:
    """An answer of two letters, so that all has been there before, that never goes on as it did then."""
    history = TokenHistory(tokens)
    place, length = history.longest()
    return _chosen(1 if length and tokens[place] == 2 else 2)


def _breaks_off(tokens: Sequence[int]) -> Logits:
    """An answer that keeps its promises for 24 tokens, and then breaks every second one."""
    return _chosen(tokens[-13]) if len(tokens) < 50 or len(tokens) % 2 else _never_holds(tokens)


def _took_s(says: Callable[[Sequence[int]], Logits], token_s: float, *, guesses: bool, jobs: int, most: int) -> float:
    seconds = _seconds(token_s)
    speculation = Speculation(StepCosts(step_s=0.01, token_s=0.01 * token_s)) if guesses else None
    engine = Engine(
        slots=jobs, cells=400 * jobs, batch_tokens=64, says=says, endless=True, speculation=speculation, seconds=seconds
    )
    for at in range(jobs):
        engine.decoder.submit(
            Submit(
                request_id="r",
                model="m",
                job_id=str(at),
                prompt=TextPrompt(text="abcdefghijklmabcdefghijklm"),
                sampling=Sampling(temperature=0),
                max_tokens=most,
            )
        )
    engine.run()
    return engine.now_s


@pytest.mark.parametrize("token_s", [ON_CPU, BETWEEN, ON_GPU])
@pytest.mark.parametrize("jobs", [1, 8])
@pytest.mark.parametrize("says", [_never_holds, _breaks_off])
def test_guesses_that_do_not_hold_cost_at_most_three_percent(
    says: Callable[[Sequence[int]], Logits], jobs: int, token_s: float
) -> None:
    """Of answers of 200 tokens, whatever a guess costs and however many requests there are."""
    plain_s = _took_s(says, token_s, guesses=False, jobs=jobs, most=200)
    assert _took_s(says, token_s, guesses=True, jobs=jobs, most=200) <= 1.03 * plain_s


@pytest.mark.parametrize(
    ("token_s", "jobs", "least"),
    [(ON_CPU, 1, 1.5), (BETWEEN, 1, 2.7), (ON_GPU, 1, 8), (ON_CPU, 8, 1.0), (ON_GPU, 8, 3)],
)
def test_guesses_that_hold_gain(token_s: float, jobs: int, least: float) -> None:
    """As much as the batch leaves room for."""
    plain_s = _took_s(_repeats, token_s, guesses=False, jobs=jobs, most=200)
    assert plain_s / _took_s(_repeats, token_s, guesses=True, jobs=jobs, most=200) >= least
