"""`moe2-agent models`, against a served status and a whole agent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from moe2.agent.cli.models import model_rows, sampling_text, show_models
from moe2.common.generation import MAX_TOP_K, NEUTRAL_SAMPLING, USUAL_SAMPLING, Sampling
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.placement import DeviceShare, GpuCause, GpuFault
from tests.agent.cli.test_status import FRESH, READY, daemon, status
from tests.fakes.fleet import fleet

KNOWN = msgspec.structs.replace(
    READY,
    parameters=134_515_008,
    licence="apache-2.0",
    vocabulary_sha256="ab" * 32,
    file_sha256="cd" * 32,
    load_s=2.5,
    placement=(DeviceShare(device="CUDA0", is_gpu=True, layers=31, weights_bytes=96_000_000),),
)
COLD = ExpertReport(model="cold", state=ExpertState.COLD, context_tokens=64, slots=1, on_demand=True)


async def shown(
    socket: Path, *experts: ExpertReport, as_json: bool = False, drawn: bool = False, width: int = 200
) -> str:
    """What the command prints of an agent with these experts."""
    value = msgspec.structs.replace(status(experts=experts), model_files={"small-q4": "/models/small.gguf"})
    console = Console(file=io.StringIO(), width=width, force_terminal=drawn)
    async with daemon(socket, lambda: value):
        code = await asyncio.to_thread(show_models, socket, as_json=as_json, console=console)
    assert code == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_json_has_every_fact_of_every_model(tmp_path: Path) -> None:
    """One list; unknown is null."""
    known, cold = json.loads(await shown(tmp_path / "s", KNOWN, COLD, as_json=True))
    assert known == {
        "name": "small-q4",
        "state": "ready",
        "load_progress": None,
        "load_s": 2.5,
        "file": "/models/small.gguf",
        "file_bytes": 98_900_000,
        "architecture": None,
        "quantization": "Q4_1",
        "parameters": 134_515_008,
        "licence": "apache-2.0",
        "supports_tools": None,
        "supports_thinking": None,
        "sampling": None,
        "vocabulary_sha256": "ab" * 32,
        "sha256": "cd" * 32,
        "origin": None,
        "last_used_unix_s": None,
        "last_error": None,
        "placement": [{"device": "CUDA0", "is_gpu": True, "layers": 31, "weights_bytes": 96_000_000}],
        "gpu_fault": None,
    }
    assert (cold["name"], cold["state"], cold["sha256"]) == ("cold", "cold", None)


async def test_a_line_says_where_a_model_is_and_why_not_on_the_gpu(tmp_path: Path) -> None:
    """In words that a script can read."""
    fault = GpuFault(cause=GpuCause.NO_PERMISSION, message="No.", remedy="Join video.")
    barred = msgspec.structs.replace(
        KNOWN, placement=(DeviceShare(device="CPU", layers=31),), gpu_fault=fault, model="barred"
    )
    first, second = (await shown(tmp_path / "s", KNOWN, barred)).splitlines()
    assert 'placement="CUDA0 31/31 layers"' in first
    assert 'placement="CPU 31/31 layers"' in second
    assert "gpu_fault=no_permission" in second


async def test_a_terminal_gets_a_table(tmp_path: Path) -> None:
    """States, progress, sizes and short hashes."""
    text = await shown(tmp_path / "s", KNOWN, FRESH, COLD, drawn=True)
    for part in (
        "CUDA0 31 layers",
        "small-q4",
        "ready",
        "135 M",
        "apache-2.0",
        "abababababab",
        "cdcdcdcdcdcd",
        "43",
        "cold",
    ):
        assert part in text
    assert "ab" * 7 not in text


@pytest.mark.parametrize("width", [40, 100, 150])
async def test_a_narrow_terminal_gets_a_few_lines_for_each_model(tmp_path: Path, width: int) -> None:
    """Nothing is broken in the middle of a word, and what is unknown is left out."""
    text = await shown(tmp_path / "s", KNOWN, COLD, drawn=True, width=width)
    for part in ("small-q4", "ready, 98.9 MB", "on CUDA0 31 layers", "sha256 cdcdcdcdcdcd", "file /models/small.gguf"):
        assert part in text
    assert "SHA-256" not in text
    assert text.splitlines()[-1].endswith("cold, –")


async def test_a_pipe_gets_a_line_for_each_model(tmp_path: Path) -> None:
    """Words and key=value pairs."""
    lines = (await shown(tmp_path / "s", KNOWN, COLD)).splitlines()
    assert [text.partition(" state=")[0] for text in lines] == ["model name=small-q4", "model name=cold"]
    assert "state=ready" in lines[0]
    assert "file=/models/small.gguf" in lines[0]
    assert "state=cold" in lines[1]


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        (None, None),
        (Sampling(temperature=0.0, top_k=40), "greedy"),
        (USUAL_SAMPLING, "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05"),
        (Sampling(temperature=0.6, top_k=MAX_TOP_K, repeat_penalty=1.1), "temperature 0.6, repeat penalty 1.1"),
        (NEUTRAL_SAMPLING, "the model's own distribution"),
    ],
)
def test_what_a_model_draws_with_is_said_in_words(sampling: Sampling | None, text: str | None) -> None:
    """Only values that change something are named."""
    assert sampling_text(sampling) == text


def test_an_agent_that_does_not_run_is_told_as_such(tmp_path: Path) -> None:
    """The exit code of `status`."""
    assert show_models(tmp_path / "absent.sock", as_json=False) == 2


async def test_a_running_agent_knows_its_files(tmp_path: Path) -> None:
    """Path and checksum, without anybody having asked for them; the coordinator learns the checksum."""
    (tmp_path / "fake.gguf").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    async with fleet(tmp_path) as running:
        await running.until_status(
            lambda status: [expert.file_sha256 for row in status.agents for expert in row.experts] == [sha256]
        )
        (row,) = model_rows(running.agents["one"].status())
        assert (row.file, row.sha256) == (str(tmp_path / "fake.gguf"), sha256)
