"""Two real agents, the real SmolLM2 model, real llama.cpp processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from structlog.testing import capture_logs

from moe2.agent.daemon import ENGINE_ARGV
from moe2.common.link.reports import ExpertState
from tests.agent.engine.gguf import with_metadata
from tests.fakes.fleet import Fleet, fleet
from tests.models import served, smollm2_path

pytestmark = pytest.mark.slow

# SmolLM2's two tokens that end an answer.
END_OF_TEXT, END_OF_TURN = "0", "2"


def smollm2(**fields: int) -> list[dict[str, Any]]:
    return [served(smollm2_path(), **fields)]


async def content_of(running: Fleet, prompt: str, model: str = "moe2") -> str:
    async with await running.chat(prompt, model=model, temperature=0, max_tokens=12) as answer:
        body = await answer.json()
    assert answer.status == 200, body
    content: str = body["choices"][0]["message"]["content"]
    return content


async def test_real_prompts_are_answered_by_both_agents_alike(tmp_path: Path) -> None:
    """Greedy decoding of one model gives the same text on either agent, and it is an answer."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        keys = [f"{row.agent_id}/smollm2" for row in running.coordinator.status().agents]
        texts = [await content_of(running, "What is 2+2?", model=key) for key in keys]
        assert texts[0] == texts[1]
        assert "4" in texts[0]


async def test_real_experts_report_what_they_are(tmp_path: Path) -> None:
    """Facts of the GGUF and measured rates of the warm-up arrive in the capability table."""
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        expert = running.coordinator.status().agents[0].experts[0]
        assert (expert.architecture, expert.quantization) == ("llama", "Q4_1")
        assert expert.parameters is not None
        assert expert.parameters > 100_000_000
        assert expert.performance.decode_tokens_per_s is not None
        assert expert.performance.decode_tokens_per_s > 0


async def test_a_gap_between_two_texts_is_filled_where_the_vocabulary_has_marks(tmp_path: Path) -> None:
    """OpenAI's and Ollama's `suffix` reach the model; one without marks is not asked, and refuses it by name."""
    path = smollm2_path()
    for mark, token in (("pre", 6), ("suf", 7), ("mid", 8)):
        path = with_metadata(path, tmp_path / f"{mark}.gguf", f"tokenizer.ggml.fim_{mark}_token_id", token)
    coder = served(path, name="coder", context_tokens=512, slots=1)
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=[*smollm2(), coder]) as running:
        gap = {"prompt": "def one():\n    return ", "suffix": "\n\nprint(one())"}
        body = {"model": "moe2", "max_tokens": 4, "temperature": 0, **gap}
        async with running.http.post("/v1/completions", json=body) as answer:
            said = await answer.json()
        assert (answer.status, said["model"]) == (200, "coder"), said
        async with running.http.post("/v1/completions", json={**body, "model": "coder", "suffix": ""}) as answer:
            plain = await answer.json()
        # Three marks and the text behind the gap.
        assert said["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 3
        ollama = {"model": "coder", "stream": False, "options": {"num_predict": 4, "temperature": 0}, **gap}
        async with running.http.post("/api/generate", json=ollama) as answer:
            assert (await answer.json())["response"] == said["choices"][0]["text"]
        editor = {
            "input_prefix": "def one():\n",
            "prompt": "    return ",
            "input_suffix": gap["suffix"],
            "n_predict": 4,
        }
        async with running.http.post("/infill", json={**editor, "temperature": 0, "samplers": ["infill"]}) as answer:
            filled = await answer.json()
        assert (filled["content"], filled["model"]) == (said["choices"][0]["text"], "coder")
        assert answer.headers["x-moe2-ignored"] == "samplers"
        async with running.http.post("/infill", json={**editor, "n_predict": 0, "response_fields": [""]}) as answer:
            assert (answer.status, await answer.json()) == (200, {})
        async with running.http.post("/infill", json={**editor, "model": "smollm2"}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "no_infill")
        async with running.http.post("/v1/completions", json={**body, "model": "smollm2"}) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "no_infill")
        assert "suffix" in error["message"]


async def test_real_decoder_stops_when_the_client_leaves(tmp_path: Path) -> None:
    """A client that reads a few tokens of a long answer and leaves costs only a few tokens."""
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        with capture_logs() as logs:
            answer = await running.chat("Write a long story.", stream=True, max_tokens=900)
            async for line in answer.content:
                if line.startswith(b"data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    break
            answer.close()
            await running.quiet()
        (ended,) = [entry for entry in logs if entry["event"] == "request_ended"]
        assert ended["outcome"] == "cancelled"
        assert 1 <= ended["decoded_tokens"][0] < 100


async def test_real_prompt_beyond_the_context_is_refused(tmp_path: Path) -> None:
    """The error has the tokenizer's own count."""
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=smollm2(context_tokens=256)) as running:
        async with await running.chat("many words " * 200) as answer:
            error = (await answer.json())["error"]
            assert answer.status == 400
            assert error["code"] == "context_length_exceeded"
            assert "256" in error["message"]


async def test_corrupt_gguf_is_a_named_warning(tmp_path: Path) -> None:
    """A file cut short is refused by llama.cpp; the agent lives, says so, and the coordinator knows."""
    broken = tmp_path / "broken.gguf"
    with smollm2_path().open("rb") as source:
        broken.write_bytes(source.read(1_000_000))
    async with fleet(tmp_path, agents=()) as running:
        agent = await running.start_agent(
            "one", engine_argv=ENGINE_ARGV, models=[{"name": "broken", "path": broken, "context_tokens": 256}]
        )
        await running.until_status(
            lambda status: any(w.code == "model_failed" for row in status.agents for w in row.warnings)
        )
        warning = next(warning for warning in agent.status().warnings if warning.code == "model_failed")
        assert "broken" in warning.message
        assert warning.remedy


async def test_concurrent_real_requests_all_end(tmp_path: Path) -> None:
    """More requests than slots: all are answered, each once."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=ENGINE_ARGV, models=smollm2()) as running:
        texts = await asyncio.gather(*(content_of(running, f"Count to {n}.") for n in range(6)))
        assert all(texts)
        await running.quiet()
        assert running.coordinator.status().requests_finished == 6


async def test_a_crash_mid_batch_fails_its_requests_alone_and_the_model_is_back(tmp_path: Path) -> None:
    """Two streams of a killed engine get an error event, one of the other model on that host its whole answer."""
    other = served(smollm2_path(), name="other")
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=[*smollm2(), other]) as running:
        endless = {END_OF_TEXT: -100, END_OF_TURN: -100}
        streams = [
            await running.chat("Write a long story.", model=model, stream=True, max_tokens=most, logit_bias=endless)
            for model, most in (("smollm2", 400), ("smollm2", 400), ("other", 60))
        ]
        for stream in streams:
            await _first_word(stream)
        (agent,) = running.agents.values()
        pid = agent.engine_pids()["smollm2"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        ends = [(await stream.text()).strip().split("\n\n") for stream in streams]
        for end in ends[:2]:
            assert json.loads(end[-1].removeprefix("data: "))["error"]["code"] == "engine_crashed"
        assert ends[2][-1] == "data: [DONE]"
        await running.quiet()
        await running.until_status(lambda status: all(e.state is ExpertState.READY for e in status.agents[0].experts))
        assert "4" in await content_of(running, "What is 2+2?", model="smollm2")


async def _first_word(stream: ClientResponse) -> None:
    async for line in stream.content:
        if line.startswith(b"data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            return
