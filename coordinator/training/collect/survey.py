"""The survey: it asks every expert every question over the coordinator's own API, and keeps the scored answers.

An expert that is away is left until it is back, and the others are asked meanwhile; only one that stays away for
minutes, or that keeps failing while it is there, is left alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from moe2.coordinator.training.collect.asking import (
    Asker,
    AskError,
    AwayError,
    BusyError,
    LiveExpert,
    UnreachableError,
)
from moe2.coordinator.training.collect.outfile import Answered, Outfile
from moe2.coordinator.training.collect.questions import Question

ATTEMPTS = 6
"""How often an expert is asked one question before that counts as a failure."""
GIVE_UP_AFTER = 10
"""Failures in a row after which an expert is left alone."""
AWAY_PATIENCE_S = 300.0
"""Seconds that an expert, or the coordinator, may be away."""
LOOK_EVERY_S = 1.0
"""Pause between two looks whether an expert is back."""


@dataclass
class Report:
    """What a survey of questions put to experts has come to."""

    answered: int = 0
    """Number of questions that an expert answered."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of failures by expert key and reason."""
    given_up: set[str] = field(default_factory=set)
    """Keys of experts that were no longer asked."""
    joules: float = 0.0
    """Joules of the answers, as far as they were measured."""
    unmeasured: int = 0
    """Number of answers whose joules nobody measured."""
    asking: int = 0
    """Number of questions that are being asked now."""
    dearest_j: float = 0.0
    """Joules of the dearest answer so far."""
    left: int = 0
    """Number of answers that were not asked for, because the survey was to stop before."""


async def survey(
    asker: Asker,
    questions: Sequence[Question],
    experts: Sequence[LiveExpert],
    outfile: Outfile,
    *,
    concurrency: int,
    progress: Callable[[], None],
    is_over: Callable[[Report], bool] = lambda _: False,
) -> Report:
    """Ask the experts all questions whose answers the file does not hold, `concurrency` requests at a time.

    progress: called once per answer or failure. is_over: asked before each question; once it says so no more are asked.
    Every answer is in the file when the survey ends, even by an error or by cancellation. A question that an expert
    failed to answer is asked again by the next survey. Raises UnreachableError where the coordinator stays away.
    """
    jobs = _Jobs(questions, experts, outfile)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(_work(asker, jobs, progress, is_over))
    except* UnreachableError as group:
        gone = group.exceptions[0]
    else:
        return jobs.report
    finally:
        jobs.keep_all()
    # Within the clause, Python before 3.11.4 would wrap it again.
    raise gone


def missing(questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile) -> int:
    """The number of answers that the file lacks. Raises OutfileError where it belongs to other questions."""
    return sum(
        outfile.answer(question, expert.key, expert.file_sha256) is None for question in questions for expert in experts
    )


async def _work(asker: Asker, jobs: _Jobs, progress: Callable[[], None], is_over: Callable[[Report], bool]) -> None:
    now_s = asyncio.get_running_loop().time
    while not jobs.is_done:
        if is_over(jobs.report):
            jobs.stop()
            return
        job = jobs.next()
        if job is None:
            if jobs.is_done:
                return
            # All that is left waits for experts that are away, or is being asked by other workers.
            await asyncio.sleep(LOOK_EVERY_S)
            await _look_who_is_back(asker, jobs, now_s(), progress)
            continue
        try:
            jobs.answered(job, await asker.ask(job.open.question, job.expert))
        except (AwayError, UnreachableError) as error:
            if not jobs.postponed(job, error, now_s()):
                progress()
            continue
        except BusyError as error:
            await asyncio.sleep(error.pause_s)
            if jobs.again(job, error):
                continue
        except AskError as error:
            jobs.failed(job, error)
        progress()


async def _look_who_is_back(asker: Asker, jobs: _Jobs, now_s: float, progress: Callable[[], None]) -> None:
    if not jobs.away:
        return
    try:
        live = {expert.key for expert in await asker.live_experts()}
    except UnreachableError as error:
        if jobs.away_for_s(now_s) >= AWAY_PATIENCE_S:
            raise error from None
        return
    for _ in range(jobs.seen(live, now_s)):
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


@dataclass
class _Job:
    """A question that one expert is to answer."""

    open: _Open
    expert: LiveExpert
    attempts: int = 0
    """How often it was asked in vain."""


class _Jobs:
    """What is left to ask; workers share it, and each pair of question and expert is handed out to one at a time.

    away: since when each expert is away, by key, on the clock of the caller.
    """

    def __init__(self, questions: Sequence[Question], experts: Sequence[LiveExpert], outfile: Outfile) -> None:
        self.report = Report()
        self.away: dict[str, float] = {}
        self._outfile = outfile
        self._open: dict[str, _Open] = {}
        self._in_a_row: Counter[str] = Counter()
        self._fresh = self._left(questions, experts)
        self._again: deque[_Job] = deque()
        self._is_exhausted = False

    @property
    def is_done(self) -> bool:
        """True where nothing is left to ask, and nothing that is being asked could come back."""
        return self._is_exhausted and not self._again and self.report.asking == 0

    def next(self) -> _Job | None:
        """The next job of an expert that is there; None where there is none now."""
        for _ in range(len(self._again)):
            job = self._again.popleft()
            if taken := self._taken(job):
                return taken
        for job in self._fresh:
            if taken := self._taken(job):
                return taken
        self._is_exhausted = True
        return None

    def answered(self, job: _Job, answer: Answered) -> None:
        job.open.answers[job.expert.key] = answer
        job.open.news = True
        report = self.report
        report.answered += 1
        joules = answer.joules_of_requests
        spent_j = sum(spent or 0.0 for spent in joules)
        report.joules += spent_j
        report.dearest_j = max(report.dearest_j, spent_j)
        report.unmeasured += any(spent is None for spent in joules)
        self._in_a_row[job.expert.key] = 0
        self._ended(job)

    def failed(self, job: _Job, error: AskError | UnreachableError) -> None:
        key = job.expert.key
        self.report.failures[key, error.message] += 1
        self._in_a_row[key] += 1
        if self._in_a_row[key] >= GIVE_UP_AFTER:
            self.report.given_up.add(key)
        self._ended(job)

    def again(self, job: _Job, error: AskError | UnreachableError) -> bool:
        """Ask this another time, after the others; False where it was asked often enough and counts as failed."""
        job.attempts += 1
        if job.attempts >= ATTEMPTS:
            self.failed(job, error)
            return False
        self.report.asking -= 1
        self._again.append(job)
        return True

    def postponed(self, job: _Job, error: AskError | UnreachableError, now_s: float) -> bool:
        """Ask this again when the expert is back; False where it was asked often enough and counts as failed."""
        if not self.again(job, error):
            return False
        self.away.setdefault(job.expert.key, now_s)
        return True

    def seen(self, live: set[str], now_s: float) -> int:
        """Take note of who is there; returns how many jobs have failed because their expert was away for too long."""
        for key in live & self.away.keys():
            del self.away[key]
        gone = {key for key, since_s in self.away.items() if now_s - since_s >= AWAY_PATIENCE_S}
        lost = [job for job in self._again if job.expert.key in gone]
        self._again = deque(job for job in self._again if job.expert.key not in gone)
        for job in lost:
            self.report.asking += 1
            self.failed(job, AwayError(f"Its agent was away for {AWAY_PATIENCE_S / 60:.0f} minutes."))
        self.report.given_up |= gone
        for key in gone:
            del self.away[key]
        return len(lost)

    def away_for_s(self, now_s: float) -> float:
        """Seconds since the first of those that are away left."""
        return now_s - min(self.away.values(), default=now_s)

    def stop(self) -> None:
        """Hand out nothing more, and count what is left."""
        self.report.left += len(self._again) + sum(1 for _ in self._fresh)
        self._again.clear()
        self._is_exhausted = True

    def keep_all(self) -> None:
        """Write the answers of questions that still wait for others."""
        for asked in tuple(self._open.values()):
            self._keep(asked)
        self._outfile.flush()

    def _left(self, questions: Sequence[Question], experts: Sequence[LiveExpert]) -> Iterator[_Job]:
        for question in questions:
            known = self._outfile.answers(question)
            lacking = [
                expert for expert in experts if self._outfile.answer(question, expert.key, expert.file_sha256) is None
            ]
            if not lacking:
                continue
            for expert in lacking:
                # What another file under the same name has said is not what this model says.
                known.pop(expert.key, None)
            asked = self._open[question.id] = _Open(question, known, len(lacking))
            for expert in lacking:
                yield _Job(asked, expert)

    def _taken(self, job: _Job) -> _Job | None:
        """The job, to be asked now; None where its expert is away, or left alone for good."""
        self.report.asking += 1
        if job.expert.key in self.report.given_up:
            self._ended(job)
            return None
        if job.expert.key in self.away:
            self.report.asking -= 1
            self._again.append(job)
            return None
        return job

    def _ended(self, job: _Job) -> None:
        self.report.asking -= 1
        job.open.waiting -= 1
        if job.open.waiting == 0:
            self._keep(job.open)

    def _keep(self, asked: _Open) -> None:
        self._open.pop(asked.question.id, None)
        if asked.news:
            self._outfile.put(asked.question, asked.answers)
