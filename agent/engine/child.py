"""The engine's child process: `python -m moe2.agent.engine.child`, commands on stdin, events on stdout.

It serves one model and knows nothing of the agent. It ends when its stdin ends (the daemon is gone) or on `Shutdown`.
A crash of llama.cpp, or the kernel's OOM killer, takes this process and no other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from moe2.agent.engine.decoding.decoder import Decoder
from moe2.agent.engine.decoding.embedding import Embedder
from moe2.agent.engine.merging import Merging
from moe2.agent.engine.protocol import Command, Event, JobFailed, Load, LoadFailed, Loading, Shutdown
from moe2.common.errors import JobErrorCode, Moe2Error, ProtocolError
from moe2.common.link.messages import CancelJob, EmbedJob, FollowJob, ScoreJob, Submit, TakeToken
from moe2.common.link.wire import Codec, FrameSplitter, UnreadableMessage, length_prefixed

_READ_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20
"""Asked of the kernel for stdout: room for many steps' tokens while the daemon is busy."""
_PROGRESS_STEP = 0.05
_SPIN_COUNT = "2000"
_PR_SET_PDEATHSIG = 1
"""From Linux's <sys/prctl.h>."""


@dataclass(frozen=True)
class Resume:
    """A message of the child to its own loop: what a job waited for is known."""

    job_id: str


Word: TypeAlias = Command | Resume | JobFailed | None
"""A `JobFailed` is the answer to a command that could not be read. None: there will be no more commands."""
Inbox: TypeAlias = "queue.SimpleQueue[tuple[Word, float]]"
"""Words, and when each came: it may lie here for as long as a batch takes."""


class _Output:
    """Events as frames on what was this process's stdout."""

    def __init__(self) -> None:
        # Nothing that prints (llama.cpp, a library, a stray print) may ever write into the frames.
        self._fd = os.dup(1)
        os.dup2(2, 1)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._codec: Codec[Event] = Codec(Event)
        self._merging = Merging()

    def emit(self, event: Event) -> None:
        self._write(self._merging.put(event, time.monotonic()))

    def flush(self) -> None:
        self._write(self._merging.rest())

    def _write(self, events: Sequence[Event]) -> None:
        for event in events:
            frame = memoryview(length_prefixed(self._codec.encode(event)))
            while frame:
                frame = frame[os.write(self._fd, frame) :]


def main() -> int:
    """Serve until told to stop; returns the exit code: 0 as asked, 1 when the model could not be served."""
    _die_with_parent()
    # Ctrl-C reaches the whole foreground group, and systemd's SIGTERM the whole unit: the daemon, which drains first,
    # decides when its child stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    output = _Output()
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox,), name="commands", daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        return _serve(inbox, output)
    return 0


def _serve(inbox: Inbox, output: _Output) -> int:
    emit = output.emit
    command, _ = inbox.get()
    while not isinstance(command, Load):
        if command is None or isinstance(command, Shutdown):
            return 0
        _log(f"{type(command).__name__} came before Load and was ignored.\n")
        command, _ = inbox.get()
    emit(Loading(progress=0.0))
    _bound_spinning()
    try:
        # Imported here so that a missing or broken llama.cpp is a clear answer and not a dead child.
        from moe2.agent.engine.session import open_session
    except (ImportError, OSError, RuntimeError) as error:
        emit(LoadFailed(code="llama_missing", message=f"llama.cpp cannot be used: {error}. Install moe2[agent]."))
        return 1
    from moe2.agent.engine.llama.model import GpuRequiredError, ModelError

    last = 0.0

    def report(progress: float) -> None:
        nonlocal last
        if progress - last >= _PROGRESS_STEP:
            last = progress
            emit(Loading(progress=progress))

    with contextlib.ExitStack() as stack:
        try:
            decoder = stack.enter_context(
                open_session(
                    command.spec,
                    on_progress=report,
                    emit=emit,
                    log=_log,
                    clock=time.monotonic,
                    work_clock=time.thread_time,
                    wake=lambda job_id: inbox.put((Resume(job_id), time.monotonic())),
                )
            )
        except ModelError as error:
            fault = error.fault if isinstance(error, GpuRequiredError) else None
            emit(LoadFailed(code=error.code, message=str(error), gpu_fault=fault))
            return 1
        # What was made until now stays until the end: no later search for garbage need look at it.
        gc.freeze()
        while True:
            if not decoder.has_work:
                output.flush()
            try:
                command, came_at_s = inbox.get(block=not decoder.has_work)
            except queue.Empty:
                decoder.step()
                continue
            if command is None or isinstance(command, Shutdown):
                return 0
            if isinstance(command, JobFailed):
                emit(command)
            else:
                _obey(decoder, command, came_at_s)


def _obey(decoder: Decoder | Embedder, command: Command | Resume, came_at_s: float) -> None:
    match command:
        case Submit() | ScoreJob() | FollowJob() | EmbedJob():
            decoder.submit(command, came_at_s)
        case TakeToken(job_id=job_id, step=step, token=token):
            decoder.take(job_id, step, token)
        case CancelJob(job_id=job_id):
            decoder.cancel(job_id)
        case Resume(job_id=job_id):
            decoder.resume(job_id)
        case _:
            _log(f"{type(command).__name__} came after Load and was ignored.\n")


def _read(inbox: Inbox) -> None:
    """Commands from stdin into the inbox, then None when stdin ends. Runs in its own thread."""
    codec: Codec[Command] = Codec(Command)
    splitter = FrameSplitter()
    try:
        while data := os.read(0, _READ_BYTES):
            for frame in splitter.feed(data):
                try:
                    inbox.put((codec.decode(frame), time.monotonic()))
                except UnreadableMessage as error:
                    _log(f"A command was not understood: {error}\n")
                    if error.job_id is not None:
                        text = error.message
                        failed = JobFailed(job_id=error.job_id, code=JobErrorCode.INVALID_REQUEST, message=text)
                        inbox.put((failed, time.monotonic()))
    except (ProtocolError, OSError) as error:
        # The stream is out of step: what follows cannot be trusted.
        _log(f"Commands can no longer be read: {error}\n")
    inbox.put((None, time.monotonic()))


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the daemon dies, even if it is killed. Linux only; elsewhere stdin's end
    does the same a moment later."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # It died before the request was in place.
            sys.exit(0)


def _bound_spinning() -> None:
    """Let llama.cpp's threads sleep soon while they wait for each other; libgomp reads this once, when it is loaded.

    By default they spin for milliseconds, at about a thousand barriers per token. That is as fast as can be on cores of
    one's own, and ruinous as soon as anything else wants them, such as a second expert on this host. Measured on two
    x86-64 cores with a 135M model: alone, against a bare loop with the default, 0.80 of its tokens/s with a count of
    500, 0.97 with 2000, 1.0 with the default's 300000; beside one busy process 31, 22 and 5 tokens/s. Other
    architectures count differently and were not measured.
    """
    if platform.machine() == "x86_64" and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "replace"))


if __name__ == "__main__":
    try:
        code = main()
    except Moe2Error as error:
        _log(f"{error}\n")
        code = 1
    sys.exit(code)
