"""Measuring one expert."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from moe2.agent.cli.bench import run_bench
from moe2.agent.cli.workload import workload
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.energy.profiles import find_profile
from moe2.agent.learning.store import load_profile
from moe2.agent.observing.local_api import local_app
from moe2.agent.observing.metrics import AgentMetrics
from moe2.agent.settings import AgentSettings, ModelSection
from moe2.common.energy import unmeasured
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.localsocket import serving
from tests.agent.cli.test_status import status
from tests.fakes.fleet import FAKE_EXPERT

# Each one benches a fake expert.
pytestmark = pytest.mark.slow

Bench = Callable[..., str]
# The checkout's own moe2, also where another one is installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Runs the bench on a fake expert of 1000 tokens/s prefill and 100 tokens/s, and returns what it prints."""
    (tmp_path / "fake.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()

    def run(path: str = "fake.gguf", profile: str | None = None, **options: bool | str) -> str:
        settings = AgentSettings.model_validate(
            {
                "agent": {"state_dir": str(tmp_path / "state"), "socket": str(tmp_path / "agent.sock")},
                "coordinator": {"url": "ws://127.0.0.1:1", "token_file": str(tmp_path / "token")},
                "models": [{"name": "fake", "path": str(tmp_path / path), "slots": 2}],
            }
        )
        output = io.StringIO()
        console = Console(file=output, width=140)
        simulated = find_profile(profile) if profile else None
        sensors = SensorSettings(root=tmp_path / "empty", families=("ina3221", "rapl"), simulated=simulated)
        assert run_bench(settings, sensors, FAKE_EXPERT, console=console, **options) == 0  # type: ignore[arg-type]
        return output.getvalue()

    return run


def test_workload_goes_up_to_all_slots() -> None:
    """One request at a time, then 2, 4 and all 6 at once; each with short and long prompts."""
    bursts = workload(slots=6, context_tokens=100_000)
    assert sorted({burst.concurrency for burst in bursts}) == [1, 2, 4, 6]
    assert {burst.prompt_tokens for burst in bursts if burst.concurrency == 6} == {32, 128, 512}


def test_workload_fits_the_context() -> None:
    """A small context gets the prompts that it can hold."""
    bursts = workload(slots=4, context_tokens=600)
    assert bursts
    assert all(burst.concurrency * (burst.prompt_tokens + burst.decoded_tokens) <= 600 for burst in bursts)


def test_slots_with_a_context_each_are_all_used() -> None:
    """Each request has so much, however many there are."""
    bursts = workload(slots=4, context_tokens=300, kv_unified=False)
    assert {burst.concurrency for burst in bursts} == {1, 2, 4}
    assert all(2 * burst.prompt_tokens + burst.decoded_tokens <= 300 for burst in bursts)


def test_measured_profile_is_stored(bench: Bench, tmp_path: Path) -> None:
    """The law of the expert, found in its requests, lies where the agent will look for it."""
    bench()
    stored = load_profile(tmp_path / "state", ModelSection(name="fake", path=tmp_path / "fake.gguf", slots=2), None)
    assert stored.hostname
    assert stored.latency is not None
    assert stored.latency.decode[0] == pytest.approx(0.01, rel=0.15)
    assert stored.latency.prefill[1] == pytest.approx(0.001, rel=0.15)
    assert stored.latency.n_requests > 0


def test_table_says_unmeasured_where_there_is_no_sensor(bench: Bench) -> None:
    """Speeds are shown, joules are not made up."""
    text = bench()
    assert all(heading in text for heading in ("FIRST TOKEN", "PREFILL/S", "DECODE/S"))
    assert "unmeasured" in text
    assert "no power sensor" in text
    assert "0.00" not in text


def test_json_is_one_document(bench: Bench) -> None:
    """For scripts: bursts and profile, no joules where none were measured."""
    document = json.loads(bench(as_json=True))
    assert document["profile"]["model"] == "fake"
    assert all("joules" not in burst["energy"] for burst in document["bursts"])


def test_unknown_model_lists_the_known_ones(bench: Bench) -> None:
    """A typing error is answered with what there is."""
    with pytest.raises(ConfigError, match="it has fake"):
        bench(model="other")


def test_missing_model_file_is_named(bench: Bench) -> None:
    """What cannot be loaded is said in the engine's words."""
    with pytest.raises(Moe2Error, match=r"no file .*gone\.gguf"):
        bench(path="gone.gguf")


def test_simulated_joules_say_so(bench: Bench) -> None:
    """Above their column, and in the sum."""
    text = bench(profile="agx-orin-maxn", idle_s=0.1)
    [heading] = [line for line in text.splitlines() if "FIRST TOKEN" in line]
    assert heading.endswith("(simulated)")
    assert "power mode MAXN (simulated)" in text


def test_a_running_agent_is_in_the_way(bench: Bench, tmp_path: Path) -> None:
    """Its requests would be measured too; the refusal says what to do."""
    answers = threading.Event()
    done = threading.Event()

    async def serve() -> None:
        metrics = AgentMetrics(status, lambda: unmeasured("no sensor"))
        async with serving(local_app(status, metrics), tmp_path / "agent.sock"):
            answers.set()
            await asyncio.to_thread(done.wait)

    agent = threading.Thread(target=lambda: asyncio.run(serve()))
    agent.start()
    try:
        answers.wait()
        with pytest.raises(Moe2Error, match=r"agent runs.*systemctl stop moe2-agent"):
            bench()
    finally:
        done.set()
        agent.join()
    assert not (tmp_path / "state").exists()


def test_the_command_finds_its_model(tmp_path: Path) -> None:
    """`moe2-agent bench` with a model that is not configured: exit status 78, and the names of those that are."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}"\n[coordinator]\nurl = "ws://127.0.0.1:1"\ntoken_file = "{tmp_path}/token"\n'
        f'[[models]]\nname = "small"\npath = "{tmp_path}/m.gguf"\n'
    )
    command = (sys.executable, "-m", "moe2.agent", "bench", "--config", str(config), "--model", "large")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert ended.returncode == 78
    assert "it has small" in ended.stderr
