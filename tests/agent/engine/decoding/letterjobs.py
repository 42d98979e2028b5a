"""Jobs whose tokens are letters, and what a simulated model writes for them."""

from __future__ import annotations

from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import Letters, greedy, letters


def letter_job(job_id: str, text: str, *, max_tokens: int | None = None, stop: tuple[str, ...] = ()) -> Submit:
    return Submit(
        request_id="r",
        model="m",
        job_id=job_id,
        prompt=TextPrompt(text=text),
        sampling=Sampling(temperature=0),
        max_tokens=max_tokens,
        stop=stop,
    )


def tokens_of(text: str) -> list[int]:
    return Letters().tokenize(text, add_special=True, parse_special=True)


def expected_text(text: str, most: int, stop: tuple[str, ...] = ()) -> str:
    answer = letters(greedy(tokens_of(text), most))
    cuts = [at for each in stop if (at := answer.find(each)) >= 0]
    return answer[: min(cuts)] if cuts else answer
