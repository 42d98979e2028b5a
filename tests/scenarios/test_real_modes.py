"""Several experts for one answer with the real SmolLM2 model and real llama.cpp processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from tests.fakes.fleet import Fleet, fleet
from tests.models import served, smollm2_path
from tests.scenarios.clients import text_of

pytestmark = pytest.mark.slow

PROMPTS = ("What is the capital of France?", "Write a haiku about rain — with an emoji.", "Zähle bis fünf.")
CHOICES = ["Paris", "London", "Berlin"]


def smollm2() -> list[dict[str, Any]]:
    return [served(smollm2_path())]


async def answer_to(running: Fleet, prompt: str, **fields: Any) -> dict[str, Any]:
    async with await running.chat(prompt, **{"temperature": 0, "max_tokens": 24, **fields}) as answer:
        body: dict[str, Any] = await answer.json()
    assert answer.status == 200, body
    return body


async def test_a_mix_of_one_equals_that_expert_alone(tmp_path: Path) -> None:
    """Token for token at temperature 0, with the same log-probabilities."""
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        for prompt in PROMPTS:
            alone = await answer_to(running, prompt, logprobs=True, top_logprobs=2)
            mixed = await answer_to(running, prompt, logprobs=True, top_logprobs=2, moe2={"mode": "mix"})
            assert text_of(mixed) == text_of(alone)
            assert mixed["choices"][0]["finish_reason"] == alone["choices"][0]["finish_reason"]
            assert mixed["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"]
            tokens = [body["choices"][0]["logprobs"]["content"] for body in (alone, mixed)]
            assert [token["token"] for token in tokens[1]] == [token["token"] for token in tokens[0]]
            assert [token["logprob"] for token in tokens[1]] == pytest.approx(
                [token["logprob"] for token in tokens[0]], abs=0.02
            )


async def test_a_mix_of_two_identical_experts_equals_one(tmp_path: Path) -> None:
    """Over two agents, each with its own link and process."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        for prompt in PROMPTS:
            alone = await answer_to(running, prompt)
            mixed = await answer_to(running, prompt, moe2={"mode": "mix"})
            assert text_of(mixed) == text_of(alone)
            assert [line["purpose"] for line in mixed["moe2"]["experts"]] == ["follow", "follow"]


async def test_a_vote_is_the_mixture_of_what_each_expert_says(tmp_path: Path) -> None:
    """Two votes of one against the vote of both, mixed by hand with the weights of the receipt."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        keys = sorted(f"{row.agent_id}/smollm2" for row in running.coordinator.status().agents)
        ballot = {"mode": "vote", "choices": CHOICES}
        asked = {"max_tokens": None, "moe2": ballot}
        alone = {
            key: (await answer_to(running, PROMPTS[0], model=key, **asked))["moe2"]["collaboration"]["distribution"]
            for key in keys
        }
        both = await answer_to(running, PROMPTS[0], **asked)
        shared = both["moe2"]["collaboration"]
        weights = {share["expert"]: share["weight"] for share in shared["members"]}
        expected = [math.fsum(weights[key] * alone[key][place] for key in keys) for place in range(len(CHOICES))]
        assert shared["distribution"] == pytest.approx(expected, abs=1e-3)
        assert text_of(both) == CHOICES[expected.index(max(expected))] == "Paris"


async def test_ranking_by_one_member_returns_its_own_answer(tmp_path: Path) -> None:
    """And by two identical ones the same."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        alone = await answer_to(running, PROMPTS[0])
        for most in (1, 2):
            ranked = await answer_to(running, PROMPTS[0], moe2={"mode": "rank", "max_experts": most})
            assert text_of(ranked) == text_of(alone)
            assert [line["purpose"] for line in ranked["moe2"]["experts"]] == ["candidate"] * most


async def test_ranking_scores_what_was_drawn(tmp_path: Path) -> None:
    """Two members that draw different texts each score both, and the likelier one in the mixture is delivered."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        body = await answer_to(running, "Tell me a short story.", temperature=1.0, moe2={"mode": "rank"})
        purposes = [line["purpose"] for line in body["moe2"]["experts"]]
        assert purposes == ["candidate", "candidate", "score", "score"]
        candidates = body["moe2"]["collaboration"]["candidates"]
        chosen = max(candidates, key=lambda candidate: candidate["probability"])
        assert chosen["chosen"]
        assert len(text_of(body).encode()) == chosen["utf8_bytes"]
