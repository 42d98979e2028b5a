"""Sampled answers with guesses have the same distribution: the real decoder and sampler over a simulated model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product
from math import exp
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drawing import Draw
from moe2.agent.engine.llama.model import Model
from moe2.agent.engine.llama.sampler import Sampler
from moe2.agent.engine.protocol import Finished
from moe2.common.generation import CompleteSampling, Sampling, completed
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import VOCABULARY_SIZE, Engine, SimulatedCache, letters
from tests.agent.engine.speculation.test_decoding import answers, counts, free_guesses

pytestmark = pytest.mark.slow

_ANSWERS = 2000
_LETTERS = range(1, 5)
_PROMPT, _MOST, _STOP = "abcdabcdab", 4, "dd"
_STEERED = {"repeat_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": {2: 0.7}}


class _ChainDraw:
    """Draws by the sampler that the engine has."""

    is_ready = True

    def __init__(self, cache: SimulatedCache, sampling: CompleteSampling) -> None:
        self._cache = cache
        # It asks its model for no more than this.
        model = cast(Model, SimpleNamespace(vocabulary_size=VOCABULARY_SIZE))
        self._sampler = Sampler(model, sampling, history_tokens=64)

    def sample(self, place: int) -> int:
        return self.sample_kept(self._cache.logits(place))

    def sample_kept(self, logits: Logits) -> int:
        return self._sampler.sample_among(logits, np.arange(VOCABULARY_SIZE))

    def close(self) -> None:
        self._sampler.close()


def _by_chain(request: Submit, cache: SimulatedCache) -> Draw:
    return _ChainDraw(cache, completed(request.sampling, Sampling()))


def _says(tokens: Sequence[int]) -> Logits:
    """A model of four letters that likes the last but one again: some guesses are right, others are not."""
    logits = np.full(VOCABULARY_SIZE, -30, np.float32)
    logits[1:5] = np.array([1.0, 0.5, 0.0, -0.5], np.float32)
    logits[tokens[-2]] += 1
    return logits


def _chances(written: Sequence[int], sampling: CompleteSampling) -> dict[int, float]:
    """The oracle: how likely each letter is behind those that were written, in plain arithmetic."""
    logits = _says([*(ord(letter) - ord("a") + 1 for letter in _PROMPT), *written])
    masses: dict[int, float] = {}
    for token in _LETTERS:
        value, count = float(logits[token]) + (sampling.logit_bias or {}).get(token, 0.0), written.count(token)
        if count:
            value = value * sampling.repeat_penalty if value <= 0 else value / sampling.repeat_penalty
            value -= count * sampling.frequency_penalty + sampling.presence_penalty
        masses[token] = exp(value / sampling.temperature)
    return {token: mass / sum(masses.values()) for token, mass in masses.items()}


def _expected(sampling: CompleteSampling) -> dict[tuple[str, str], float]:
    """How likely each (text, reason) is."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for tokens in product(_LETTERS, repeat=_MOST):
        chance, written = 1.0, list[int]()
        for token in tokens:
            chance *= _chances(written, sampling)[token]
            written.append(token)
        text = letters(written)
        is_stopped = _STOP in text
        found[text[: text.index(_STOP)] if is_stopped else text, "stop" if is_stopped else "length"] += chance
    return found


def _job(sampling: Sampling) -> Submit:
    return Submit(
        request_id="r",
        model="m",
        job_id="j",
        prompt=TextPrompt(text=_PROMPT),
        sampling=sampling,
        max_tokens=_MOST,
        stop=(_STOP,),
        logprobs=2,
    )


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {"temperature": 0.8, **_STEERED}], ids=["plain", "steered"])
def test_sampled_answers_have_the_model_s_distribution(changes: dict[str, object]) -> None:
    """Chi-square over whole answers with biases, penalties, stop strings and a limit; those of a seed are the same
    without guesses, with their log-probabilities."""
    speculation, seen, drafted, accepted = free_guesses(), Counter[tuple[str, str]](), 0, 0
    for seed in range(_ANSWERS):
        job = _job(Sampling(seed=seed, **changes))  # type: ignore[arg-type]
        engine = Engine(cells=64, batch_tokens=32, says=_says, new_draw=_by_chain, speculation=speculation)
        found = answers(engine, [job])
        end = engine.end("j")
        assert isinstance(end, Finished)
        seen[engine.text("j"), end.reason] += 1
        of_this = counts(engine)
        drafted, accepted = drafted + of_this[0], accepted + of_this[1]
        if seed % 20 == 0:
            plain = Engine(cells=64, batch_tokens=32, says=_says, new_draw=_by_chain)
            assert found == answers(plain, [job])
    assert _ANSWERS / 4 < accepted < drafted - _ANSWERS / 4
    expected = _expected(completed(Sampling(**changes), Sampling()))  # type: ignore[arg-type]
    assert not set(seen) - set(expected)
    rare = sum(chance for chance in expected.values() if chance * _ANSWERS < 8)
    cells = {outcome: chance for outcome, chance in expected.items() if chance * _ANSWERS >= 8}
    observed = [*(seen[outcome] for outcome in cells), _ANSWERS - sum(seen[outcome] for outcome in cells)]
    wanted = [*(chance * _ANSWERS for chance in cells.values()), rare * _ANSWERS]
    statistic = sum((one - other) ** 2 / other for one, other in zip(observed, wanted, strict=True))
    # Exceeded once in a thousand times (Wilson and Hilferty 1931). Seeds are fixed, so it is always or never.
    degrees = len(cells)
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3
