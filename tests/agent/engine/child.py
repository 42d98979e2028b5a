"""A real engine child at the other end of two pipes, driven without an event loop."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from types import TracebackType
from typing import TypeVar

from moe2.agent.engine.protocol import Command, Event, Finished, JobFailed, Load, Loaded, LoadFailed, ModelSpec
from moe2.common.link.messages import Tokens
from moe2.common.link.wire import Codec, FrameSplitter, length_prefixed

_PATIENCE_S = 60.0
EAGER = "tests.agent.engine.eagerchild"
"""A child whose guesses do not depend on how busy the host is."""
E = TypeVar("E", bound=Event)


class Child:
    """`python -m moe2.agent.engine.child`, or another module. Reading waits for the next event, with a bound."""

    def __init__(self, module: str = "moe2.agent.engine.child") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self._commands: Codec[Command] = Codec(Command)
        self._events: Codec[Event] = Codec(Event)
        self._splitter = FrameSplitter()
        self._arrived: list[Event] = []

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._stdin.close()
        self._stdout.close()

    def send(self, command: Command) -> None:
        self.send_bytes(length_prefixed(self._commands.encode(command)))

    def send_bytes(self, data: bytes) -> None:
        self._stdin.write(data)
        self._stdin.flush()

    def close_stdin(self) -> None:
        self._stdin.close()

    def next(self) -> Event:
        """The next event. Raises `EOFError` when the child is gone."""
        while not self._arrived:
            if not select.select([self._stdout], [], [], _PATIENCE_S)[0]:
                raise TimeoutError(f"no event within {_PATIENCE_S} s")
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                raise EOFError
            self._arrived += [self._events.decode(frame) for frame in self._splitter.feed(data)]
        return self._arrived.pop(0)

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing is heard for so long."""
        return not self._arrived and not select.select([self._stdout], [], [], seconds)[0]

    def until(self, kind: type[E], job_id: str | None = None) -> E:
        """The next event of a kind (of one job), passing over others."""
        while True:
            event = self.next()
            if isinstance(event, kind) and (job_id is None or getattr(event, "job_id", None) == job_id):
                return event

    def load(self, path: str, *, slots: int = 4, context_tokens: int = 1024) -> Loaded | LoadFailed:
        # One thread: the tests share their cores, and llama.cpp's threads wait for each other. Guesses' batches take
        # longer to measure than the rest of the start.
        return self.load_spec(
            ModelSpec(path=path, context_tokens=context_tokens, slots=slots, threads=1, speculation=False)
        )

    def load_spec(self, spec: ModelSpec) -> Loaded | LoadFailed:
        self.send(Load(spec=spec))
        while True:
            event = self.next()
            if isinstance(event, Loaded | LoadFailed):
                return event

    def collect(self, jobs: int) -> tuple[dict[str, str], dict[str, Finished | JobFailed]]:
        """(texts, ends) by job, once that many jobs have ended."""
        texts: dict[str, str] = {}
        ends: dict[str, Finished | JobFailed] = {}
        while len(ends) < jobs:
            event = self.next()
            if isinstance(event, Tokens):
                for job in event.jobs:
                    texts[job.job_id] = texts.get(job.job_id, "") + "".join(piece.text for piece in job.pieces)
            elif isinstance(event, Finished | JobFailed):
                ends[event.job_id] = event
        return texts, ends
