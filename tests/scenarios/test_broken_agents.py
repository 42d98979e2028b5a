"""Agents that say what cannot be, on a real fleet: they are told, set aside for a while, and hurt nobody else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgpack
import msgspec
import pytest
import structlog

from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import (
    CancelJob,
    CommandAnswer,
    CommandOutcome,
    Fault,
    Hello,
    JobDone,
    JobPieces,
    JobUsage,
    Ping,
    Pong,
    Refused,
    Report,
    Submit,
    TokenPiece,
    Tokens,
    Welcome,
    WireMessage,
)
from moe2.common.link.wire import wire_codec
from moe2.coordinator.fleet.hub import WORDS_LOGGED_PER_MINUTE
from tests.coordinator.experts import expert_report, report
from tests.fakes.fleet import TOKEN, Fleet, fleet

pytestmark = pytest.mark.slow

CODEC = wire_codec()
HELLO = Hello(protocol_min=1, protocol_max=2, agent_id="liar", agent_name="liar", agent_version="1")
MODEL = "lie"


class Liar:
    """An agent that says whatever a test wants it to say."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def say(self, *messages: WireMessage) -> None:
        for message in messages:
            await self.websocket.send_bytes(CODEC.encode(message))

    async def hear(self, *kinds: type[Any]) -> Any:
        """The next message of one of these kinds."""
        async with asyncio.timeout(20):
            while True:
                heard = CODEC.decode(await self.websocket.receive_bytes())
                if isinstance(heard, Ping):
                    await self.say(Pong(seq=heard.seq))
                if isinstance(heard, kinds):
                    return heard


@asynccontextmanager
async def greeted(running: Fleet, hello: Hello = HELLO) -> AsyncIterator[Liar]:
    """A connected liar that has said hello."""
    url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
    async with running.http.ws_connect(url, headers=headers, max_msg_size=0) as websocket:
        made = Liar(websocket)
        await made.say(hello)
        yield made


@asynccontextmanager
async def liar(running: Fleet, told: Report | None = None) -> AsyncIterator[Liar]:
    """A connected liar that has reported an expert `lie`, or whatever it is given to report."""
    async with greeted(running) as made:
        await made.hear(Welcome)
        await made.say(told or report(expert_report(MODEL)))
        yield made


async def until_warned(running: Fleet, code: str) -> str:
    """Wait for a warning; returns its message."""
    await running.until_status(lambda status: code in {warning.code for warning in status.warnings})
    return next(warning.message for warning in running.coordinator.status().warnings if warning.code == code)


async def until_serves(running: Fleet, model: str = MODEL) -> None:
    def serves(status: Any) -> bool:
        return any(expert.model == model for row in status.agents for expert in row.experts)

    await running.until_status(serves)


def ended(job_id: str, energy: Energy) -> JobDone:
    return JobDone(job_id=job_id, reason="stop", usage=JobUsage(prompt_tokens=1, decoded_tokens=1, energy=energy))


async def test_joules_that_are_no_number_cost_the_client_nothing(tmp_path: Path) -> None:
    """The answer arrives, its joules are unknown, the history stays a number, and the agent is told and set aside."""
    async with fleet(tmp_path) as running, liar(running) as agent:
        await until_serves(running)
        asked = asyncio.create_task(running.chat("hi", model=MODEL, max_tokens=4))
        job = await agent.hear(Submit)
        nan = Energy(joules=math.nan, quality=Quality.MEASURED_COUNTER)
        await agent.say(Tokens(jobs=(JobPieces(job.job_id, (TokenPiece("a"),)),)), ended(job.job_id, nan))
        async with await asked as answer:
            assert answer.status == 200
            energy = (await answer.json())["moe2"]["energy"]
        assert (energy["joules"], energy["quality"]) == (None, "unmeasured")
        assert "joules is nan" in energy["reason"]
        fault = await agent.hear(Fault)
        assert (fault.code, fault.in_reply_to) == ("unsound", "job_done")
        assert "joules is nan" in await until_warned(running, "agent_broke_rules")
        async with await running.chat("hi", model=MODEL, max_tokens=1) as answer:
            assert answer.status == 503
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200
        past = msgspec.json.decode(msgspec.json.encode(running.coordinator._past.energy.bins()))
        assert all(value is not None for one in past for value in one["joules"].values())


async def test_an_unknown_word_of_an_enumeration_does_not_hang_its_request(tmp_path: Path) -> None:
    """The job whose end cannot be read fails, and another expert answers."""
    async with fleet(tmp_path, agents=()) as running, liar(running) as agent:
        await until_serves(running)
        asked = asyncio.create_task(running.chat("hi", max_tokens=2))
        job = await agent.hear(Submit)
        await running.start_agent("one")
        await running.until(ready=2)
        content = msgspec.to_builtins(ended(job.job_id, Energy(joules=1.0)))
        content["usage"]["energy"]["quality"] = "guessed"
        await agent.websocket.send_bytes(msgpack.packb(content))
        async with asyncio.timeout(10), await asked as answer:
            assert answer.status == 200
            assert [line["outcome"] for line in (await answer.json())["moe2"]["experts"]] == ["failed", "answered"]
        assert (await agent.hear(Fault)).in_reply_to == "job_done"


async def test_the_only_agent_of_a_model_that_breaks_a_rule_is_a_bad_gateway(tmp_path: Path) -> None:
    """Its client is told that an agent is at fault, which may pass, and not that moe2 has a defect."""
    async with fleet(tmp_path, agents=()) as running, liar(running) as agent:
        await until_serves(running)
        asked = asyncio.create_task(running.chat("hi", model=MODEL, max_tokens=2))
        job = await agent.hear(Submit)
        await agent.say(Tokens(jobs=(JobPieces(job.job_id, (TokenPiece("a", math.nan),)),)))
        async with asyncio.timeout(10), await asked as answer:
            assert answer.status == 502
            assert answer.headers["Retry-After"] == "1"
            error = (await answer.json())["error"]
        assert (error["code"], error["type"]) == ("agent_broke_rules", "server_error")
        assert "broke a rule" in error["message"]


async def test_a_model_reported_twice_breaks_no_choice(tmp_path: Path) -> None:
    """The fleet's other experts answer; the operator is told of the double."""
    async with fleet(tmp_path) as running:
        async with liar(running, report(expert_report("fake"), expert_report("fake"))):
            assert "2 times" in await until_warned(running, "report_unsound")
            for _ in range(3):
                async with await running.chat("hi", max_tokens=1) as answer:
                    assert answer.status == 200


async def test_a_report_of_20000_experts_is_refused_unread(tmp_path: Path) -> None:
    """Nothing is built of it, the agent is told, and the others are served."""
    async with fleet(tmp_path) as running, liar(running) as agent:
        await until_serves(running)
        small = {"model": "m", "state": "ready", "context_tokens": 1, "slots": 1}
        content = {**msgspec.to_builtins(report()), "experts": [small] * 20_000}
        await agent.websocket.send_bytes(msgpack.packb(content))
        assert (await agent.hear(Fault)).in_reply_to == "report"
        await until_warned(running, "agent_broke_rules")
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_300000_unknown_jobs_in_one_frame_stall_nobody(tmp_path: Path) -> None:
    """The frame is refused by the length of its array; no job of it is looked up or told to stop."""
    async with fleet(tmp_path) as running, liar(running) as agent:
        await until_serves(running)
        frame = msgpack.packb({"op": "tokens", "jobs": [[f"j{n}", [["a"]]] for n in range(300_000)]})
        await agent.websocket.send_bytes(frame)
        heard = await agent.hear(Fault, CancelJob)
        assert isinstance(heard, Fault)
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("fields", [{"agent_name": "a\x1b[2J"}, {"agent_id": "x" * 100}])
async def test_an_agent_with_a_name_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    """It is told what is wrong, and appears in no list."""
    async with fleet(tmp_path) as running:
        async with greeted(running, msgspec.structs.replace(HELLO, **fields)) as agent:
            refused = await agent.hear(Refused)
            assert refused.code == "invalid_hello"
            assert "agent.name" in refused.remedy
        assert [row.agent_name for row in running.coordinator.status().agents] == ["one"]


async def test_an_agent_that_never_says_hello_is_cut_off(tmp_path: Path) -> None:
    """After `agents.handshake_s`, also where it does not take part in the closing of its connection."""
    async with fleet(tmp_path, agents=(), listener={"handshake_s": 0.2}) as running:
        url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
        async with running.http.ws_connect(url, headers=headers, autoclose=False) as websocket:
            async with asyncio.timeout(10):
                refused = CODEC.decode(await websocket.receive_bytes())
                while (await websocket.receive()).type is not aiohttp.WSMsgType.CLOSED:
                    pass
            assert isinstance(refused, Refused)
            assert refused.code == "handshake_timeout"


async def test_an_agent_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    """Its pings keep it from being silent, but what it is sent would pile up for ever."""
    async with fleet(tmp_path, listener={"handshake_s": 0.5, "heartbeat_s": 0.6}) as running, liar(running) as agent:
        await until_serves(running)
        connection = agent.websocket._response.connection
        assert connection is not None
        transport = cast(asyncio.Transport, connection.transport)
        transport.pause_reading()
        for _ in range(400):
            assert running.coordinator._hub.send(HELLO.agent_id, CancelJob(job_id="x" * 60_000))

        async def keep_talking() -> None:
            while True:
                await agent.say(Ping(seq=1))
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(keep_talking())
        await running.until_status(lambda status: not all(row.connected for row in status.agents))
        talking.cancel()
        transport.abort()
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_an_agent_does_not_flood_the_log(tmp_path: Path) -> None:
    """Of all that it says, over two connections, and of its coming and going, so many lines a minute are logged."""
    loop = asyncio.get_running_loop()
    async with fleet(tmp_path) as running:
        began_s = loop.time()
        with structlog.testing.capture_logs() as logged:
            for turn in "ab":
                async with liar(running) as agent:
                    await until_serves(running)
                    for number in range(300):
                        await agent.websocket.send_str("{}")
                        await agent.say(
                            CommandAnswer(command_id=f"{turn}{number}", outcome=CommandOutcome.DONE),
                            Fault(code=f"{turn}{number}", message="x"),
                            Tokens(jobs=(JobPieces(f"{turn}{number}", (TokenPiece("a"),)),)),
                        )
                    await agent.say(Ping(seq=7))
                    while (await agent.hear(Pong)).seq != 7:
                        pass
        of_it = [
            line
            for line in logged
            if line.get("agent_id", HELLO.agent_id) == HELLO.agent_id and line["log_level"] != "debug"
        ]
        dripped = (loop.time() - began_s) * WORDS_LOGGED_PER_MINUTE / 60
        # Further lines are those of its enrolment.
        assert len(of_it) <= WORDS_LOGGED_PER_MINUTE + dripped + 2
