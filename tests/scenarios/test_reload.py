"""SIGHUP on running daemons."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from moe2.common.localclient import STATUS_ROUTE, NotRunningError, fetch
from moe2.common.status import CoordinatorStatus
from moe2.common.tls.contexts import client_context, connection_fault
from tests.fakes.certificates import Authority
from tests.fakes.fleet import FAKE_EXPERT, fleet
from tests.fakes.gates import write_gate
from tests.fakes.waiting import until


@pytest.mark.slow
async def test_new_limits_budgets_and_ages_hold_at_once(tmp_path: Path) -> None:
    """Without a restart, and the agents stay."""
    async with fleet(tmp_path, engine_argv=(*FAKE_EXPERT, "--seconds-per-token", "0.02")) as running:
        running.configuration["api"]["max_active_requests"] = 7
        running.configuration["api"]["request_timeout_s"] = 0.1
        running.configuration["agents"]["evict_s"] = 0.001
        running.coordinator.reload()
        async with await running.chat("hi") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")
        running.configuration["api"]["request_timeout_s"] = 60
        running.configuration["selection"]["categories"] = {"default": {"latency_budget_s": 1e-6}}
        running.coordinator.reload()
        async with await running.chat("hi") as answer:
            assert (await answer.json())["error"]["code"] == "infeasible_budget"
        del running.configuration["selection"]["categories"]
        running.coordinator.reload()
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200
        assert running.agents["one"].status().link.attempts == 1


@pytest.mark.slow
async def test_a_gate_is_exchanged_while_running(tmp_path: Path) -> None:
    """One that is damaged leaves the former in place, with a warning."""
    async with fleet(tmp_path) as running:

        def warned() -> set[str]:
            return {warning.code for warning in running.coordinator.status().warnings}

        running.configuration["selection"]["gate"] = write_gate(tmp_path / "gate.safetensors", ["fake"], ["kind"])
        running.coordinator.reload()
        assert "configuration_refused" not in warned()
        (tmp_path / "gate.safetensors").write_bytes(b"damaged")
        running.coordinator.reload()
        assert "configuration_refused" in warned()
        async with await running.chat("hi", max_tokens=1) as answer:
            assert answer.status == 200


async def test_an_agent_keeps_its_link_and_says_what_needs_a_restart(tmp_path: Path) -> None:
    """Timing holds for the next attempt; a model that was added is not loaded."""
    async with fleet(tmp_path) as running:
        agent, configuration = running.agents["one"], running.agent_configurations["one"]
        configuration["coordinator"]["reconnect_most_s"] = 7.0
        configuration["models"] = [*configuration["models"], {"name": "second", "path": tmp_path / "second.gguf"}]
        agent.reload()
        [warning] = [w for w in agent.status().warnings if w.code == "restart_needed"]
        assert "models is a list of 1 in the running daemon, a list of 2" in warning.message
        assert agent.status().link.attempts == 1


async def test_another_certificate_file_is_taken_and_a_bad_one_refused(tmp_path: Path) -> None:
    """The listener stays open with a usable certificate in any case."""
    authority = Authority(tmp_path)
    async with fleet(tmp_path, agents=(), listener={"tls": authority.issue("one")}) as running:
        running.configuration["agents"]["tls"] = authority.issue("two")
        running.coordinator.reload()
        other = authority.issue("three")["key"]
        running.configuration["agents"]["tls"] = {**running.configuration["agents"]["tls"], "key": other}
        running.coordinator.reload()
        warning = next(w for w in running.coordinator.status().warnings if w.code == "configuration_refused")
        assert "does not belong to the certificate" in warning.message
        await running.start_agent("one", link={"ca_file": authority.ca_file})
        await running.until(ready=1)


@pytest.mark.slow
async def test_another_client_ca_is_taken_on_both_listeners_or_on_neither(tmp_path: Path) -> None:
    """The agent that is connected stays; where one of the two files is bad, the other changes nothing either."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    sections = {name: {**authority.issue(name), "client_ca": authority.ca_file} for name in ("api", "agents")}
    ours, theirs = (
        client_context(ca_file=authority.ca_file, **ca.issue(name)) for ca, name in ((authority, "o"), (other, "t"))
    )
    async with fleet(
        tmp_path, agents=(), listener={"tls": sections["agents"]}, api={"tls": sections["api"]}
    ) as running:

        async def let_in(context: ssl.SSLContext) -> list[bool]:
            urls = (running.coordinator.api_url, running.coordinator.agents_url.replace("wss", "https"))
            return [await lets_in(url, context) for url in urls]

        await running.start_agent("one", link={"ca_file": authority.ca_file, **authority.issue("agent")})
        await running.until(ready=1)
        assert (await let_in(ours), await let_in(theirs)) == ([True, True], [False, False])
        running.configuration["api"]["tls"] = {**sections["api"], "client_ca": other.ca_file}
        running.configuration["agents"]["tls"] = {**sections["agents"], "client_ca": tmp_path / "missing.pem"}
        running.coordinator.reload()
        assert (await let_in(ours), await let_in(theirs)) == ([True, True], [False, False])
        running.configuration["agents"]["tls"] = {**sections["agents"], "client_ca": other.ca_file}
        running.coordinator.reload()
        assert (await let_in(ours), await let_in(theirs)) == ([False, False], [True, True])
        assert not {w.code for w in running.coordinator.status().warnings} & {"restart_needed", "configuration_refused"}
        assert running.agents["one"].status().link.attempts == 1


async def lets_in(url: str, context: ssl.SSLContext) -> bool:
    """Whether a new connection gets an answer, be it 404."""
    async with aiohttp.ClientSession() as http:
        try:
            async with http.get(f"{url}/healthz", ssl=context):
                return True
        except (aiohttp.ClientError, OSError) as error:
            if connection_fault(error):
                return False
            raise


@pytest.mark.slow
async def test_a_sighup_applies_what_can_change_and_tells_the_rest(tmp_path: Path) -> None:
    """A real process, its file, its signal, its status."""
    config, socket = tmp_path / "coordinator.toml", tmp_path / "coordinator.sock"
    common = f'[coordinator]\nstate_dir = "{tmp_path}"\nsocket = "{socket}"\n'
    config.write_text(common + "[api]\nport = 0\n[agents]\nport = 0\n")
    argv = (sys.executable, "-m", "moe2.coordinator", "run", "--config", str(config))
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:

            async def warned() -> dict[str, str] | None:
                try:
                    status = msgspec.json.decode(
                        await asyncio.to_thread(fetch, socket, STATUS_ROUTE), type=CoordinatorStatus
                    )
                except NotRunningError:
                    return None
                return {warning.code: warning.message for warning in status.warnings}

            await until(warned, lambda codes: codes is not None)
            config.write_text(common + '[api]\nport = 1234\n[agents]\nport = 0\n[log]\nlevel = "debug"\n')
            os.kill(process.pid, signal.SIGHUP)
            codes = await until(warned, lambda codes: codes is not None and "restart_needed" in codes)
            assert codes is not None
            assert "api.port is 0 in the running daemon, 1234" in codes["restart_needed"]
            config.write_text("nonsense")
            os.kill(process.pid, signal.SIGHUP)
            await until(warned, lambda codes: codes is not None and "configuration_refused" in codes)
        finally:
            process.terminate()
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert '"log.level": "debug"' in log
