"""Streams whose first token takes its time: they begin at once, and say that they are alive."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import anthropic
import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import fleet

pytestmark = pytest.mark.slow

ONE_SLOT = {"name": "fake", "slots": 1, "max_queue": 0}


async def next_line(answer: aiohttp.ClientResponse) -> str:
    """The next line of a stream that is not empty."""
    async with asyncio.timeout(60):
        while not (line := (await answer.content.readline()).decode().strip()):
            assert not answer.content.at_eof()
        return line


@pytest.mark.parametrize("max_queue", [0, 4])
async def test_a_stream_begins_when_its_request_is_admitted_to_wait(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...], max_queue: int
) -> None:
    """Behind a request that takes the only slot, queued there or not: headers and a comment at once."""
    models = [{**ONE_SLOT, "max_queue": max_queue, "path": tmp_path / "fake.gguf"}]
    async with fleet(tmp_path, engine_argv=controlled, models=models) as running:
        first = asyncio.create_task(running.chat("a", max_tokens=1))
        step = await control.next_phase()
        async with await running.chat("b", max_tokens=1, stream=True) as second:
            assert second.status == 200
            assert second.headers["X-Accel-Buffering"] == "no"
            assert (await next_line(second)).startswith(":")
            step.answer()
            control.release()
            assert (await first).status == 200
            assert json.loads((await next_line(second)).removeprefix("data: "))["choices"]


async def test_a_stream_in_its_prefill_says_that_it_lives(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """A request that runs begins its stream with the first token, or after the longest silence; then it goes on."""
    async with fleet(tmp_path, engine_argv=controlled, api={"stream_comment_s": 0.01}) as running:
        request = asyncio.create_task(running.chat("a", max_tokens=2, stream=True))
        step = await control.next_phase()
        async with await request as answer:
            assert [await next_line(answer) for _ in range(3)] == [": moe2 is working on it"] * 3
            step.answer()
            control.release()
            text = (await answer.content.read()).decode()
            assert text.rstrip().endswith("data: [DONE]")


async def test_a_message_that_waits_pings(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """Anthropic's clients know events named `ping`, also before the message begins; its SDK reads past them."""
    async with fleet(tmp_path, engine_argv=controlled, api={"stream_comment_s": 0.01}) as running:
        body = {"model": "moe2", "max_tokens": 2, "stream": True, "messages": [{"role": "user", "content": "a"}]}
        client = anthropic.AsyncAnthropic(base_url=running.coordinator.api_url, api_key="unused", max_retries=0)
        asked = asyncio.create_task(final_text(client))
        step = await control.next_phase()
        async with running.http.post("/v1/messages", json=body) as answer:
            assert [await next_line(answer) for _ in range(4)] == ["event: ping", 'data: {"type":"ping"}'] * 2
            step.answer()
            control.release()
            text = (await answer.content.read()).decode()
        assert text.index("message_start") < text.index("message_stop")
        assert (await asked).startswith("a")
        await client.close()


async def final_text(client: anthropic.AsyncAnthropic) -> str:
    """The text of a streamed message, as the SDK has put it together."""
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "a"}]
    async with client.messages.stream(model="moe2", max_tokens=2, messages=messages) as stream:
        return await stream.get_final_text()


async def test_a_failure_behind_the_headers_is_an_event(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Whoever waits in vain is told in the stream, with the code that its HTTP error would have."""
    models = [{**ONE_SLOT, "path": tmp_path / "fake.gguf"}]
    async with fleet(tmp_path, engine_argv=controlled, models=models, dispatch={"queue_s": 0.05}) as running:
        first = asyncio.create_task(running.chat("a", max_tokens=1))
        step = await control.next_phase()
        async with await running.chat("b", max_tokens=1, stream=True) as second:
            events = [line for line in (await second.text()).splitlines() if line and not line.startswith(":")]
        [event] = events
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "overloaded"
        step.answer()
        control.release()
        await first


async def test_a_failure_before_anything_was_sent_is_an_http_error(tmp_path: Path) -> None:
    """What is known at once is told by the status, which clients act on."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64}]
    async with fleet(tmp_path, models=models) as running:
        async with await running.chat("word " * 100, stream=True) as answer:
            assert answer.status == 400


async def test_a_client_that_leaves_while_it_waits_gives_up_its_place(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Nobody reads on: the request ends, and nothing runs for it."""
    models = [{**ONE_SLOT, "path": tmp_path / "fake.gguf"}]
    async with fleet(tmp_path, engine_argv=controlled, models=models) as running:
        first = asyncio.create_task(running.chat("a", max_tokens=1))
        step = await control.next_phase()
        second = await running.chat("b", max_tokens=1, stream=True)
        await running.until_status(lambda status: status.dispatch.waiting == 1)
        second.close()
        await running.until_status(lambda status: status.requests_active == 1)
        step.answer()
        control.release()
        assert (await first).status == 200
