"""The process that compiles grammars: `python -m moe2.agent.engine.structure.process`, a socket of the engine as stdin.

The engine sends its vocabulary once, then for each job one byte with a socket of the job's own. A fork of this process
serves that job: it compiles the constraint that comes first on the job's socket, answers with the first mask, then with
one mask whenever it is told tokens, until the socket is closed. It is asked for the masks along tokens that may come,
too. Whatever a grammar does, it does to its own fork, which the kernel ends when one answer takes more than
`MAX_ANSWER_S` of computing or the job more than `MAX_MEMORY_BYTES`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from moe2.agent.engine.structure.constraint import Constraint, GrammarError
from moe2.agent.engine.structure.matcher import Compiler, Matcher, Vocabulary
from moe2.common.link.wire import LENGTH, FrameSplitter, length_prefixed

MAX_ANSWER_S = 0.5
"""Of one core's time, for reading and compiling a constraint with its first mask, and for each further mask."""
MAX_MEMORY_BYTES = 256 * 2**20
"""Beyond what the process has before it sees the constraint."""
MAX_VOCABULARY_BYTES = 256 * 2**20

MASK, COMPLETE, REFUSED, FAILED, ALONG = b"M", b"C", b"R", b"F", b"A"
"""First byte of an answer. After `MASK` come the length of the text that has to come next, that text, and the mask;
after `REFUSED` and `FAILED` the text of an error, the grammar's or this process's; after `ALONG` the number of the
question, then for each token the length of an answer and that answer, a `MASK` or `COMPLETE`."""
TOKENS = b"T"
"""First byte of a question: the answer goes on with the tokens that follow. After `ALONG` come the number of the
question and the tokens along which masks are asked for."""
TOKEN = struct.Struct(">I")
MAX_ALONG = 16
"""Tokens along which masks are given at once."""
_MAX_ALONG_S = 0.05
"""Computing time for them; what is not reached is asked for again if it comes."""
_READ_BYTES = 1 << 16


def main() -> int:
    """Serve until the engine closes its socket."""
    # As for the engine itself: the daemon decides when its processes stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = socket.socket(fileno=0)
    content = _vocabulary_frame(engine)
    if content is None:
        return 0
    compiler = Compiler(msgspec.json.decode(content, type=Vocabulary))
    del content
    # Nobody waits for the forks: the kernel may forget them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(engine, 1, 1)
        if not message:
            return 0
        for descriptor in descriptors:
            _fork(engine, socket.socket(fileno=descriptor), compiler)


def _fork(engine: socket.socket, channel: socket.socket, compiler: Compiler) -> None:
    with channel:
        try:
            if os.fork():
                return
        except OSError as error:
            with contextlib.suppress(OSError):
                channel.sendall(length_prefixed(FAILED + f"No process can be started: {error.strerror}.".encode()))
            return
        code = 1
        try:
            engine.close()
            _serve(channel, compiler)
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            # The job is over for the engine.
            code = 0
        finally:
            os._exit(code)


def _serve(channel: socket.socket, compiler: Compiler) -> None:
    """One job, in its fork."""
    _bound_memory()
    frames = _frames(channel)
    first = next(frames, None)
    if first is None:
        return
    constraint = msgspec.json.decode(first, type=Constraint)
    try:
        with _bounded_time():
            matcher = compiler.compile(constraint)
            answer = _answer(matcher)
        channel.sendall(length_prefixed(answer))
        for frame in frames:
            kind, tokens = frame[:1], [token for (token,) in TOKEN.iter_unpack(frame[1:])]
            with _bounded_time():
                if kind == ALONG:
                    answer = _along(matcher, tokens)
                else:
                    for token in tokens:
                        matcher.accept(token)
                    answer = _answer(matcher)
            channel.sendall(length_prefixed(answer))
    except GrammarError as error:
        channel.sendall(length_prefixed(REFUSED + str(error).encode("utf-8", "replace")))
    except RecursionError:
        channel.sendall(length_prefixed(REFUSED + b"The grammar or schema is nested too deeply. Flatten it."))


def _answer(matcher: Matcher) -> bytes:
    mask = matcher.mask()
    if mask is None:
        return COMPLETE
    return MASK + length_prefixed(matcher.forced()) + mask


def _along(matcher: Matcher, question: list[int]) -> bytes:
    number, *tokens = question
    until_s = time.process_time() + _MAX_ALONG_S
    answers: list[bytes] = []
    # What is too complex there is for the answer to come to, and to be told then.
    with contextlib.suppress(GrammarError):
        for ahead in matcher.along(tokens[:MAX_ALONG]):
            answers.append(_answer(ahead))
            if answers[-1] == COMPLETE or time.process_time() > until_s:
                break
    return ALONG + TOKEN.pack(number) + b"".join(map(length_prefixed, answers))


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    """Let the kernel end this process when it computes for too long; waiting, also for a core, does not count."""
    signal.setitimer(signal.ITIMER_PROF, MAX_ANSWER_S)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _bound_memory() -> None:
    """Let every allocation beyond the bound fail; where the system does not tell what is in use, it bounds all."""
    used = 0
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY_BYTES, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _vocabulary_frame(engine: socket.socket) -> bytes | None:
    """The engine's first frame and not a byte more: with the next comes a socket, which a plain read would lose. None
    where the engine is gone."""
    header = engine.recv(LENGTH.size, socket.MSG_WAITALL)
    if len(header) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(header)
    content = engine.recv(size, socket.MSG_WAITALL) if size <= MAX_VOCABULARY_BYTES else b""
    return content if len(content) == size else None


def _frames(channel: socket.socket) -> Iterator[bytes]:
    splitter = FrameSplitter()
    while data := channel.recv(_READ_BYTES):
        yield from splitter.feed(data)


if __name__ == "__main__":
    os._exit(main())
