"""One protocol version apart: this build with peers that speak version 1 only, on either side."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.settings import AgentSettings
from moe2.common.link.messages import (
    CancelJob,
    FollowJob,
    JobDone,
    JobStarted,
    Report,
    Submit,
    Suspend,
    Tokens,
    UnloadModel,
)
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertState
from tests.fakes.fleet import FAKE_EXPERT, TOKEN, fleet
from tests.fakes.version1 import Peer, agent1, coordinator1
from tests.scenarios.test_standby import Commander


async def until_reported(peer: Peer, *states: ExpertState) -> None:
    await peer.until(
        lambda peer: any(
            isinstance(message, Report) and tuple(expert.state for expert in message.experts) == states
            for message in peer.heard
        )
    )


@pytest.mark.slow
async def test_an_upgraded_agent_serves_a_coordinator_that_is_not(tmp_path: Path) -> None:
    """Hello, report, a job with its tokens and its end; a cold model does not cost the report; unknown ops neither."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "fake.gguf").touch()
    async with coordinator1(TOKEN) as (peer, url):
        settings = AgentSettings.model_validate(
            {
                "agent": {"name": "new", "state_dir": tmp_path, "socket": tmp_path / "agent.sock", "drain_s": 1.0},
                "coordinator": {"url": url, "token_file": tmp_path / "token"},
                "models": [
                    {"name": "ready", "path": tmp_path / "fake.gguf"},
                    {"name": "cold", "path": tmp_path / "fake.gguf", "load": "on_demand"},
                ],
            }
        )
        sensors = SensorSettings(root=tmp_path / "none", families=())
        agent = AgentDaemon(settings, environment={}, engine_argv=FAKE_EXPERT, sensors=sensors)
        running = asyncio.create_task(agent.run())
        await until_reported(peer, ExpertState.READY, ExpertState.LOADING)
        assert agent.status().link.protocol == 1
        assert {expert.model: expert.state for expert in agent.status().experts}["cold"] is ExpertState.COLD
        peer.say_op("teleport")
        prompt = ChatPrompt(messages=(ChatMessage(role="user", content="a b"),))
        peer.say(Submit(job_id="j", request_id="r", model="ready", prompt=prompt, max_tokens=2))
        await peer.until(lambda peer: any(isinstance(message, JobDone) for message in peer.heard))
        await peer.until(lambda peer: peer.faults == ["unknown_op"])
        said = [message for message in peer.heard if not isinstance(message, Report)]
        assert isinstance(said[0], JobStarted)
        pieces = [piece.text for message in said if isinstance(message, Tokens) for piece in message.jobs[0].pieces]
        assert pieces == ["a ", "b "]
        assert agent.status().link.attempts == 1
        agent.stop()
        await running


@pytest.mark.slow
async def test_an_upgraded_coordinator_is_served_by_an_agent_that_is_not(tmp_path: Path) -> None:
    """With the configured token alone, and beside an upgraded agent; unknown ops are answered, the session goes on."""
    async with fleet(tmp_path) as running:
        async with agent1(running.coordinator.agents_url, TOKEN) as peer:
            await running.until(ready=2)
            model = next(row for row in running.coordinator.status().agents if row.agent_name == "old").experts[0].model
            peer.say_op("teleport")
            await peer.until(lambda peer: peer.faults == ["unknown_op"])
            async with await running.chat("hi", model=model) as answer:
                body = await answer.json()
            assert body["choices"][0]["message"]["content"] == "old answer"
            assert [type(message) for message in peer.heard] == [Submit]
            async with await running.chat("hi", model="fake", max_tokens=1) as answer:
                assert answer.status == 200


async def test_a_job_that_an_older_agent_cannot_do_fails_at_once(tmp_path: Path) -> None:
    """It is not sent, so that nobody waits for an answer; other jobs go on."""
    async with fleet(tmp_path, agents=()) as running:
        async with agent1(running.coordinator.agents_url, TOKEN) as peer:
            await running.until(ready=1)
            heard: list[object] = []
            running.coordinator._hub._on_message = lambda _, message: heard.append(message)
            follow = FollowJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="x"))
            assert running.coordinator._hub.send("agent-old", follow)
            assert running.coordinator._hub.send("agent-old", CancelJob(job_id="j"))
            await peer.until(lambda peer: bool(peer.heard))
            assert peer.heard == [CancelJob(job_id="j")]
            assert "needs protocol 2" in getattr(heard[0], "message", "")


async def test_a_command_that_an_older_agent_does_not_know_is_refused_for_it(tmp_path: Path) -> None:
    """It is not sent; whoever commands is answered with what to upgrade, and the agent serves on."""
    async with fleet(tmp_path, agents=()) as running:
        async with agent1(running.coordinator.agents_url, TOKEN) as peer:
            await running.until(ready=1)
            commander = Commander(running)
            answered = [commander.expect("s"), commander.expect("u")]
            for command in (Suspend(command_id="s"), UnloadModel(command_id="u", model="m")):
                assert running.coordinator._hub.send("agent-old", command)
            for answer in await asyncio.gather(*answered):
                assert (answer.outcome, answer.code) == ("refused", "not_possible")
                assert "needs protocol 4" in (answer.message or "")
            assert peer.heard == []
            async with await running.chat("hi") as said:
                assert said.status == 200


async def test_a_parameter_that_an_older_agent_would_ignore_is_another_ones(tmp_path: Path) -> None:
    """Where nobody else has the model, the error says what to upgrade."""
    async with fleet(tmp_path, agents=()) as running:
        async with agent1(running.coordinator.agents_url, TOKEN) as peer:
            await running.until(ready=1)
            async with await running.chat("hi", repeat_penalty=1.1) as answer:
                error = (await answer.json())["error"]
            assert "needs protocol 3" in error["message"]
            assert peer.heard == []
            async with await running.chat("hi", repeat_penalty=1.0) as answer:
                assert answer.status == 200
