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


def test_what_those_at_work_have_still_to_write_is_known() -> None:
    """A request is slowed for as long as the one that it finds goes on writing."""
    random, answers, began_s, left = Random(2), [], 0.0, 0.0
    former_ended_s = 0.0
    for _ in range(100):
        decoded = random.randint(20, 100)
        first_s = began_s + 0.1
        ended_s = first_s + _DECODE_S * (decoded + min(left, decoded))
        answers.append(Answered(began_s, first_s, ended_s, 100, decoded))
        # The next one finds it alone, at a share of what it writes.
        largest = (ended_s - max(first_s, former_ended_s)) / (ended_s - first_s)
        share = max(0.0, random.uniform(0.0, largest))
        began_s, left, former_ended_s = ended_s - share * (ended_s - first_s), share * decoded, ended_s
    assert bounds(answers).known_pct < 1.0
