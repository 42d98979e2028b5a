"""Owns one engine child: starts it, feeds it, reads it, starts it again when it dies. Knows no llama.cpp.

The child runs in a process of its own so that a crash or an OOM kill takes one model's requests and nothing else.
What it prints on stderr is llama.cpp's log: kept short in memory for the error message, and passed on at debug level.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from moe2.agent.engine.protocol import Command, Event, Load, Loaded, LoadFailed, Loading, ModelSpec, Shutdown
from moe2.common.backoff import Backoff
from moe2.common.errors import Moe2Error, ProtocolError
from moe2.common.link.wire import Codec, FrameSplitter, length_prefixed

log = structlog.get_logger()

READ_BYTES = 65_536
# Prompts and token batches are far smaller; a broken child must not make the daemon buffer gigabytes.
MAX_FRAME_BYTES = 64 * 1024 * 1024
STDERR_LINES = 20
SHUTDOWN_S = 5.0


@dataclass(frozen=True)
class Exit:
    """How a child ended. `permanent`: the model itself could not be loaded."""

    reason: str
    permanent: bool


class EngineProcess:
    """One model's child process, restarted with back-off while it is wanted and until `run()` is cancelled.

    spec: what to load; where it is a function, it is asked anew before each load.
    on_event: called for every event of the child, on the event loop.
    on_exit: called once per child that ended by itself. on_stopped: called when a child has ended because of `stop`,
    also where there was none to end. before_load: called before a child is told to load; raises `Moe2Error` where the
    model's file may not be used.
    """

    def __init__(
        self,
        model: str,
        spec: ModelSpec | Callable[[], ModelSpec],
        argv: Sequence[str],
        *,
        backoff: Backoff,
        load_timeout_s: float,
        on_event: Callable[[str, Event], None],
        on_exit: Callable[[str, Exit], None],
        on_stopped: Callable[[str], None] = lambda model: None,
        before_load: Callable[[], Awaitable[None]] | None = None,
        wanted: bool = True,
    ) -> None:
        self._model = model
        self._spec = spec if callable(spec) else lambda: spec
        self._argv = tuple(argv)
        self._backoff = backoff
        self._load_timeout_s = load_timeout_s
        self._on_event = on_event
        self._on_exit = on_exit
        self._on_stopped = on_stopped
        self._before_load = before_load
        self._has_child = False
        self._commands: Codec[Command] = Codec(Command, max_frame_bytes=MAX_FRAME_BYTES)
        self._events: Codec[Event] = Codec(Event, max_frame_bytes=MAX_FRAME_BYTES)
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._load_failure: str | None = None
        self._killed_because: str | None = None
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        if wanted:
            self.start()
        self._log = log.bind(model=model)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def send(self, command: Command) -> None:
        """Pass a command to the child. Dropped if it is dead: its exit has already failed, or will fail, the job."""
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(length_prefixed(self._commands.encode(command)))

    def start(self) -> None:
        """Says that a child is wanted from now on."""
        self._wanted.set()
        self._unwanted.clear()

    def stop(self) -> None:
        """End the child, and start none until `start`. Its end is told by `on_stopped`."""
        self._wanted.clear()
        self._unwanted.set()
        if not self._has_child:
            asyncio.get_running_loop().call_soon(self._on_stopped, self._model)

    def kill(self, reason: str) -> None:
        """End a stuck child the hard way; it is started again like one that crashed."""
        if self._process and self._process.returncode is None:
            self._killed_because = reason
            _kill(self._process)

    async def run(self) -> None:
        """Keep a child running while it is wanted. Ends only by cancellation, which shuts the child down first."""
        while True:
            await self._wanted.wait()
            self._has_child = True
            ended = await self._run_child_while_wanted()
            self._has_child = False
            if ended is None:
                self._log.info("engine_stopped")
                self._on_stopped(self._model)
                continue
            self._log.warning("engine_exited", reason=ended.reason, permanent=ended.permanent)
            self._on_exit(self._model, ended)
            delay_s = self._backoff.next_delay_s()
            self._log.info("engine_restart_scheduled", delay_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    async def _run_child_while_wanted(self) -> Exit | None:
        """How the child ended by itself; None where it was stopped."""
        child = asyncio.create_task(self._run_child())
        stopped = asyncio.create_task(self._unwanted.wait())
        try:
            await asyncio.wait((child, stopped), return_when=asyncio.FIRST_COMPLETED)
            return child.result() if child.done() and not self._unwanted.is_set() else None
        finally:
            for task in (child, stopped):
                task.cancel()
            await _until_done(asyncio.gather(child, stopped, return_exceptions=True))

    async def _run_child(self) -> Exit:
        self._stderr.clear()
        self._load_failure = self._killed_because = None
        if self._before_load is not None:
            try:
                await self._before_load()
            except Moe2Error as error:
                return Exit(str(error), permanent=True)
        starting = asyncio.create_task(_start(self._argv))
        try:
            process = await asyncio.shield(starting)
        except OSError as error:
            return Exit(f"the engine could not be started: {error}", permanent=False)
        except asyncio.CancelledError:
            # Half a child cannot be ended cleanly: its pipes may not be there yet.
            with suppress(OSError):
                unborn = await starting
                await _shut_down(unborn, self._commands, asyncio.create_task(self._read_stderr(unborn)))
            raise
        self._process = process
        self._log.info("engine_started", pid=process.pid)
        stderr = asyncio.create_task(self._read_stderr(process))
        try:
            self.send(Load(spec=self._spec()))
            protocol_error = await self._read_events(process)
            if protocol_error:
                _kill(process)
            else:
                protocol_error = await _wait_for_end(process)
            await process.wait()
            await stderr
            return Exit(self._reason(process.returncode, protocol_error), permanent=self._load_failure is not None)
        finally:
            self._process = None
            await _until_done(asyncio.create_task(_shut_down(process, self._commands, stderr)))

    async def _read_events(self, process: asyncio.subprocess.Process) -> str | None:
        """Pass on events until the child's stdout ends; returns what was wrong if it was cut off instead."""
        assert process.stdout  # noqa: S101 - opened as a pipe above
        splitter = FrameSplitter(max_frame_bytes=MAX_FRAME_BYTES)
        loaded = False
        try:
            while True:
                # Only silence while loading is suspicious; an idle engine says nothing for hours.
                timeout_s = None if loaded else self._load_timeout_s
                async with asyncio.timeout(timeout_s):
                    data = await process.stdout.read(READ_BYTES)
                if not data:
                    return None
                for frame in splitter.feed(data):
                    event = self._events.decode(frame)
                    loaded = loaded or isinstance(event, Loaded)
                    self._note(event)
                    self._on_event(self._model, event)
        except TimeoutError:
            return f"no progress in loading for {self._load_timeout_s:.0f} s"
        except ProtocolError as error:
            return f"it broke the protocol: {error}"

    def _note(self, event: Event) -> None:
        match event:
            case Loaded(load_s=load_s):
                self._backoff.succeeded()
                self._log.info("model_loaded", load_s=round(load_s, 3))
            case LoadFailed(message=message):
                self._load_failure = message
            case Loading(progress=progress):
                self._log.debug("model_loading", progress=round(progress, 2))

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr  # noqa: S101 - opened as a pipe above
        while data := await process.stderr.read(READ_BYTES):
            for line in data.decode("utf-8", "replace").splitlines():
                if line.strip():
                    self._stderr.append(line[:500])
                    self._log.debug("engine_stderr", line=line[:500])

    def _reason(self, returncode: int | None, protocol_error: str | None) -> str:
        if self._load_failure or self._killed_because:
            return self._load_failure or self._killed_because or ""
        if protocol_error:
            return protocol_error
        if returncode is not None and returncode < 0:
            hint = "; the kernel's out-of-memory killer does this" if -returncode == signal.SIGKILL else ""
            cause = f"killed by {_signal_name(-returncode)}{hint}"
        else:
            cause = f"exited with status {returncode}"
        return f"{cause}; its last words: {self._stderr[-1]}" if self._stderr else cause


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Real-time signals have no name of their own.
        return f"signal {number}"


async def _start(argv: Sequence[str]) -> asyncio.subprocess.Process:
    # A session of its own: Ctrl-C on the daemon's terminal must not kill the child before it has drained.
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _until_done(ending: asyncio.Future[Any]) -> None:
    """Wait for it even where we are cancelled meanwhile, as often as that happens: a daemon that ends while a child is
    being shut down must not leave it behind. Raises CancelledError afterwards.
    """
    cancelled = None
    while not ending.done():
        try:
            await asyncio.wait((ending,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    ending.result()


async def _wait_for_end(process: asyncio.subprocess.Process) -> str | None:
    """A child that closed its stdout should be ending; one that stays serves nobody, and is killed."""
    try:
        async with asyncio.timeout(SHUTDOWN_S):
            await process.wait()
    except TimeoutError:
        _kill(process)
        return "it closed its output without ending"
    return None


async def _shut_down(process: asyncio.subprocess.Process, commands: Codec[Command], stderr: asyncio.Task[None]) -> None:
    """Ask the child to leave, then make it. stderr: who reads what it says there."""
    assert process.stdin  # noqa: S101 - opened as a pipe by the caller
    if process.returncode is None:
        with suppress(OSError):
            process.stdin.write(length_prefixed(commands.encode(Shutdown())))
            process.stdin.close()
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await process.wait()
        except TimeoutError:
            _kill(process)
            await process.wait()
    stderr.cancel()
    with suppress(asyncio.CancelledError):
        await stderr
    # Of a child that left by itself, too: its transport is held open until the last pipe is closed.
    process.stdin.close()
    with suppress(OSError):
        await process.stdin.wait_closed()
    with suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_S):
            await process.communicate()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
