"""Measuring one expert."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from moe2.agent.bench import workload
from moe2.agent.benchview import run_bench
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.profilestore import load_profile
from moe2.agent.settings import AgentSettings
from moe2.common.errors import ConfigError, Moe2Error
from tests.fakes.fleet import FAKE_EXPERT

Bench = Callable[..., str]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Runs the bench on a fake expert of 1000 tokens/s prefill and 100 tokens/s, and returns what it prints."""
    (tmp_path / "fake.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()

    def run(path: str = "fake.gguf", **options: bool | str) -> str:
        settings = AgentSettings.model_validate(
            {
                "agent": {"state_dir": str(tmp_path / "state")},
                "coordinator": {"url": "ws://127.0.0.1:1", "token_file": str(tmp_path / "token")},
                "models": [{"name": "fake", "path": str(tmp_path / path), "slots": 2}],
            }
        )
        output = io.StringIO()
        console = Console(file=output, width=140)
        sensors = SensorSettings(root=tmp_path / "empty", families=("ina3221", "rapl"))
        assert run_bench(settings, sensors, FAKE_EXPERT, console=console, **options) == 0  # type: ignore[arg-type]
        return output.getvalue()

    return run


def test_workload_goes_up_to_all_slots() -> None:
    """One request at a time, then 2, 4 and 8 at once; each with short and long prompts."""
    bursts = workload(slots=8, context_tokens=100_000)
    assert sorted({burst.concurrency for burst in bursts}) == [1, 2, 4, 8]
    assert {burst.prompt_tokens for burst in bursts if burst.concurrency == 8} == {32, 128, 512}


def test_workload_fits_the_context() -> None:
    """A small context gets the prompts that it can hold."""
    bursts = workload(slots=4, context_tokens=600)
    assert bursts
    assert all(burst.concurrency * (burst.prompt_tokens + burst.decoded_tokens) <= 600 for burst in bursts)


def test_measured_profile_is_stored(bench: Bench, tmp_path: Path) -> None:
    """The law of the expert, found in its requests, lies where the agent will look for it."""
    bench()
    stored = load_profile(tmp_path / "state", "fake", None, file_bytes=4)
    assert stored is not None
    assert stored.latency is not None
    assert stored.latency.decode[0] == pytest.approx(0.01, rel=0.15)
    assert stored.latency.prefill[1] == pytest.approx(0.001, rel=0.15)
    assert stored.latency.n_requests > 0


def test_profile_of_another_file_is_not_taken(bench: Bench, tmp_path: Path) -> None:
    """A model of the same name but another size has another speed."""
    bench()
    assert load_profile(tmp_path / "state", "fake", None, file_bytes=5) is None


def test_damaged_profile_is_no_profile(bench: Bench, tmp_path: Path) -> None:
    """Half a file is ignored: the expert is measured anew."""
    bench()
    (path,) = (tmp_path / "state/profiles").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    assert load_profile(tmp_path / "state", "fake", None, file_bytes=4) is None


def test_table_says_unmeasured_where_there_is_no_sensor(bench: Bench) -> None:
    """Speeds are shown, joules are not made up."""
    text = bench()
    assert "FIRST TOKEN" in text
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
