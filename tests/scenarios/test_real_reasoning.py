"""A reasoning model in a whole fleet, as clients see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from tests.fakes.fleet import fleet
from tests.models import THINKING_TEMPLATE, served, smollm2_path, with_template
from tests.scenarios.clients import client_of

pytestmark = pytest.mark.slow


async def test_reasoning_comes_beside_the_answer_whole_and_streamed(tmp_path: Path) -> None:
    """The template opens it in the prompt, a bound ends it, and the receipt tells its tokens and joules."""
    path = with_template(smollm2_path(), tmp_path / "thinking.gguf", THINKING_TEMPLATE)
    model = served(path, name="thinker")
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=[model]) as running:
        expert = running.coordinator.status().agents[0].experts[0]
        assert expert.supports_thinking
        asked: dict[str, Any] = {
            "model": "thinker",
            "messages": [{"role": "user", "content": "What is two plus two?"}],
            "max_tokens": 40,
            "temperature": 0,
            "extra_body": {"moe2": {"thinking_budget_tokens": 8}},
        }
        async with client_of(running) as client:
            answer: Any = await client.chat.completions.create(**asked)
            message = answer.choices[0].message
            assert message.content
            assert message.reasoning_content
            assert "think>" not in message.content + message.reasoning_content
            assert answer.usage.completion_tokens_details.reasoning_tokens == 8
            assert answer.moe2["tokens"]["reasoning"] == 8
            if answer.moe2["energy"]["joules"] is not None:
                assert 0 < answer.moe2["reasoning_j"] < answer.moe2["energy"]["joules"]
            thought, said = "", ""
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                for choice in chunk.choices:
                    thought += getattr(choice.delta, "reasoning_content", None) or ""
                    said += choice.delta.content or ""
            assert (thought, said) == (message.reasoning_content, message.content)
            asked["extra_body"] = {"chat_template_kwargs": {"enable_thinking": False, "style": "short"}, "user": "u"}
            raw = await client.chat.completions.with_raw_response.create(**asked)
            assert raw.headers["x-moe2-ignored"] == "user, chat_template_kwargs.style"
