"""A client that disconnects stops the decoder within one token, in every phase."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import Fleet, fleet


async def decoded_after(running: Fleet, disconnect: Any) -> tuple[str, list[int | None]]:
    """Disconnect, wait until the request is accounted; returns its outcome and the tokens decoded per attempt."""
    with capture_logs() as logs:
        await disconnect()
        await running.quiet()
    ended = [entry for entry in logs if entry["event"] == "request_ended"]
    assert len(ended) == 1
    return ended[0]["outcome"], ended[0]["decoded_tokens"]


async def hold(control: ExpertControl, *, after_tokens: int) -> None:
    """Let the expert pass prefill and so many tokens, then keep it waiting for the next."""
    for _ in range(after_tokens + 1):
        step = await control.next_phase()
        step.answer()
    await control.next_phase()


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_while_decoding(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...], stream: bool
) -> None:
    """After three tokens the client leaves: three are decoded, not a fourth."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b c", stream=stream, max_tokens=100))
        await hold(control, after_tokens=3)

        async def leave() -> None:
            if stream:
                (await request).close()
            else:
                request.cancel()

        assert await decoded_after(running, leave) == ("cancelled", [3])


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_before_the_first_token(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...], stream: bool
) -> None:
    """A client that leaves during prefill costs no token at all."""
    async with fleet(tmp_path, engine_argv=controlled) as running:
        request = asyncio.create_task(running.chat("a b c", stream=stream, max_tokens=100))
        await control.next_phase()

        async def leave() -> None:
            request.cancel()

        assert await decoded_after(running, leave) == ("cancelled", [0])


async def test_disconnect_while_queued(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """A request that waits for a slot leaves the queue; the one that holds the slot is not disturbed."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "slots": 1}]
    async with fleet(tmp_path, engine_argv=controlled, models=models) as running:
        first = asyncio.create_task(running.chat("a b c", max_tokens=3))
        held = await control.next_phase()
        second = asyncio.create_task(running.chat("never run", max_tokens=3))
        await running.until_status(lambda status: status.agents[0].experts[0].queued == 1)
        with capture_logs() as logs:
            second.cancel()
            await running.until_status(lambda status: status.requests_active == 1)
        ended = [entry for entry in logs if entry["event"] == "request_ended"]
        assert [(entry["outcome"], entry["decoded_tokens"]) for entry in ended] == [("cancelled", [0])]
        held.answer()
        control.release()
        answer = await first
        assert (await answer.json())["choices"][0]["message"]["content"] == "a b c "


async def test_slot_is_free_again_after_a_cancellation(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The next request takes the slot that the cancelled one left."""
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "slots": 1, "max_queue": 0}]
    async with fleet(tmp_path, engine_argv=controlled, models=models) as running:
        request = asyncio.create_task(running.chat("a b", max_tokens=50))
        await control.next_phase()
        request.cancel()
        await running.quiet()
        control.free = True
        async with await running.chat("c d", max_tokens=2) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == "c d "
