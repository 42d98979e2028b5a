"""The survey: it asks every expert every question over the coordinator's own API, and keeps the scored answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.link.messages import ExpertState
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.training.collect.outfile import Answered, Outfile
from moe2.coordinator.training.collect.questions import Question
from moe2.coordinator.training.collect.scoring import INSTRUCTIONS, score

ATTEMPTS = 6
MAX_PAUSE_S = 30.0
GIVE_UP_AFTER = 10
"""Failures in a row after which an expert is left alone."""


class AskError(Moe2Error):
    """An expert did not answer a question."""


class UnreachableError(Moe2Error):
    """The coordinator does not answer."""


@dataclass(frozen=True)
class LiveExpert:
    """An expert that can be asked: it is ready, or loads when asked."""

    key: str
    model: str


@dataclass
class Report:
    """The outcome of a survey."""

    answered: int = 0
    """Number of questions that an expert answered."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of failures by expert key and reason."""
    given_up: set[str] = field(default_factory=set)
    """Keys of experts that were no longer asked."""


class Asker:
    """A client of one coordinator.

    session: its base URL is the coordinator's. max_tokens: limit on the length of an answer.
    """

    def __init__(self, session: aiohttp.ClientSession, *, max_tokens: int) -> None:
        self._session = session
        self._max_tokens = max_tokens

    async def live_experts(self) -> tuple[LiveExpert, ...]:
        """All experts that can be asked, in the order of their agents' ids. Raises UnreachableError."""
        status, content, _ = await self._send("GET", "/v1/moe2/fleet")
        if status != 200:
            raise UnreachableError(f"The coordinator's fleet cannot be read: {_error_text(content, status)}")
        try:
            fleet = msgspec.json.decode(content, type=CoordinatorStatus)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"What answers there is not a moe2 coordinator ({error}).") from error
        return tuple(
            LiveExpert(f"{agent.agent_id}/{expert.model}", expert.model)
            for agent in sorted(fleet.agents, key=lambda agent: agent.agent_id)
            if agent.connected and not agent.draining
            for expert in agent.experts
            # A cold expert loads for its first question.
            if expert.state in (ExpertState.READY, ExpertState.COLD)
        )

    async def ask(self, question: Question, expert: LiveExpert) -> Answered:
        """Ask an expert a question, again while it is busy. Raises AskError and UnreachableError."""
        body = msgspec.json.encode(
            {
                "model": expert.key,
                "messages": [
                    {"role": "system", "content": INSTRUCTIONS[question.metric]},
                    {"role": "user", "content": question.asked},
                ],
                "temperature": 0,
                "seed": 0,
                "max_tokens": self._max_tokens,
            }
        )
        for attempt in range(1, ATTEMPTS + 1):
            status, content, retry_after = await self._send("POST", "/v1/chat/completions", body)
            if status == 200:
                return _answered(question, expert, content)
            if status not in (429, 503) or attempt == ATTEMPTS:
                raise AskError(_error_text(content, status))
            await asyncio.sleep(min(MAX_PAUSE_S, float(retry_after or 1)))
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, method: str, route: str, body: bytes | None = None) -> tuple[int, bytes, str | None]:
        try:
            async with self._session.request(method, route, data=body) as response:
                return response.status, await response.read(), response.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(
                f"The coordinator does not answer: {error or type(error).__name__}.",
                remedy="Start it, or name its API with --url.",
            ) from error


async def survey(
    asker: Asker,
    questions: Sequence[Question],
    experts: Sequence[LiveExpert],
    outfile: Outfile,
    *,
    concurrency: int,
    progress: Callable[[], None],
) -> Report:
    """Ask the experts all questions whose answers the file does not hold, `concurrency` requests at a time.

    progress: called once per answer or failure. Every answer is in the file when the survey ends, even by an error or
    by cancellation. A question that an expert failed to answer is asked again by the next survey. Raises
    UnreachableError where the coordinator does not answer.
    """
    jobs = _Jobs(questions, experts, outfile)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(_work(asker, jobs, progress))
    except* UnreachableError as group:
        raise group.exceptions[0] from None
    finally:
        jobs.keep_all()
    return jobs.report


def missing(questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile) -> int:
    """The number of answers that the file lacks. Raises OutfileError where it belongs to other questions."""
    return sum(expert.key not in outfile.answers(question) for question in questions for expert in experts)


async def _work(asker: Asker, jobs: _Jobs, progress: Callable[[], None]) -> None:
    for open_question, expert in jobs:
        try:
            jobs.answered(open_question, expert, await asker.ask(open_question.question, expert))
        except AskError as error:
            jobs.failed(open_question, expert, error)
        progress()


@dataclass
class _Open:
    """A question that still waits for answers."""

    question: Question
    answers: dict[str, Answered]
    """Answers so far by expert key."""
    waiting: int
    """Number of experts that have not answered yet."""
    news: bool = False
    """True where the file lacks one of the answers."""


class _Jobs:
    """The pairs of question and expert that are left to ask; workers share it, and each pair is handed out once."""

    def __init__(self, questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile) -> None:
        self.report = Report()
        self._outfile = outfile
        self._open: dict[str, _Open] = {}
        self._in_a_row: Counter[str] = Counter()
        self._pairs = self._left(questions, experts)

    def __iter__(self) -> Iterator[tuple[_Open, LiveExpert]]:
        return self._pairs

    def answered(self, asked: _Open, expert: LiveExpert, answer: Answered) -> None:
        asked.answers[expert.key] = answer
        asked.news = True
        self.report.answered += 1
        self._in_a_row[expert.key] = 0
        self._ended(asked)

    def failed(self, asked: _Open, expert: LiveExpert, error: AskError) -> None:
        self.report.failures[expert.key, error.message] += 1
        self._in_a_row[expert.key] += 1
        if self._in_a_row[expert.key] == GIVE_UP_AFTER:
            self.report.given_up.add(expert.key)
        self._ended(asked)

    def keep_all(self) -> None:
        """Write the answers of questions that still wait for others."""
        for asked in tuple(self._open.values()):
            self._keep(asked)
        self._outfile.flush()

    def _left(self, questions: Sequence[Question], experts: Sequence[LiveExpert]) -> Iterator[tuple[_Open, LiveExpert]]:
        for question in questions:
            known = self._outfile.answers(question)
            lacking = [expert for expert in experts if expert.key not in known]
            if not lacking:
                continue
            asked = self._open[question.id] = _Open(question, known, len(lacking))
            for expert in lacking:
                if expert.key in self.report.given_up:
                    self._ended(asked)
                else:
                    yield asked, expert

    def _ended(self, asked: _Open) -> None:
        asked.waiting -= 1
        if asked.waiting == 0:
            self._keep(asked)

    def _keep(self, asked: _Open) -> None:
        self._open.pop(asked.question.id, None)
        if asked.news:
            self._outfile.put(asked.question, asked.answers)


def _answered(question: Question, expert: LiveExpert, content: bytes) -> Answered:
    """The scored answer in a completion's body. Raises AskError where it is not a completion of moe2."""
    try:
        body: dict[str, Any] = msgspec.json.decode(content)
        text = str(body["choices"][0]["message"]["content"] or "")
        receipt = body["moe2"]
        return Answered(
            model=expert.model,
            score=score(question.metric, text, question.gold, question.choices),
            chars=len(text),
            tokens=body["usage"]["completion_tokens"],
            seconds=receipt["seconds"]["total"],
            joules=receipt["energy"]["joules"],
            energy_quality=receipt["energy"]["quality"],
        )
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise AskError(f"The answer is not understood ({type(error).__name__}: {error}).") from error


def _error_text(content: bytes, status: int) -> str:
    """The message in an OpenAI-shaped error's body with its HTTP status, or the status alone."""
    try:
        return f"{msgspec.json.decode(content)['error']['message']} (HTTP {status})"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"HTTP {status}"
