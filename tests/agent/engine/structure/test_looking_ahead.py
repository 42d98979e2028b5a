"""Masks along tokens that may come, and texts that have to come."""

from __future__ import annotations

import queue
import socket
import threading
from random import Random

import msgspec
import pytest

from moe2.agent.engine.structure.constraint import Constraint
from moe2.agent.engine.structure.matchers import Matchers
from moe2.agent.engine.structure.process import ALONG, COMPLETE, MASK, TOKEN, TOKENS, _serve
from moe2.common.link.wire import FrameSplitter, length_prefixed
from tests.agent.engine.structure.following import BYTES, COMPILER, allows

CHOICE = Constraint(syntax="gbnf", source='root ::= ("a" | "b") "cd" [x-z] "e"')
_PATIENCE_S = 30.0


def mask_of(answer: bytes) -> bytes:
    return answer[1 + TOKEN.size + TOKEN.unpack_from(answer, 1)[0] :]


def text_of(answer: bytes) -> bytes:
    return answer[1 + TOKEN.size : len(answer) - len(mask_of(answer))]


class _Served:
    """The process's work for one job, on a thread."""

    def __init__(self, constraint: Constraint) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(_PATIENCE_S)
        self._thread = threading.Thread(target=self._run, args=(theirs,))
        self._splitter = FrameSplitter()
        self._frames: list[bytes] = []
        self._thread.start()
        self._ours.sendall(length_prefixed(msgspec.json.encode(constraint)))

    @staticmethod
    def _run(channel: socket.socket) -> None:
        with channel:
            _serve(channel, COMPILER)

    def ask(self, kind: bytes, *numbers: int) -> None:
        self._ours.sendall(length_prefixed(kind + b"".join(map(TOKEN.pack, numbers))))

    def next(self) -> bytes:
        while not self._frames:
            self._frames += self._splitter.feed(self._ours.recv(1 << 16))
        return self._frames.pop(0)

    def close(self) -> None:
        self._ours.close()
        self._thread.join(_PATIENCE_S)


@pytest.fixture(autouse=True)
def _without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers and limits are for a process of its own, not for that of the tests."""
    monkeypatch.setattr("moe2.agent.engine.structure.process._bound_memory", lambda: None)
    monkeypatch.setattr("signal.setitimer", lambda which, seconds: (0.0, 0.0))


def test_masks_along_guesses_are_those_that_come_after_them() -> None:
    """As far as the guesses may come; the answer itself does not go on."""
    served = _Served(CHOICE)
    assert allows(mask_of(served.next()), ord("b"))
    served.ask(ALONG, 7, *b"acdq")
    frame = served.next()
    assert frame[:1] == ALONG
    assert TOKEN.unpack_from(frame, 1) == (7,)
    answers = list(FrameSplitter().feed(frame[1 + TOKEN.size :]))
    assert [allows(mask_of(answer), token) for answer, token in zip(answers, b"cdx", strict=True)] == [True] * 3
    served.ask(TOKENS, *b"b")
    assert allows(mask_of(served.next()), ord("c"))
    served.close()


def test_a_text_that_has_to_come_is_said() -> None:
    """With the mask of where it comes, along guesses, too; it is empty where there is a choice."""
    served = _Served(CHOICE)
    assert text_of(served.next()) == b""
    served.ask(ALONG, 1, *b"bc")
    frame = served.next()
    assert [text_of(answer) for answer in FrameSplitter().feed(frame[1 + TOKEN.size :])] == [b"cd", b"d"]
    served.ask(TOKENS, *b"a")
    assert text_of(served.next()) == b"cd"
    served.ask(TOKENS, *b"cdx")
    assert text_of(served.next()) == b"e"
    served.ask(TOKENS, *b"e")
    assert served.next()[:1] in (MASK, COMPLETE)
    served.close()


def test_a_complete_answer_ends_the_masks() -> None:
    """What is guessed beyond the end has none."""
    served = _Served(Constraint(syntax="gbnf", source='root ::= "ab"'))
    assert served.next()[:1] == MASK
    served.ask(ALONG, 1, *b"abab")
    frame = served.next()
    answers = list(FrameSplitter().feed(frame[1 + TOKEN.size :]))
    assert len(answers) == 2
    served.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_guessed_the_masks_are_the_answer_s_own(seed: int) -> None:
    """Right, wrong and impossible guesses, of which the answers come in time or too late."""
    random, ready = Random(seed), queue.SimpleQueue[str]()
    constraint = Constraint(syntax="gbnf", source='root ::= ("ab" [a-c]? "c"){8,}')
    matchers = Matchers(lambda: BYTES, max_processes=1, wake=ready.put)
    try:
        own, matcher = COMPILER.compile(constraint), matchers.start("j", constraint)
        for _ in range(60):
            while not matcher.is_ready:
                ready.get(timeout=_PATIENCE_S)
            mask = own.mask()
            assert (matcher.mask(), matcher.forced()) == (mask, own.forced())
            allowed = [token for token in range(256) if allows(mask, token)]
            token = random.choice(allowed)
            if random.random() < 0.7:
                guess = [token if random.random() < 0.8 else ord("z")]
                matcher.look_ahead(guess + [random.choice(b"abc") for _ in range(random.randint(0, 20))])
            own.accept(token)
            matcher.accept(token)
    finally:
        matchers.close()
