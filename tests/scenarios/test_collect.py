"""`moe2-coordinator collect` against a live fleet."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from moe2.coordinator.training.outcomes import read_outcomes
from tests.fakes.certificates import Authority
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet

# Whole question sets through a fleet.
pytestmark = pytest.mark.slow


def questions(path: Path, count: int) -> Path:
    """The fake expert echoes the question's words: even questions are answered right."""
    rows: list[dict[str, Any]] = [
        {"id": f"q{n}", "prompt": f"say {n}", "gold": str(n + n % 2), "metric": "numeric"} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def started(running: Fleet, *argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moe2.coordinator", "collect", "--url", running.coordinator.api_url, *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def collected(running: Fleet, *argv: str) -> tuple[int | None, str]:
    """Exit status and what was told."""
    process = await started(running, *argv)
    _, err = await process.communicate()
    return process.returncode, " ".join(err.decode().split())


async def test_every_expert_answers_every_question_once(tmp_path: Path) -> None:
    """The outcomes are train-gate's, with tokens, seconds and joules per expert; a second run asks nothing."""
    source, out = questions(tmp_path / "q.jsonl", 4), tmp_path / "o.jsonl"
    argv = ("--questions", str(source), "--out", str(out), "--max-tokens", "2")
    async with fleet(tmp_path, agents=("one", "two")) as running:
        code, told = await collected(running, *argv)
        assert (code, "Collected 8 answers" in told) == (0, True)
        assert running.coordinator.status().requests_finished == 8
        outcomes = read_outcomes(out)
        assert outcomes.experts == ("fake",)
        assert dict(zip(outcomes.ids, outcomes.scores[:, 0], strict=True)) == {"q0": 1, "q1": 0, "q2": 1, "q3": 0}
        (first, *_) = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(first["experts"]) == 2
        for answer in first["experts"].values():
            assert answer["tokens"] == 2
            assert answer["seconds"] > 0
            assert (answer["joules"], answer["energy_quality"]) == (None, "unmeasured")
        code, told = await collected(running, *argv)
        assert (code, "Collected 0 answers" in told) == (0, True)
        assert running.coordinator.status().requests_finished == 8


async def test_ctrl_c_keeps_what_was_answered(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The next run asks only for the rest."""
    source, out = questions(tmp_path / "q.jsonl", 3), tmp_path / "o.jsonl"
    argv = ("--questions", str(source), "--out", str(out), "--max-tokens", "1", "--concurrency", "1")
    async with fleet(tmp_path, engine_argv=controlled) as running:
        process = await started(running, *argv)
        for _ in range(2):
            (await control.next_phase()).answer()
        await control.next_phase()  # the second question stands still in its prefill
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, b"Traceback" in err) == (130, False)
        assert read_outcomes(out).ids == ("q0",)
        control.release()
        await running.quiet()
        code, told = await collected(running, *argv)
        assert (code, "Collected 2 answers" in told) == (0, True)
        assert read_outcomes(out).ids == ("q0", "q1", "q2")


async def test_a_failing_question_is_told_and_asked_again(tmp_path: Path) -> None:
    """Exit status 1; the other answers are kept."""
    out, source = tmp_path / "o.jsonl", tmp_path / "q.jsonl"
    long = " ".join(["word"] * 5000)
    rows = [
        {"id": "long", "prompt": long, "gold": "x", "metric": "exact_match"},
        {"id": "short", "prompt": "x", "gold": "x", "metric": "exact_match"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with fleet(tmp_path) as running:
        code, told = await collected(running, "--questions", str(source), "--out", str(out), "--max-tokens", "1")
        assert code == 1
        assert "HTTP 400" in told
        assert read_outcomes(out).ids == ("short",)


async def test_faults_are_told_in_one_sentence(tmp_path: Path) -> None:
    """An unknown model, and a coordinator that is not there."""
    source, out = questions(tmp_path / "q.jsonl", 1), tmp_path / "o.jsonl"
    argv = ("--questions", str(source), "--out", str(out))
    async with fleet(tmp_path) as running:
        code, told = await collected(running, *argv, "--model", "gpt")
        assert (code, "No live expert serves gpt" in told) == (1, True)
        code, told = await collected(running, *argv, "--url", "http://127.0.0.1:9")
        assert (code, "does not answer" in told, "Traceback" in told) == (1, True, False)
        assert not out.exists()


async def test_a_private_ca_is_trusted_where_it_is_named(tmp_path: Path) -> None:
    """With `--ca-file` questions go over TLS; without it nothing is sent, and the fault is told."""
    authority = Authority(tmp_path)
    source, out = questions(tmp_path / "q.jsonl", 1), tmp_path / "o.jsonl"
    argv = ("--questions", str(source), "--out", str(out))
    async with fleet(tmp_path, api={"tls": authority.issue()}) as running:
        code, told = await collected(running, *argv)
        assert (code, "certificate" in told, "Traceback" in told) == (1, True, False)
        code, told = await collected(running, *argv, "--ca-file", str(tmp_path / "nothing.pem"))
        assert (code, "nothing.pem" in told, "Traceback" in told) == (1, True, False)
        code, told = await collected(running, *argv, "--ca-file", str(authority.ca_file))
        assert code == 0, told
        assert read_outcomes(out).ids == ("q0",)


async def test_an_agent_that_restarts_answers_everything(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """An agent that is gone in the middle of a survey is waited for, and no answer is missing."""
    source, out = questions(tmp_path / "q.jsonl", 14), tmp_path / "o.jsonl"
    argv = ("--questions", str(source), "--out", str(out), "--max-tokens", "1", "--concurrency", "1")
    async with fleet(tmp_path, engine_argv=controlled) as running:
        process = await started(running, *argv)
        (await control.next_phase()).answer()
        await control.next_phase()  # in the middle of a question
        running.agents["one"].stop()
        control.release()
        await running.agent_tasks["one"]
        await running.until_status(lambda status: not any(row.connected for row in status.agents))
        await running.start_agent("one", engine_argv=FAKE_EXPERT)
        _, err = await process.communicate()
        assert (process.returncode, "Collected 14 answers" in " ".join(err.decode().split())) == (0, True)
        assert len(read_outcomes(out).ids) == 14


async def test_a_base_model_is_asked_by_completions(tmp_path: Path) -> None:
    """A model without a chat template answers the set, options scored included."""
    out, source = tmp_path / "o.jsonl", tmp_path / "q.jsonl"
    row = {"id": "c", "prompt": "Sky?", "gold": "B", "metric": "choice", "choices": ["red", "blue"]}
    source.write_text(json.dumps(row) + "\n")
    engine = (*FAKE_EXPERT, "--no-template", "--prefers", "blue")
    async with fleet(tmp_path, engine_argv=engine) as running:
        code, told = await collected(running, "--questions", str(source), "--out", str(out), "--max-tokens", "8")
        assert (code, "Collected 1 answers" in told) == (0, True)
        (answer,) = json.loads(out.read_text())["experts"].values()
        assert answer["by_scoring"]["score"] == 1.0
        assert json.loads(out.read_text())["scoring__fake"] == 1.0
