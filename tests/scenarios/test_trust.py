"""Trust between hosts, on a real fleet: enrolment, revocation, TLS, and no secret in the logs."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from moe2.agent.daemon import AgentDaemon
from moe2.common.link.enrolment import digest
from moe2.common.link.messages import Hello, Refused, Submit
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.wire import DEFAULT_MAX_FRAME_BYTES, wire_codec
from moe2.coordinator.fleet import hub
from moe2.coordinator.fleet.register import EnrolmentToken, add_token, forget_agent, revoke_agent
from moe2.coordinator.fleet.register_file import RegisterFile
from tests.fakes.certificates import Authority
from tests.fakes.fleet import TOKEN, Fleet, fleet

pytestmark = pytest.mark.slow

CODEC = wire_codec()
ONE_USE = "moe2-enrol-one-use"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator looks for revoked agents and new certificates each second; no test waits for that."""
    monkeypatch.setattr("moe2.coordinator.chores.KEEP_TRUST_EVERY_S", 0.01)


def make_token(root: Path, secret: str = ONE_USE, uses: int | None = 1) -> None:
    token = EnrolmentToken(name="test", sha256=digest(secret), created_unix_s=time.time(), most_uses=uses)
    RegisterFile(root).change(lambda register: (None, add_token(register, token)))


async def until_warned(running: Fleet, agent: AgentDaemon, code: str) -> None:
    await running.until_status(lambda _: code in {warning.code for warning in agent.status().warnings})


async def restart(running: Fleet, name: str, **options: object) -> AgentDaemon:
    running.agents[name].stop()
    await running.agent_tasks[name]
    return await running.start_agent(name, **options)  # type: ignore[arg-type]


# --- Enrolment --------------------------------------------------------------------------------------------------------


async def test_a_token_is_exchanged_for_a_credential(tmp_path: Path) -> None:
    """A token of one use, made while the coordinator runs; the agent comes back without it."""
    async with fleet(tmp_path, agents=(), listener={"token_file": None}) as running:
        assert "no_enrolment_token" in {warning.code for warning in running.coordinator.status().warnings}
        make_token(tmp_path)
        await running.start_agent("one", token=ONE_USE)
        await running.until(ready=1)
        [row] = running.coordinator.status().agents
        [known] = RegisterFile(tmp_path).current().agents
        assert (known.agent_id, known.agent_name, known.token) == (row.agent_id, "one", "test")
        await restart(running, "one", link={"token_file": None})
        await running.until(ready=1)
        assert [row.agent_id for row in running.coordinator.status().agents] == [known.agent_id]


async def test_a_used_up_token_is_a_named_warning(tmp_path: Path) -> None:
    """The second agent is told what to do."""
    make_token(tmp_path)
    async with fleet(tmp_path, listener={"token_file": None}, token=ONE_USE) as running:
        second = await running.start_agent("two", token=ONE_USE)
        await until_warned(running, second, "token_used_up")
        assert [row.agent_name for row in running.coordinator.status().agents] == ["one"]


async def test_an_agents_id_is_its_own(tmp_path: Path) -> None:
    """A holder of the token who copies the id, but has no credential, does not replace the agent."""
    async with fleet(tmp_path) as running:
        (tmp_path / "thief").mkdir()
        (tmp_path / "thief" / "agent-id").write_text((tmp_path / "one" / "agent-id").read_text())
        thief = await running.start_agent("thief")
        await until_warned(running, thief, "identity_taken")
        [row] = running.coordinator.status().agents
        assert (row.agent_name, row.connected) == ("one", True)
        await running.quiet()


async def test_the_token_alone_does_not_speak_for_an_enrolled_agent(tmp_path: Path) -> None:
    """An older peer that says another agent's id in its hello is turned out, and the agent stays."""
    async with fleet(tmp_path) as running:
        agent_id = running.coordinator.status().agents[0].agent_id
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = running.coordinator.agents_url + "/v1/agents"
        async with aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers) as websocket:
            hello = Hello(protocol_min=1, protocol_max=1, agent_id=agent_id, agent_name="x", agent_version="0")
            await websocket.send_bytes(CODEC.encode(hello))
            said = [CODEC.decode(frame.data) async for frame in websocket if isinstance(frame.data, bytes)]
        refusal = next(message for message in said if isinstance(message, Refused))
        assert refusal.code == "credential_needed"
        assert all(row.connected for row in running.coordinator.status().agents if row.agent_id == agent_id)


async def test_a_coordinator_that_lost_its_register_is_joined_again_with_the_token(tmp_path: Path) -> None:
    """Without anybody's help, as the token is still there."""
    async with fleet(tmp_path) as running:
        (tmp_path / "enrolment.json").unlink()
        await running.until_status(lambda _: bool(RegisterFile(tmp_path).current().agents))
        await running.until(ready=1)


# --- Revocation -------------------------------------------------------------------------------------------------------


async def test_a_revoked_agent_is_disconnected_and_told_so(tmp_path: Path) -> None:
    """Within seconds, and it says what to do; it stays out although its token is good, and is not missed."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        RegisterFile(tmp_path).change(lambda register: revoke_agent(register, "one", time.time()))
        await running.until_status(lambda status: [row.agent_name for row in status.agents] == ["two"])
        agent = running.agents["one"]
        await until_warned(running, agent, "credential_revoked")
        again = await restart(running, "one")
        await until_warned(running, again, "credential_revoked")
        warning = next(w for w in again.status().warnings if w.code == "credential_revoked")
        assert "agents forget" in warning.remedy
        assert again.status().link.attempts == 1


async def test_a_revoked_agents_request_goes_to_another(tmp_path: Path) -> None:
    """The service goes on without it."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        RegisterFile(tmp_path).change(lambda register: revoke_agent(register, "one", time.time()))
        await running.until_status(lambda status: "one" not in {row.agent_name for row in status.agents})
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.headers["x-moe2-agent"] == "two"


async def test_a_forgotten_agent_enrols_again(tmp_path: Path) -> None:
    """With the token that it has."""
    async with fleet(tmp_path) as running:
        RegisterFile(tmp_path).change(lambda register: revoke_agent(register, "one", time.time()))
        await running.until_status(lambda status: "one" not in {row.agent_name for row in status.agents})
        RegisterFile(tmp_path).change(lambda register: forget_agent(register, "one"))
        await restart(running, "one")
        await running.until(ready=1)


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_a_fleet_speaks_tls_both_ways_with_client_certificates(tmp_path: Path) -> None:
    """wss:// for agents, https:// for apps."""
    authority = Authority(tmp_path)
    listener = {"tls": {**authority.issue("agents"), "client_ca": authority.ca_file}}
    link = {"ca_file": authority.ca_file, **authority.issue("agent")}
    async with fleet(tmp_path, agents=(), listener=listener, api={"tls": authority.issue("api")}) as running:
        assert running.coordinator.agents_url.startswith("wss://")
        assert running.coordinator.api_url.startswith("https://")
        await running.start_agent("one", link=link)
        await running.until(ready=1)
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        async with aiohttp.ClientSession(running.coordinator.api_url) as http:
            body = {"model": "moe2", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
            async with http.post("/v1/chat/completions", json=body, ssl=context) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == "a b "


@pytest.mark.parametrize(
    ("host", "days", "since_days", "trusted", "code"),
    [
        ("127.0.0.1", 30.0, 100.0, False, "certificate_untrusted"),
        ("127.0.0.1", -1.0, 100.0, True, "certificate_expired"),
        ("127.0.0.1", 30.0, -1.0, True, "certificate_not_yet_valid"),
        ("hub.example", 30.0, 100.0, True, "certificate_name"),
    ],
)
async def test_a_certificate_that_cannot_be_trusted_is_a_named_warning(
    tmp_path: Path, host: str, days: float, since_days: float, trusted: bool, code: str
) -> None:
    """The token is not sent to whoever it is."""
    authority = Authority(tmp_path)
    listener = {"tls": authority.issue("agents", host=host, valid_days=days, since_days=since_days)}
    async with fleet(tmp_path, agents=(), listener=listener) as running:
        ca_file = authority.ca_file if trusted else Authority(tmp_path, "other").ca_file
        agent = await running.start_agent("one", link={"ca_file": ca_file})
        await until_warned(running, agent, code)
        assert not RegisterFile(tmp_path).current().agents
        warned = {warning.code for warning in running.coordinator.status().warnings}
        assert ("certificate_expired" in warned) == (days < 0)


async def test_a_missing_client_certificate_is_a_named_warning(tmp_path: Path) -> None:
    """Mutual TLS, and an agent that does not know of it."""
    authority = Authority(tmp_path)
    listener = {"tls": {**authority.issue("agents"), "client_ca": authority.ca_file}}
    async with fleet(tmp_path, agents=(), listener=listener) as running:
        agent = await running.start_agent("one", link={"ca_file": authority.ca_file})
        await until_warned(running, agent, "client_certificate_refused")


async def test_a_replaced_certificate_is_used_without_dropping_anybody(tmp_path: Path) -> None:
    """The daemon notices by itself; a damaged one is a warning, and the good one stays."""
    authority = Authority(tmp_path)
    pair = authority.issue("agents", valid_days=1)
    async with fleet(tmp_path, agents=(), listener={"tls": pair}) as running:
        await running.start_agent("one", link={"ca_file": authority.ca_file})
        await running.until(ready=1)
        since = running.agents["one"].status().link.connected_since_unix_s

        def warned() -> set[str]:
            return {warning.code for warning in running.coordinator.status().warnings}

        assert "certificate_expires" in warned()
        good_key = pair["key"].read_text()
        pair["key"].write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        await running.until_status(lambda _: "certificate_not_loaded" in warned())
        pair["key"].write_text(good_key)
        await running.until_status(lambda _: "certificate_not_loaded" not in warned())
        authority.issue("agents")
        await running.until_status(lambda _: "certificate_expires" not in warned())
        assert running.agents["one"].status().link.connected_since_unix_s == since


# --- Secrets ----------------------------------------------------------------------------------------------------------


async def test_no_secret_is_logged_or_shown(tmp_path: Path) -> None:
    """Enrolment, refusal and revocation, on both sides; neither tokens nor credentials, nor their digests."""
    make_token(tmp_path)
    with capture_logs() as logs:
        async with fleet(tmp_path, token=ONE_USE) as running:
            stranger = await running.start_agent("stranger", token="not-the-token")
            await until_warned(running, stranger, "token_refused")
            RegisterFile(tmp_path).change(lambda register: revoke_agent(register, "one", time.time()))
            await until_warned(running, running.agents["one"], "credential_revoked")
            async with running.http.get("/v1/moe2/fleet") as answer:
                shown = await answer.text()
    credential = json.loads((tmp_path / "one" / "credential").read_text())["secret"]
    secrets = [ONE_USE, TOKEN, "not-the-token", credential]
    told = shown + repr(logs)
    assert "agent_enrolled" in told
    assert not [secret for secret in (*secrets, *map(digest, secrets)) if secret in told]


# --- Bounds -----------------------------------------------------------------------------------------------------------


async def test_a_prompt_too_large_for_a_frame_costs_its_request_only(tmp_path: Path) -> None:
    """The link lives, and others are served over it."""
    async with fleet(tmp_path) as running:
        agent_id = running.coordinator.status().agents[0].agent_id
        large = Submit(job_id="j", request_id="r", model="fake", prompt=TextPrompt(text="x" * DEFAULT_MAX_FRAME_BYTES))
        with capture_logs() as logs:
            assert running.coordinator._hub.send(agent_id, large)
            async with await running.chat("hi", max_tokens=1) as answer:
                assert answer.status == 200
        assert "message_not_sent" in {line["event"] for line in logs}
        assert running.agents["one"].status().link.attempts == 1


async def test_a_peer_that_says_no_hello_is_let_go(tmp_path: Path) -> None:
    """After handshake_s; it is told why."""
    async with fleet(tmp_path, agents=(), listener={"handshake_s": 0.05}) as running:
        url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
        async with running.http.ws_connect(url, headers=headers) as websocket:
            refusal = CODEC.decode(await websocket.receive_bytes())
            assert isinstance(refusal, Refused)
            assert refusal.code == "handshake_timeout"
            assert (await websocket.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_agents_shake_hands_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its turn is answered once another has said hello, has gone, or takes too long."""
    monkeypatch.setattr(hub, "MAX_SHAKING", 1)
    async with fleet(tmp_path, agents=()) as running:
        url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}

        async def connect() -> aiohttp.ClientWebSocketResponse:
            return await running.http.ws_connect(url, headers=headers)

        monkeypatch.setattr(hub, "MAX_TURN_S", 3600.0)
        first, second = await connect(), asyncio.create_task(connect())
        await asyncio.wait((second,), timeout=0.2)
        assert not second.done()
        hello = Hello(protocol_min=1, protocol_max=9, agent_id="a", agent_name="a", agent_version="0")
        await first.send_bytes(CODEC.encode(hello))
        third = asyncio.create_task(connect())
        await (await second).close()
        monkeypatch.setattr(hub, "MAX_TURN_S", 0.01)
        await (await third).close()
        # Its turn ends although it neither speaks nor goes.
        silent = await connect()
        await (await connect()).close()
        await silent.close()
        await first.close()


async def test_a_frame_beyond_the_limit_ends_its_connection_only(tmp_path: Path) -> None:
    """It is not read into memory, and the others are served."""
    async with fleet(tmp_path) as running:
        url, headers = running.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
        async with running.http.ws_connect(url, headers=headers, max_msg_size=0) as websocket:
            # The hub hangs up as soon as it has read the frame's length.
            with suppress(aiohttp.ClientError, ConnectionError):
                await websocket.send_bytes(b"x" * (DEFAULT_MAX_FRAME_BYTES + 1))
            ended = await websocket.receive()
            assert ended.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_an_agent_in_the_clear_is_told_of_wss(tmp_path: Path) -> None:
    """ws:// against a listener with TLS."""
    async with fleet(tmp_path, agents=(), listener={"tls": Authority(tmp_path).issue("agents")}) as running:
        url = running.coordinator.agents_url.replace("wss://", "ws://")
        agent = await running.start_agent("one", link={"url": url})
        await running.until_status(lambda _: "write wss://" in (agent.status().link.last_error or ""))
