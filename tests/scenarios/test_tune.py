"""`moe2-coordinator tune` against a live fleet of two models: asked, trained, installed, in use; and interrupted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe2.coordinator import daemon
from moe2.coordinator.gate.checkpoint import load_checkpoint
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet, model_file

# Whole question sets through a fleet, and gates trained on the answers.
pytestmark = pytest.mark.slow

QUESTIONS = 60


def questions(path: Path, count: int = QUESTIONS) -> Path:
    """Two kinds of questions; fake experts echo the question, and `early` stops after its first word."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        kind = "first" if n % 2 else "last"
        said = {"first": f"{n} alpha beta", "last": f"gamma delta {n}"}[kind]
        split = "val" if n % 6 > 3 else "train"
        rows.append(
            {"id": f"q{n}", "prompt": said, "gold": str(n), "metric": "numeric", "benchmark": kind, "split": split}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@asynccontextmanager
async def two_models(root: Path, *, profile: str | None = "agx-orin-30w") -> AsyncIterator[Fleet]:
    """A fleet whose second model thinks for longer."""
    other = model_file(root, "other")
    async with fleet(root, profile=profile) as running:
        models = [{"name": "other", "path": other, "slots": 4}]
        await running.start_agent("two", models=models, engine_argv=FAKE_EXPERT, profile=profile)
        await running.until(ready=2)
        # Agents of this process listen for the signal as well, and the last one of them would get it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, running.coordinator.reload)
        (root / "c.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/coordinator.sock"\n'
            f'[agents]\ntoken_file = "{root}/token"\n'
        )
        yield running


async def started(
    root: Path, *argv: str, program: tuple[str, ...] = ("-m", "moe2.coordinator")
) -> asyncio.subprocess.Process:
    options = ("--config", str(root / "c.toml"), "--max-tokens", "4", "--seeds", "1")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *program, "tune", *options, *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # As at a terminal, also where the tests run in a shell's background, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


async def tuned(root: Path, *argv: str) -> tuple[int | None, str]:
    """Exit status and what was printed."""
    process = await started(root, *argv)
    out, _ = await process.communicate()
    return process.returncode, " ".join(out.decode().split())


async def until_said(process: asyncio.subprocess.Process, word: bytes) -> None:
    assert process.stdout is not None
    said = b""
    async with asyncio.timeout(120):
        while word not in said:
            said += await process.stdout.read(64) or pytest.fail(f"it ended without {word!r}: {said!r}")


def answered(root: Path) -> int:
    return sum(len(json.loads(line)["experts"]) for line in outcomes_file(root).read_text().splitlines())


def outcomes_file(root: Path) -> Path:
    return root / "tune-outcomes-q.jsonl"


def drafts(root: Path) -> list[str]:
    """Files that were being written when their writer was killed."""
    return [path.name for path in root.glob(".gate.safetensors.*.draft")]


async def test_from_a_fleet_to_a_gate_in_use(tmp_path: Path) -> None:
    """What it takes is announced, everybody is asked, the gain is told, and the running coordinator uses the gate."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path) as running:
        (hint,) = [warning for warning in running.coordinator.status().warnings if warning.code == "gate_expert_prior"]
        assert "moe2-coordinator tune" in hint.remedy
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert code == 0, told
        assert "60 questions for 2 experts (fake, other)" in told
        assert "They will take about" in told
        assert "the best single model" in told
        assert "The running coordinator chooses by it now." in told
        assert "The running gate has learned" not in told
        manifest = load_checkpoint(tmp_path / "gate.safetensors")[1]
        assert manifest.experts == ("fake", "other")
        assert manifest.files["other"] == hashlib.sha256(b"other").hexdigest()
        assert not [warning for warning in running.coordinator.status().warnings if warning.code == "gate_expert_prior"]
        assert answered(tmp_path) == 2 * QUESTIONS

        # Again: nothing is asked, and the same gate is installed.
        before, asked = (tmp_path / "gate.safetensors").read_bytes(), running.coordinator.status().requests_finished
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert (code, "0 requests to go" in told) == (0, True)
        assert "The running gate has learned from these answers" in told
        assert running.coordinator.status().requests_finished == asked
        assert (tmp_path / "gate.safetensors").read_bytes() == before


async def test_killed_while_asking_it_goes_on(tmp_path: Path) -> None:
    """A kill costs the answers that were under way, and no others are asked again."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path) as running:
        process = await started(tmp_path, "--questions", str(source), "--concurrency", "2")
        await running.until_status(lambda status: status.requests_finished >= 30)
        process.kill()
        await process.communicate()
        await running.quiet()
        assert 0 < answered(tmp_path) < 2 * QUESTIONS
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert code == 0, told
        assert answered(tmp_path) == 2 * QUESTIONS
        # Two that were under way, and one whose question waited for its other answer.
        assert running.coordinator.status().requests_finished <= 2 * QUESTIONS + 6


async def test_two_runs_at_once_are_one(tmp_path: Path) -> None:
    """The second one says so and asks nothing; it may run when the first has ended."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path) as running:
        process = await started(tmp_path, "--questions", str(source), "--concurrency", "1")
        await running.until_status(lambda status: status.requests_finished >= 3)
        code, told = await tuned(tmp_path, "--questions", str(source), "--dry-run")
        assert (code, "Another `tune`" in told, "Traceback" in told) == (1, True, False)
        process.send_signal(signal.SIGINT)
        await process.communicate()
        code, told = await tuned(tmp_path, "--questions", str(source), "--dry-run")
        assert code == 0, told


async def test_killed_while_training_it_installs_nothing(tmp_path: Path) -> None:
    """The gate's file appears whole or not at all; the next run trains and installs it without asking anything."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path) as running:
        process = await started(tmp_path, "--questions", str(source))
        await until_said(process, b"kept in")
        process.kill()
        await process.communicate()
        asked = running.coordinator.status().requests_finished
        assert not (tmp_path / "gate.safetensors").exists()
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert code == 0, told
        assert running.coordinator.status().requests_finished == asked
        assert (tmp_path / "gate.safetensors").exists()


STRUCK = """
import os, sys
from moe2.coordinator.__main__ import main
from moe2.coordinator.training import train

moment, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
rename = os.replace

def replace(draft, path):
    if path.name != "gate.safetensors" or moment == "training":
        return rename(draft, path)
    if moment == "after":
        rename(draft, path)
    os.kill(os.getpid(), number)
    if moment == "before":
        rename(draft, path)

def train_gate(*arguments, **options):
    # Once: a second Ctrl-C would end any program.
    if moment == "training" and not trainings:
        trainings.append(1)
        os.kill(os.getpid(), number)
    return fit(*arguments, **options)

trainings = []
os.replace, fit, train.train_gate = replace, train.train_gate, train_gate
main()
"""
"""The command, which sends itself a signal as it trains, or just before or after a new gate takes its place."""


async def test_stopped_while_it_installs_there_is_one_whole_gate(tmp_path: Path) -> None:
    """The former gate or the new one, as it says; nothing half-written stays, and the next run goes on."""
    source, path = questions(tmp_path / "q.jsonl"), tmp_path / "gate.safetensors"
    async with two_models(tmp_path) as running:
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert code == 0, told
        former, asked = path.read_bytes(), running.coordinator.status().requests_finished
        in_use = running.coordinator.status().gate_sha256
        assert in_use == hashlib.sha256(former).hexdigest()
        # Another training makes another gate of the same answers.
        other = ("--questions", str(source), "--seeds", "2")
        for number, moment in ((signal.SIGKILL, "before"), (signal.SIGINT, "before"), (signal.SIGTERM, "after")):
            process = await started(tmp_path, *other, program=("-c", STRUCK, moment, str(int(number))))
            out, _ = await process.communicate()
            told = " ".join(out.decode().split())
            is_new = path.read_bytes() != former
            load_checkpoint(path)
            assert is_new == (moment == "after"), (number, moment, told)
            if number == signal.SIGKILL:
                assert (process.returncode, len(drafts(tmp_path))) == (-signal.SIGKILL, 1)
            else:
                assert (process.returncode, "Traceback" in told) == (130, False), told
                assert ("What was answered is kept" in told, "The new gate is in" in told) == (not is_new, is_new)
            assert running.coordinator.status().gate_sha256 == in_use
        code, told = await tuned(tmp_path, *other)
        assert (code, "0 requests to go" in told, "chooses by it now" in told) == (0, True, True), told
        assert running.coordinator.status().requests_finished == asked
        assert running.coordinator.status().gate_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != in_use
        assert drafts(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_stopped_while_the_gate_is_read_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """The new gate is in its place, and says so; the next run asks nothing and has the coordinator read it."""
    source, path = questions(tmp_path / "q.jsonl"), tmp_path / "gate.safetensors"
    async with two_models(tmp_path) as running:
        process = await started(tmp_path, "--questions", str(source))
        # The coordinator is told of the gate, and has not read it yet.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, process.send_signal, number)
        out, _ = await process.communicate()
        told = " ".join(out.decode().split())
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), told
        assert ("The new gate is in" in told) == (number != signal.SIGKILL)
        load_checkpoint(path)
        assert running.coordinator.status().gate_sha256 is None
        loop.add_signal_handler(signal.SIGHUP, running.coordinator.reload)
        asked = running.coordinator.status().requests_finished
        code, told = await tuned(tmp_path, "--questions", str(source))
        assert (code, "0 requests to go" in told, "chooses by it now" in told) == (0, True, True), told
        assert running.coordinator.status().requests_finished == asked
        assert running.coordinator.status().gate_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stopped_while_training_it_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """A stop is not put off until the gate is trained and installed."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path):
        program = ("-c", STRUCK, "training", str(int(number)))
        process = await started(tmp_path, "--questions", str(source), program=program)
        out, _ = await process.communicate()
        told = " ".join(out.decode().split())
        assert (process.returncode, "What was answered is kept" in told, "Installed" in told) == (130, True, False)
        assert not (tmp_path / "gate.safetensors").exists()


async def test_a_coordinator_that_was_restarted_meanwhile_takes_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that ran at the start is gone, and its number another one's, which is left alone."""
    source = questions(tmp_path / "q.jsonl")
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        async with two_models(tmp_path):
            with monkeypatch.context() as before:
                before.setattr(daemon, "os", SimpleNamespace(getpid=lambda: stranger.pid))
                process = await started(tmp_path, "--questions", str(source))
                await until_said(process, b"kept in")
            out, _ = await process.communicate()
            assert (process.returncode, b"chooses by it now" in out) == (0, True), out
            assert stranger.returncode is None
    finally:
        stranger.kill()
        assert await stranger.wait() == -signal.SIGKILL


async def test_a_dry_run_asks_nothing(tmp_path: Path) -> None:
    """What comes with moe2 is announced, and nothing is asked or written."""
    async with two_models(tmp_path) as running:
        code, told = await tuned(tmp_path, "--dry-run")
        assert (code, "300 questions for 2 experts" in told) == (0, True)
        assert running.coordinator.status().requests_finished == 0
        assert not (tmp_path / "tune-outcomes.jsonl").exists()


async def test_a_limit_on_joules_is_kept(tmp_path: Path) -> None:
    """The joules of all answers together stay below the limit, and what is missing is told."""

    def spent_j(name: str) -> float:
        rows = [json.loads(line) for line in (tmp_path / f"tune-outcomes-{name}.jsonl").read_text().splitlines()]
        return float(sum(answer["joules"] for row in rows for answer in row["experts"].values()))

    # Joules of a simulated host follow the seconds, which a busy machine makes several times longer at times.
    few, many = questions(tmp_path / "few.jsonl"), questions(tmp_path / "many.jsonl", 300)
    async with two_models(tmp_path):
        await tuned(tmp_path, "--questions", str(few))
        limit_j = 2 * spent_j("few")
        # The gate of these few is not that of the run which is to be judged.
        (tmp_path / "gate.safetensors").unlink(missing_ok=True)
        code, told = await tuned(tmp_path, "--questions", str(many), "--max-j", f"{limit_j:.6f}")
        assert 0 < spent_j("many") <= limit_j
        assert "could go beyond the limit" in told
        assert " answers not asked for" in told
        # Whether that many answers are enough to train a gate depends on the pace; a gate without success does not.
        assert code == int(not (tmp_path / "gate.safetensors").exists())


async def test_joules_that_nobody_measures_cannot_be_limited(tmp_path: Path) -> None:
    """A limit on joules is refused on a fleet without sensors, instead of being ignored."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path, profile=None):
        code, told = await tuned(tmp_path, "--questions", str(source), "--max-j", "30")
        assert (code, "Joules cannot be limited" in told, "--max-minutes" in told) == (1, True, True)


async def test_a_new_model_alone_joins_the_others(tmp_path: Path) -> None:
    """With the first model's answers there, only the new one is asked, and the gate knows both."""
    source = questions(tmp_path / "q.jsonl")
    async with two_models(tmp_path) as running:
        code, told = await tuned(tmp_path, "--questions", str(source), "--model", "fake")
        assert (code, "at least two models" in told) == (1, True)
        asked = running.coordinator.status().requests_finished
        code, told = await tuned(tmp_path, "--questions", str(source), "--model", "other")
        assert code == 0, told
        assert running.coordinator.status().requests_finished == asked + QUESTIONS
        assert load_checkpoint(tmp_path / "gate.safetensors")[1].experts == ("fake", "other")


async def test_faults_are_told_in_a_sentence(tmp_path: Path) -> None:
    """One model, an unknown model, a coordinator that does not run, a limit that is none."""
    async with fleet(tmp_path):
        (tmp_path / "c.toml").write_text(
            f'[coordinator]\nstate_dir = "{tmp_path}"\nsocket = "{tmp_path}/coordinator.sock"\n'
            f'[agents]\ntoken_file = "{tmp_path}/token"\n'
        )
        for argv, said in (
            ((), "there is nothing to choose from"),
            (("--model", "gpt"), "No live expert serves gpt"),
            (("--max-j", "nan"), "--max-j must be positive"),
            (("--max-minutes", "-1"), "--max-minutes must be positive"),
        ):
            code, told = await tuned(tmp_path, *argv)
            assert (code, said in told, "Traceback" in told) == (1, True, False), told
    code, told = await tuned(tmp_path)
    assert (code, "does not run" in told, "Traceback" in told) == (1, True, False)
