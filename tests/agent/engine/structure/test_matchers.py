"""The process that compiles grammars, seen from the engine."""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.structure.constraint import Constraint, GrammarError
from moe2.agent.engine.structure.matchers import JobMatcher, Matchers
from moe2.common.errors import JobErrorCode
from tests.agent.engine.structure.following import BYTES, END, allows

_PATIENCE_S = 60.0
_SPIN = """
while True: pass
"""
_GROW = """
grown = []
while True: grown.append(bytearray(1 << 20))
"""
_ABORT = """
import os
os.abort()
"""


class _Pool:
    """Matchers, and the jobs whose matchers became ready."""

    def __init__(self, matchers: Matchers, ready: queue.SimpleQueue[str]) -> None:
        self.matchers = matchers
        self._ready = ready

    def start(self, source: str, *, job_id: str = "job") -> JobMatcher:
        return self.matchers.start(job_id, Constraint(syntax="gbnf", source=source))

    def wait(self, matcher: JobMatcher) -> JobMatcher:
        while not matcher.is_ready:
            self._ready.get(timeout=_PATIENCE_S)
        return matcher

    def next_ready(self) -> str:
        return self._ready.get(timeout=_PATIENCE_S)


@contextmanager
def _pool(evil: str = "", *, max_processes: int = 4) -> Iterator[_Pool]:
    """evil: what compiling a grammar with the word "evil" does instead."""
    argv = [
        sys.executable,
        "-c",
        "from moe2.agent.engine.structure.matcher import Compiler\n"
        "from moe2.agent.engine.structure.process import main\n"
        "compile = Compiler.compile\n"
        "def instead(self, constraint):\n"
        "    if 'evil' in constraint.source:\n"
        "        exec(EVIL)\n"
        "    return compile(self, constraint)\n"
        f"EVIL = {evil!r}\n"
        "Compiler.compile = instead\n"
        "main()",
    ]
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()
    matchers = Matchers(lambda: BYTES, max_processes=max_processes, wake=ready.put, argv=argv)
    try:
        yield _Pool(matchers, ready)
    finally:
        matchers.close()


def test_an_answer_is_followed_to_its_end() -> None:
    """Mask by mask, and then nothing more may come."""
    with _pool() as pool:
        matcher = pool.wait(pool.start('root ::= "ab"'))
        for byte in b"ab":
            mask = pool.wait(matcher).mask()
            assert [token for token in range(END + 1) if allows(mask, token)] == [byte]
            matcher.accept(byte)
        assert pool.wait(matcher).mask() is None


@pytest.mark.slow
@pytest.mark.parametrize("evil", [_SPIN, _GROW, _ABORT], ids=["endless", "huge", "crash"])
def test_a_grammar_beyond_its_bounds_costs_itself_alone(evil: str) -> None:
    """Its process is ended and the error blames it; another job's matcher goes on, and new ones start."""
    with _pool(evil) as pool:
        bystander = pool.wait(pool.start('root ::= "ab"', job_id="bystander"))
        with pytest.raises(GrammarError, match=r"more than 0\.5 s of computing or 256 MiB"):
            pool.wait(pool.start('root ::= "evil"', job_id="evil")).mask()
        bystander.accept(ord("a"))
        assert allows(pool.wait(bystander).mask(), ord("b"))
        assert allows(pool.wait(pool.start('root ::= "c"', job_id="after")).mask(), ord("c"))


def test_a_refusal_comes_with_its_text() -> None:
    """What the compiler says reaches the engine."""
    with _pool() as pool, pytest.raises(GrammarError, match="line 1, column 11: The range is empty"):
        pool.wait(pool.start("root ::= [z-a]")).mask()


def test_jobs_beyond_the_bound_wait_for_others_to_end() -> None:
    """No more processes than asked for, however many jobs are queued."""
    with _pool(max_processes=1) as pool:
        first = pool.wait(pool.start('root ::= "a"', job_id="first"))
        second = pool.start('root ::= "b"', job_id="second")
        assert not second.is_ready
        first.close()
        assert allows(pool.wait(second).mask(), ord("b"))


def test_a_job_that_ends_before_its_turn_is_forgotten() -> None:
    """The next one in line is served."""
    with _pool(max_processes=1) as pool:
        first = pool.wait(pool.start('root ::= "a"', job_id="first"))
        pool.start('root ::= "b"', job_id="second").close()
        third = pool.start('root ::= "c"', job_id="third")
        first.close()
        assert pool.wait(third).is_ready


@pytest.mark.slow
def test_a_process_that_died_is_started_again() -> None:
    """Matchers that it had forked go on without it."""
    with _pool() as pool:
        matcher = pool.wait(pool.start('root ::= "ab"'))
        process = pool.matchers._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        matcher.accept(ord("a"))
        assert allows(pool.wait(matcher).mask(), ord("b"))
        assert allows(pool.wait(pool.start('root ::= "c"', job_id="after")).mask(), ord("c"))


def test_a_job_whose_process_died_is_told_whatever_it_does_next() -> None:
    """Also where it goes on before it looks at the error."""
    with _pool(_ABORT) as pool:
        matcher = pool.wait(pool.start('root ::= "evil"'))
        matcher.accept(ord("a"))
        with pytest.raises(GrammarError, match="more than"):
            pool.wait(matcher).mask()


def test_a_process_that_cannot_be_started_is_not_the_requests_fault() -> None:
    """The job fails with a code that lets another agent try."""
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()
    matchers = Matchers(lambda: BYTES, max_processes=1, wake=ready.put, argv=["/nonexistent"])
    try:
        pool = _Pool(matchers, ready)
        with pytest.raises(RequestError) as failed:
            pool.wait(pool.start('root ::= "a"')).mask()
        assert failed.value.code == JobErrorCode.INTERNAL
    finally:
        matchers.close()
