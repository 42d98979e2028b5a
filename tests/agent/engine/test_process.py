"""The owner of an engine's child process, against real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from moe2.agent.engine import process, protocol
from moe2.agent.engine.process import EngineProcess, Exit
from moe2.common.backoff import Backoff
from moe2.common.generation import Sampling
from moe2.common.link.messages import CancelJob, Candidate, NextTokens, Submit
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.wire import Codec, length_prefixed
from tests.agent.jobs.corebench import LOADED
from tests.fakes.control import expert_control
from tests.fakes.fleet import FAKE_EXPERT

GENERATE = Submit(
    request_id="r",
    model="m",
    job_id="j",
    prompt=TextPrompt(text="one two"),
    sampling=Sampling(),
    max_tokens=3,
    stop=(),
    logprobs=None,
)
LOADED_FRAME = length_prefixed(Codec[protocol.Event](protocol.Event).encode(LOADED))

SHUTDOWN_FRAME = length_prefixed(Codec[protocol.Command](protocol.Command).encode(protocol.Shutdown()))


def test_pieces_that_are_no_text_survive_the_pipe() -> None:
    """A token may be a part of a character; the pipe packs bytes as the link does."""
    codec: Codec[protocol.Event] = Codec(protocol.Event)
    proposed = NextTokens(job_id="j", step=0, candidates=(Candidate(9, -0.25, b"\xc3", ends=False),))
    assert codec.decode(codec.encode(proposed)) == proposed


class CountingBackoff(Backoff):
    """Short delays, and a record of what was asked of it."""

    def __init__(self) -> None:
        super().__init__(first_s=0.001, most_s=0.002, random=Random(0))
        self.calls: list[str] = []

    def next_delay_s(self) -> float:
        self.calls.append("failed")
        return super().next_delay_s()

    def succeeded(self) -> None:
        self.calls.append("succeeded")
        super().succeeded()


class Engine:
    """An engine under test: what its child says and how its children end."""

    def __init__(self, argv: Sequence[str], *, path: Path, load_timeout_s: float = 60.0, wanted: bool = True) -> None:
        self.events: asyncio.Queue[protocol.Event] = asyncio.Queue()
        self.exits: asyncio.Queue[Exit] = asyncio.Queue()
        self.backoff = CountingBackoff()
        self.process = EngineProcess(
            "m",
            protocol.ModelSpec(path=str(path), context_tokens=64, slots=2),
            argv,
            backoff=self.backoff,
            load_timeout_s=load_timeout_s,
            on_event=lambda _, event: self.events.put_nowait(event),
            on_exit=lambda _, ended: self.exits.put_nowait(ended),
            wanted=wanted,
        )

    async def until(self, kind: type[protocol.Event]) -> protocol.Event:
        """Wait for the next event of this kind."""
        while True:
            event = await self.events.get()
            if isinstance(event, kind):
                return event


@asynccontextmanager
async def running(
    argv: Sequence[str], path: Path = Path(__file__), *, load_timeout_s: float = 60.0, wanted: bool = True
) -> AsyncIterator[Engine]:
    engine = Engine(argv, path=path, load_timeout_s=load_timeout_s, wanted=wanted)
    async with asyncio.timeout(60):
        task = asyncio.create_task(engine.process.run())
        try:
            yield engine
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()


def child(code: str) -> tuple[str, ...]:
    """A child that starts faster than the fake expert, for what needs no model."""
    preamble = f"import os, signal, sys, time\ndef loaded(): os.write(1, {LOADED_FRAME!r})\n"
    return (sys.executable, "-I", "-S", "-c", preamble + textwrap.dedent(code))


async def gone(pid: int) -> None:
    """Wait until a process does not exist any more."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0)


async def test_a_child_loads_its_model_and_serves_jobs() -> None:
    """The words of the protocol, both ways through real pipes."""
    async with running(FAKE_EXPERT) as engine:
        await engine.until(protocol.Loaded)
        engine.process.send(GENERATE)
        started = await engine.until(protocol.Started)
        finished = await engine.until(protocol.Finished)
    assert started == protocol.Started(job_id="j", prompt_tokens=2)
    assert isinstance(finished, protocol.Finished)
    assert (finished.reason, finished.decoded_tokens) == ("length", 3)


async def test_a_fake_expert_ends_a_job_that_is_cancelled_at_once() -> None:
    """Also where both commands are read together, as an agent sends them that has stood still."""
    async with running(FAKE_EXPERT) as engine:
        await engine.until(protocol.Loaded)
        pid = engine.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        engine.process.send(GENERATE)
        engine.process.send(CancelJob(job_id="j"))
        os.kill(pid, signal.SIGCONT)
        assert isinstance(await engine.until(protocol.Finished), protocol.Finished)


async def test_a_child_runs_while_it_is_wanted() -> None:
    """None before; its end when stopped is no exit to report; and again when started again."""
    async with running(FAKE_EXPERT, wanted=False) as engine:
        await asyncio.sleep(0)
        assert engine.process.pid is None
        engine.process.start()
        await engine.until(protocol.Loaded)
        first = engine.process.pid
        assert first is not None
        engine.process.stop()
        await gone(first)
        engine.process.start()
        await engine.until(protocol.Loaded)
        assert engine.process.pid not in (None, first)
    assert engine.exits.empty()
    assert "failed" not in engine.backoff.calls


async def test_a_child_that_crashes_in_a_job_is_restarted_and_serves_again(tmp_path: Path) -> None:
    """The reason names the signal; nothing but the child is lost."""
    async with expert_control(tmp_path / "control") as control:
        async with running((*FAKE_EXPERT, "--control", str(tmp_path / "control"))) as engine:
            await engine.until(protocol.Loaded)
            engine.process.send(GENERATE)
            (await control.next_phase()).answer("go")
            (await control.next_phase()).answer("crash")
            ended = await engine.exits.get()
            assert ended.reason.startswith("killed by SIGABRT")
            assert not ended.permanent
            control.release()
            await engine.until(protocol.Loaded)
            engine.process.send(GENERATE)
            assert isinstance(await engine.until(protocol.Finished), protocol.Finished)
            assert engine.backoff.calls == ["succeeded", "failed", "succeeded"]


async def test_a_child_that_talks_garbage_is_killed_and_restarted(tmp_path: Path) -> None:
    """After broken framing nothing that it says can be trusted."""
    async with expert_control(tmp_path / "control") as control:
        async with running((*FAKE_EXPERT, "--control", str(tmp_path / "control"))) as engine:
            await engine.until(protocol.Loaded)
            pid = engine.process.pid
            assert pid is not None
            engine.process.send(GENERATE)
            (await control.next_phase()).answer("garbage")
            ended = await engine.exits.get()
            assert ended.reason.startswith("it broke the protocol: ")
            assert not ended.permanent
            await gone(pid)
            await engine.until(protocol.Loaded)


async def test_a_model_that_cannot_be_loaded_is_a_permanent_failure(tmp_path: Path) -> None:
    """With the child's own message; it is tried again all the same, as the file may come."""
    missing = tmp_path / "missing.gguf"
    async with running(FAKE_EXPERT, missing) as engine:
        failed = await engine.until(protocol.LoadFailed)
        assert isinstance(failed, protocol.LoadFailed)
        assert await engine.exits.get() == Exit(failed.message, permanent=True)
        assert str(missing) in failed.message
        missing.touch()
        await engine.until(protocol.Loaded)


async def test_a_killed_child_hints_at_the_oom_killer() -> None:
    """The likeliest sender of an unexpected SIGKILL."""
    async with running(child("loaded(); sys.stdin.read()")) as engine:
        await engine.until(protocol.Loaded)
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        ended = await engine.exits.get()
    assert ended == Exit("killed by SIGKILL; the kernel's out-of-memory killer does this", permanent=False)


async def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    """Real-time signals have none in Python; that must not stop the daemon."""
    async with running(child("os.kill(os.getpid(), 40)")) as engine:
        assert (await engine.exits.get()).reason == "killed by signal 40"


async def test_the_exit_status_and_the_last_words_are_reported() -> None:
    """What llama.cpp prints before it gives up is the best hint there is; blank lines are not."""
    async with running(child("print('first\\nlast\\n \\n', file=sys.stderr); sys.exit(3)")) as engine:
        assert await engine.exits.get() == Exit("exited with status 3; its last words: last", permanent=False)


async def test_last_words_are_kept_short() -> None:
    """A megabyte of log is no reason."""
    async with running(child("sys.stderr.write('x' * 1000000); sys.exit(1)")) as engine:
        assert len((await engine.exits.get()).reason) < 600


async def test_last_words_are_those_of_the_child_that_died(tmp_path: Path) -> None:
    """A successor does not inherit them."""
    code = f"""
        try:
            os.mkdir({str(tmp_path / "second")!r})
            print("mine", file=sys.stderr)
        except FileExistsError:
            pass
        sys.exit(1)
    """
    async with running(child(code)) as engine:
        reasons = [(await engine.exits.get()).reason for _ in range(2)]
    assert reasons == ["exited with status 1; its last words: mine", "exited with status 1"]


async def test_a_child_that_cannot_be_started_is_reported_and_tried_again() -> None:
    """A missing interpreter does not stop the daemon."""
    async with running(("/nonexistent/engine",)) as engine:
        for _ in range(2):
            ended = await engine.exits.get()
            assert ended.reason.startswith("the engine could not be started: ")
            assert not ended.permanent


async def test_a_load_without_progress_is_given_up() -> None:
    """A child that hangs while loading is killed and restarted."""
    async with running(child("sys.stdin.read()"), load_timeout_s=0.01) as engine:
        ended = await engine.exits.get()
        assert ended == Exit("no progress in loading for 0 s", permanent=False)


async def test_a_child_that_closes_its_output_but_stays_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can serve nobody, so waiting for its end must be bounded."""
    monkeypatch.setattr(process, "SHUTDOWN_S", 0.01)
    async with running(child("loaded(); os.close(1); time.sleep(1000)")) as engine:
        ended = await engine.exits.get()
    assert ended.reason == "it closed its output without ending"
    assert not ended.permanent


async def test_a_child_is_asked_to_leave_before_it_is_made_to(tmp_path: Path) -> None:
    """Shutdown comes as a word, so that llama.cpp can free the device."""
    marker = tmp_path / "asked"
    code = f"""
        loaded()
        said = b""
        while data := os.read(0, 65536):
            said += data
        open({str(marker)!r}, "wb").write(said)
    """
    async with running(child(code)) as engine:
        await engine.until(protocol.Loaded)
    assert marker.read_bytes().endswith(SHUTDOWN_FRAME)


async def test_a_child_that_ignores_shutdown_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own end is bounded, and no child outlives it."""
    monkeypatch.setattr(process, "SHUTDOWN_S", 0.01)
    async with running(child("signal.signal(signal.SIGTERM, signal.SIG_IGN); loaded(); time.sleep(1000)")) as engine:
        await engine.until(protocol.Loaded)
        pid = engine.process.pid
        assert pid is not None
    await gone(pid)


@pytest.mark.slow
async def test_a_daemon_that_ends_while_a_child_is_shut_down_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner is over only when the child is, however often it is told to hurry."""
    monkeypatch.setattr(process, "SHUTDOWN_S", 0.2)
    engine = Engine(child("loaded(); time.sleep(1000)"), path=Path(__file__))
    async with asyncio.timeout(60):
        task = asyncio.create_task(engine.process.run())
        await engine.until(protocol.Loaded)
        pid = engine.process.pid
        assert pid is not None
        engine.process.stop()
        while engine.process.pid is not None:
            await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
async def test_a_stuck_child_is_killed_with_the_reason_given() -> None:
    """Also one that is stopped and would read no word; it is started again."""
    async with running(child("loaded(); time.sleep(1000)")) as engine:
        await engine.until(protocol.Loaded)
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGSTOP)
        engine.process.kill("stuck: it did not stop a job")
        assert await engine.exits.get() == Exit("stuck: it did not stop a job", permanent=False)
        await engine.until(protocol.Loaded)


async def test_a_command_for_a_dead_child_is_dropped() -> None:
    """Its exit fails the job; the daemon need not know the instant of death."""
    engine = Engine(FAKE_EXPERT, path=Path(__file__))
    assert engine.process.pid is None
    engine.process.send(GENERATE)
    assert engine.events.empty()


async def test_a_child_that_never_reads_does_not_block_the_daemon() -> None:
    """Commands beyond what its pipe holds wait in memory; the loop turns on."""
    async with running(child("loaded(); time.sleep(1000)")) as engine:
        await engine.until(protocol.Loaded)
        for _ in range(2000):
            engine.process.send(GENERATE)
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        assert (await engine.exits.get()).reason.startswith("killed by SIGKILL")
