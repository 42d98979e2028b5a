"""How well the seconds of answers could be predicted at all."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from benchmarks.calibration_bound import Answered, bounds

_PREFILL_S, _DECODE_S = 0.005, 0.02


def _answers(*, overlapping: bool) -> list[Answered]:
    """A hundred answers, one after the other; where they overlap, the next one's prompt is computed within each."""
    random, answers, now_s = Random(1), [], 0.0
    prompts = [random.randint(20, 200) for _ in range(101)]
    for prompt, following in pairwise(prompts):
        decoded = random.randint(20, 100)
        first_s = now_s + _PREFILL_S * prompt
        beside_s = _PREFILL_S * following if overlapping else 0.0
        ended_s = first_s + _DECODE_S * decoded + beside_s
        answers.append(Answered(now_s, first_s, ended_s, prompt, decoded))
        now_s = first_s + 0.95 * _DECODE_S * decoded if overlapping else ended_s + 1.0
    return answers


def test_prompts_that_come_later_are_known_in_hindsight_only() -> None:
    """Who is alone is predicted exactly; who has company only by a line that knows it."""
    assert bounds(_answers(overlapping=False)).known_pct == pytest.approx(0.0, abs=0.1)
    together = bounds(_answers(overlapping=True))
    assert together.known_pct > 5.0
    assert together.hindsight_pct < 1.0
