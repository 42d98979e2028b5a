"""The engine's side of the process that compiles grammars (see `process`): starts it, and a matcher for each job.

One thread does all the waiting, so that the decoding loop never waits for a grammar.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.structure.constraint import Constraint, GrammarError
from moe2.agent.engine.structure.matcher import Vocabulary
from moe2.agent.engine.structure.process import (
    ALONG,
    COMPLETE,
    MASK,
    MAX_ALONG,
    MAX_ANSWER_S,
    MAX_MEMORY_BYTES,
    REFUSED,
    TOKEN,
    TOKENS,
)
from moe2.common.errors import JobErrorCode, ProtocolError
from moe2.common.link.wire import FrameSplitter, length_prefixed

_ARGV = (sys.executable, "-m", "moe2.agent.engine.structure.process")
_MAX_COMPILING = 2
"""Constraints compiled at once: each may take a core and `MAX_MEMORY_BYTES`."""
_MAX_SILENCE_S = 20.0
"""An answer that takes so long on the clock will not come: its process is stopped, or was never started."""
_CHECK_S = 1.0
_QUESTIONS = 2**32
_READ_BYTES = 1 << 16
_SHUTDOWN_S = 2.0


class JobMatcher:
    """One job's constraint and how far its answer has come. All methods are for the decoding loop's thread."""

    def __init__(self, job_id: str, constraint: Constraint, pool: Matchers) -> None:
        self.job_id = job_id
        self._constraint = constraint
        self._pool = pool
        self._awaited = True
        self._answer: bytes | None = None
        self._error: RequestError | None = None
        self._arrived = threading.Event()
        self._channel: socket.socket | None = None
        self._splitter = FrameSplitter()
        self._asked_at_s = 0.0
        self._answered = False
        self._closed = False
        self._unsent: list[int] = []
        """Tokens that the process does not know of yet: what comes after them is known along the guesses."""
        self._ahead: deque[int] = deque()
        """Guesses that come next, if they are right."""
        self._question = 0
        self._along: tuple[int, deque[bytes]] = (0, deque())
        """The number of a question for masks along guesses, and its answers."""
        self._n_known = 0
        """Tokens at the beginning of that question that the process had not been told."""

    @property
    def is_ready(self) -> bool:
        """Is it known what may come next? If not, the job's id is announced (`wake`) as soon as it is."""
        self._awaited = True
        ready = self._answer is not None or self._error is not None
        self._awaited = not ready
        return ready

    def wait(self, seconds: float) -> None:
        """Waits at most so long until it is known what may come next."""
        if self._answer is None and self._error is None:
            self._arrived.wait(seconds)

    def mask(self) -> bytes | None:
        """The tokens that may come next, one bit each, the first token's the lowest of the first byte; None where the
        answer is complete. Raises `RequestError` where the constraint cannot be used, or not any further."""
        if self._error is not None:
            raise self._error
        answer = self._answer
        if answer is None:
            raise RuntimeError("the mask is not there yet")
        return answer[_text_end(answer) :] if answer[:1] == MASK else None

    def forced(self) -> bytes:
        """The text that comes next in any case; empty where there is a choice, or the answer is complete. To be asked
        where there is a mask."""
        answer = self._answer
        return answer[1 + TOKEN.size : _text_end(answer)] if answer is not None and answer[:1] == MASK else b""

    def accept(self, *tokens: int) -> None:
        """Takes in that the answer goes on with these tokens, which must be allowed."""
        for token in tokens:
            self._unsent.append(token)
            self._answer = self._known_after(token)
        if self._answer is None:
            self._asked_at_s = time.monotonic()
            self._arrived.clear()
            self._send(TOKENS + b"".join(map(TOKEN.pack, self._unsent)))
            self._unsent.clear()

    def _known_after(self, token: int) -> bytes | None:
        """What is known already of the answer after this token, as it was guessed."""
        number, answers = self._along
        if self._ahead and self._ahead.popleft() == token and number == self._question and len(answers) > self._n_known:
            while self._n_known:
                answers.popleft()
                self._n_known -= 1
            return answers.popleft()
        self._ahead.clear()
        return None

    def look_ahead(self, tokens: Sequence[int]) -> None:
        """Has the masks along these tokens computed, in case that they come next."""
        self._question = (self._question + 1) % _QUESTIONS
        self._ahead = deque(tokens[: max(0, MAX_ALONG - len(self._unsent))])
        self._n_known = len(self._unsent)
        if self._ahead:
            self._send(ALONG + b"".join(map(TOKEN.pack, (self._question, *self._unsent, *self._ahead))))

    def _send(self, question: bytes) -> None:
        channel = self._channel
        # The end of a process that has died is noticed by the thread that reads.
        with contextlib.suppress(OSError):
            if channel is not None:
                channel.send(length_prefixed(question))

    def close(self) -> None:
        self._pool.forget(self)


class Matchers:
    """All matchers of one engine."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        max_processes: int,
        wake: Callable[[str], None],
        argv: Sequence[str] = _ARGV,
    ) -> None:
        """vocabulary: makes the model's vocabulary, whenever a process is started. max_processes: jobs whose matchers
        exist at once; further ones wait. wake: called from another thread with the id of a job whose matcher became
        ready."""
        self._vocabulary = vocabulary
        self._max_processes = max_processes
        self._wake = wake
        self._argv = tuple(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._engine: socket.socket | None = None
        self._words: queue.SimpleQueue[JobMatcher | None] = queue.SimpleQueue()
        self._waiting: list[JobMatcher] = []
        self._living: set[JobMatcher] = set()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="matchers", daemon=True)
        self._thread.start()

    def start(self, job_id: str, constraint: Constraint) -> JobMatcher:
        """Starts a matcher for a constraint; it is ready once it has been compiled."""
        matcher = JobMatcher(job_id, constraint, self)
        self._say(matcher)
        return matcher

    def forget(self, matcher: JobMatcher) -> None:
        """Ends a matcher; one that is not ready never will be."""
        matcher._closed = True
        self._say(matcher)

    def close(self) -> None:
        """End all matchers and the process."""
        self._say(None)
        self._thread.join(_SHUTDOWN_S)
        self._end_process()
        for end in (self._bell, self._ear):
            end.close()
        self._selector.close()

    def _say(self, word: JobMatcher | None) -> None:
        self._words.put(word)
        with contextlib.suppress(OSError):
            self._bell.send(b".")

    # From here on everything runs in the thread.

    def _run(self) -> None:
        self._try_process()
        while True:
            for key, _ in self._selector.select(_CHECK_S if self._living or self._waiting else None):
                if key.data is None:
                    self._ear.recv(_READ_BYTES)
                else:
                    self._read(key.data)
            try:
                while True:
                    word = self._words.get_nowait()
                    if word is None:
                        for matcher in list(self._living):
                            self._drop(matcher)
                        return
                    self._hear(word)
            except queue.Empty:
                pass
            self._give_up_on_silent()
            self._start_waiting()

    def _hear(self, matcher: JobMatcher) -> None:
        if not matcher._closed:
            self._waiting.append(matcher)
        elif matcher in self._living:
            self._drop(matcher)
        elif matcher in self._waiting:
            self._waiting.remove(matcher)

    def _start_waiting(self) -> None:
        compiling = sum(not matcher._answered for matcher in self._living)
        while self._waiting and compiling < _MAX_COMPILING and len(self._living) < self._max_processes:
            matcher = self._waiting.pop(0)
            try:
                self._open(matcher)
                compiling += 1
            except (OSError, subprocess.SubprocessError, ProtocolError) as error:
                self._end_process()
                self._answer(matcher, _failure(f"The process that compiles grammars cannot be reached: {error}."))

    def _open(self, matcher: JobMatcher) -> None:
        if self._process is None or self._process.poll() is not None:
            self._end_process()
            self._start_process()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                assert self._engine is not None  # noqa: S101 - set with the process
                socket.send_fds(self._engine, [b"."], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.settimeout(_SHUTDOWN_S)
        matcher._channel = ours
        matcher._asked_at_s = time.monotonic()
        self._living.add(matcher)
        self._selector.register(ours, selectors.EVENT_READ, matcher)
        with contextlib.suppress(OSError):
            ours.sendall(length_prefixed(msgspec.json.encode(matcher._constraint)))
        ours.setblocking(False)

    def _read(self, matcher: JobMatcher) -> None:
        channel = matcher._channel
        if channel is None:
            return
        try:
            data = channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for frame in matcher._splitter.feed(data):
            kind, content = frame[:1], frame[1:]
            if kind in (MASK, COMPLETE):
                self._answer(matcher, frame)
            elif kind == ALONG:
                # What is not told yet is answered, too, and known.
                answers = deque(FrameSplitter().feed(content[TOKEN.size :]))
                matcher._along = TOKEN.unpack_from(content)[0], answers
            else:
                text = content.decode("utf-8", "replace")
                self._end(matcher, GrammarError(text) if kind == REFUSED else _failure(text))
                return
        if not data:
            self._end(matcher, self._death())

    def _answer(self, matcher: JobMatcher, answer: bytes | RequestError) -> None:
        matcher._answered = True
        if isinstance(answer, RequestError):
            matcher._error = answer
        else:
            matcher._answer = answer
        matcher._arrived.set()
        # The loop sets this before it looks for an answer, so that it finds one of the two.
        if matcher._awaited:
            self._wake(matcher.job_id)

    def _end(self, matcher: JobMatcher, error: RequestError) -> None:
        self._drop(matcher)
        self._answer(matcher, error)

    def _drop(self, matcher: JobMatcher) -> None:
        self._living.discard(matcher)
        channel, matcher._channel = matcher._channel, None
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    def _death(self) -> RequestError:
        """Why a matcher's process ended without a word: while the one that forked it lives, it went beyond a bound."""
        if self._process is None or self._process.poll() is not None:
            return _failure("The process that compiles grammars has ended; it is started again.")
        return GrammarError(
            f"The grammar or schema takes more than {MAX_ANSWER_S} s of computing or {MAX_MEMORY_BYTES >> 20} MiB.",
            remedy="Make it smaller: repeat less often, use fewer alternatives or simpler patterns.",
        )

    def _give_up_on_silent(self) -> None:
        now_s = time.monotonic()
        for matcher in list(self._living):
            if matcher._answer is None and now_s - matcher._asked_at_s > _MAX_SILENCE_S:
                self._end(
                    matcher, _failure(f"The process that compiles grammars said nothing for {_MAX_SILENCE_S:.0f} s.")
                )
                self._end_process()

    def _try_process(self) -> None:
        """Start the process before somebody waits for it; if that fails, the first who does is told."""
        try:
            self._start_process()
        except (OSError, subprocess.SubprocessError, ProtocolError):
            self._end_process()

    def _start_process(self) -> None:
        ours, theirs = socket.socketpair()
        self._engine = ours
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                self._argv, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env={**os.environ}
            )
        ours.settimeout(_MAX_SILENCE_S)
        ours.sendall(length_prefixed(msgspec.json.encode(self._vocabulary())))

    def _end_process(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(_SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _text_end(answer: bytes) -> int:
    """Where the text that has to come next ends in an answer that has a mask."""
    length: int = TOKEN.unpack_from(answer, 1)[0]
    return 1 + TOKEN.size + length


def _failure(message: str) -> RequestError:
    return RequestError(message, code=JobErrorCode.INTERNAL)
