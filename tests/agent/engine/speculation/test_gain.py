"""What guessing gains and costs, on a clock that each step of a simulated model moves on by its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest

from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.speculation.costs import StepCosts
from moe2.agent.engine.speculation.ngrams import TokenHistory
from moe2.agent.engine.speculation.speculation import Speculation
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import VOCABULARY_SIZE, Engine

pytestmark = pytest.mark.slow

ON_CPU, BETWEEN, ON_GPU = 0.55, 0.2, 0.02
"""What each further token of a batch takes beside the first: a small model on two cores, and what waits for memory."""


_TWO_CORES = {1: 1.0, 2: 2.0, 3: 2.5, 4: 2.7, 6: 3.8, 8: 4.2, 12: 5.3, 16: 6.3, 24: 8.3, 32: 10.3}
"""Steps' time of a 0.5B model there, by the tokens of a batch."""


def _seconds(token_s: float) -> Callable[[int], float]:
    return lambda tokens: 0.01 * (1 + token_s * (tokens - 1))


def _interpolated(known: dict[int, float]) -> Callable[[int], float]:
    """Seconds of a step by its tokens, from those of some sizes in hundredths of a second."""
    return lambda tokens: 0.01 * float(np.interp(tokens, list(known), list(known.values())))


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


def _took_s(
    says: Callable[[Sequence[int]], Logits],
    token_s: float,
    *,
    guesses: bool,
    jobs: int,
    most: int,
    assumed: float | None = None,
    noise: float = 0.0,
    seconds: Callable[[int], float] | None = None,
    prompt: str = "abcdefghijklmabcdefghijklm",
) -> float:
    """Seconds of so many answers. assumed: what was measured at load, where that was something else than `token_s`.
    noise: standard deviation of the logarithm of a step's seconds. seconds: of a step by its tokens, in place of
    `token_s`."""
    real, random = seconds or _seconds(token_s), Random(1)
    known = real if assumed is None else _seconds(assumed)
    measured_s = {size: known(size) for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
    costs = StepCosts(step_s=known(1), token_s=known(2) - known(1), measured_s=measured_s)
    engine = Engine(
        slots=jobs,
        cells=800 * jobs,
        batch_tokens=64,
        says=says,
        endless=True,
        speculation=Speculation(costs) if guesses else None,
        seconds=lambda tokens: real(tokens) * random.lognormvariate(0, noise),
    )
    for at in range(jobs):
        engine.decoder.submit(
            Submit(
                request_id="r",
                model="m",
                job_id=str(at),
                prompt=TextPrompt(text=prompt),
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


@pytest.mark.parametrize("token_s", [ON_CPU, BETWEEN, ON_GPU])
@pytest.mark.parametrize("says", [_never_holds, _breaks_off])
def test_a_prompt_that_promises_a_copy_costs_at_most_three_percent(
    says: Callable[[Sequence[int]], Logits], token_s: float
) -> None:
    """Its end is one long copy, by which guesses are let in before the answer has said anything."""
    plain_s, took_s = (
        _took_s(says, token_s, guesses=each, jobs=1, most=200, prompt="abcdefghijklm" * 12) for each in (False, True)
    )
    assert took_s <= 1.03 * plain_s


@pytest.mark.parametrize(
    ("token_s", "jobs", "least"),
    [(ON_CPU, 1, 1.5), (BETWEEN, 1, 2.7), (ON_GPU, 1, 8), (ON_CPU, 8, 1.0), (ON_GPU, 8, 3)],
)
def test_guesses_that_hold_gain(token_s: float, jobs: int, least: float) -> None:
    """As much as the batch leaves room for."""
    plain_s = _took_s(_repeats, token_s, guesses=False, jobs=jobs, most=200)
    assert plain_s / _took_s(_repeats, token_s, guesses=True, jobs=jobs, most=200) >= least


@pytest.mark.parametrize("jobs", [1, 2, 4, 8])
@pytest.mark.parametrize("says", [_repeats, _breaks_off, _never_holds])
def test_where_batches_are_dearer_than_was_measured_guesses_lose_next_to_nothing(
    says: Callable[[Sequence[int]], Logits], jobs: int
) -> None:
    """As beside a full cache: each further token takes as long as a step, so that nothing can be gained."""
    took_s = [
        _took_s(says, 1.0, guesses=guesses, jobs=jobs, most=200, assumed=0.4, noise=0.05) for guesses in (False, True)
    ]
    assert took_s[1] <= 1.02 * took_s[0]


@pytest.mark.parametrize(("jobs", "least"), [(1, 8.0), (8, 2.5)])
def test_where_batches_are_cheaper_than_was_measured_guesses_gain(jobs: int, least: float) -> None:
    """Of what was measured in a bad moment more is found out by guessing."""
    took_s = [
        _took_s(_repeats, ON_GPU, guesses=guesses, jobs=jobs, most=200, assumed=0.3, noise=0.05)
        for guesses in (False, True)
    ]
    assert took_s[0] / took_s[1] >= least


def test_a_copy_is_guessed_where_a_few_tokens_take_several_steps() -> None:
    """As with a 0.5B model on two cores: 2 tokens take 2 steps' time, 4 tokens 2.7 and 16 tokens 6.3."""
    seconds = _interpolated(_TWO_CORES)
    took_s = [_took_s(_repeats, 0.0, guesses=each, jobs=1, most=96, seconds=seconds) for each in (False, True)]
    assert took_s[0] / took_s[1] >= 1.9


def test_a_copy_that_the_prompt_has_begun_is_guessed_at_once() -> None:
    """An edit of which some lines are given, at the same costs: every q becomes an r. Who learns from the answer alone
    gains 2.3 times."""
    random = Random(3)
    text = "".join("".join(random.choices("abcdefghijklmnop", k=15)) + "q" for _ in range(10))
    edited = text.replace("q", "r")
    prompt = text + "z" + edited[:48]

    def says(tokens: Sequence[int]) -> Logits:
        return _chosen(ord(edited[len(tokens) - len(text) - 1]) - ord("a") + 1)

    seconds = _interpolated(_TWO_CORES)
    took_s = [
        [_took_s(says, 0.0, guesses=each, jobs=1, most=most, seconds=seconds, prompt=prompt) for each in (False, True)]
        for most in (1, 96)
    ]
    assert (took_s[1][0] - took_s[0][0]) / (took_s[1][1] - took_s[0][1]) >= 2.5
