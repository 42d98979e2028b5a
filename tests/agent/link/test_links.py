"""Several links at once: each job and each command belongs to the link that it came by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from moe2.agent.link.dialing import MAX_PAUSE_S, Dialer
from moe2.agent.link.link import Link
from moe2.agent.link.links import Links
from moe2.agent.settings import CoordinatorSection
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import (
    CancelJob,
    CommandAnswer,
    CommandOutcome,
    JobFailed,
    JobPieces,
    Report,
    Submit,
    Suspend,
    TokenPiece,
    Welcome,
)
from moe2.common.link.prompts import TextPrompt
from moe2.common.status import LinkState, LinkStatus


class FakeLink:
    """A link whose other end the test plays."""

    def __init__(self, url: str, heard: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self.url, self.heard, self.lost = url, heard, lost
        self.sent: list[Any] = []
        self.is_open = True

    @property
    def status(self) -> LinkStatus:
        return LinkStatus(url=self.url, state=LinkState.CONNECTED if self.is_open else LinkState.WAITING)

    def send(self, message: Any) -> None:
        if self.is_open:
            self.sent.append(message)

    def send_tokens(self, jobs: Any) -> None:
        self.sent.append(jobs)


class Bench:
    """Links to the coordinators a and b, and what the agent hears of them."""

    def __init__(self) -> None:
        self.made: list[FakeLink] = []
        self.heard: list[Any] = []
        self.lost: list[tuple[frozenset[str], bool]] = []

        def make(url: str, opened: Callable[[Welcome], None], heard: Any, lost: Any) -> Link:
            self.made.append(FakeLink(url, heard, lost))
            return cast(Link, self.made[-1])

        self.links = Links(
            ("ws://a", "ws://b"),
            make,
            on_opened=lambda _: None,
            on_message=self.heard.append,
            on_lost=lambda jobs, others: self.lost.append((jobs, others)),
        )
        self.a, self.b = self.made


@pytest.fixture
def bench() -> Bench:
    return Bench()


def job(job_id: str) -> Submit:
    return Submit(job_id=job_id, request_id=job_id, model="m", prompt=TextPrompt(text="p"))


def pieces(job_id: str) -> JobPieces:
    return JobPieces(job_id, (TokenPiece("x"),))


def failed(job_id: str) -> JobFailed:
    return JobFailed(job_id=job_id, code=JobErrorCode.INTERNAL, message="m")


def test_words_about_a_job_go_to_its_coordinator(bench: Bench) -> None:
    """Tokens and the end of each job are sent on the link that it came by, and on no other."""
    bench.a.heard(job("j1"))
    bench.b.heard(job("j2"))
    bench.links.send_tokens((pieces("j1"), pieces("j2")))
    bench.links.send(failed("j2"))
    assert bench.a.sent == [(pieces("j1"),)]
    assert bench.b.sent == [(pieces("j2"),), failed("j2")]


def test_a_lost_link_takes_its_own_jobs(bench: Bench) -> None:
    """The loss of one link names its jobs alone, and says that another link is open."""
    bench.a.heard(job("j1"))
    bench.b.heard(job("j2"))
    bench.a.is_open = False
    bench.a.lost()
    assert bench.lost == [(frozenset({"j1"}), True)]
    bench.b.is_open = False
    bench.b.lost()
    assert bench.lost[1] == (frozenset({"j2"}), False)


def test_nobody_can_speak_of_anothers_job(bench: Bench) -> None:
    """A cancellation by the wrong coordinator is ignored, and its job of a used id is refused to it alone."""
    bench.a.heard(job("j1"))
    bench.b.heard(CancelJob(job_id="j1"))
    bench.b.heard(job("j1"))
    assert bench.heard == [job("j1")]
    [refused] = bench.b.sent
    assert (refused.job_id, refused.code) == ("j1", JobErrorCode.INVALID_REQUEST)
    assert bench.a.sent == []


def test_an_id_is_free_again_once_its_job_has_ended(bench: Bench) -> None:
    """After a job's last word its id may come from the other coordinator."""
    bench.a.heard(job("j1"))
    bench.links.send(failed("j1"))
    bench.b.heard(job("j1"))
    assert len(bench.heard) == 2


def test_a_commands_answer_goes_to_who_gave_it_or_to_who_is_left(bench: Bench) -> None:
    """The answer to a command goes to its coordinator; where that one is gone, to the other."""
    for command_id in ("c1", "c2"):
        bench.b.heard(Suspend(command_id=command_id))
    answers = [CommandAnswer(command_id=one, outcome=CommandOutcome.DONE) for one in ("c1", "c2")]
    bench.links.send(answers[0])
    bench.b.is_open = False
    bench.links.send(answers[1])
    assert (bench.b.sent, bench.a.sent) == ([answers[0]], [answers[1]])


def test_each_coordinator_is_told_of_the_others_jobs(bench: Bench) -> None:
    """A report is made for each coordinator, which learns which jobs are another's."""
    bench.a.heard(job("j1"))
    told: list[bool] = []

    def make(is_others: Callable[[str], bool]) -> Report:
        told.append(is_others("j1"))
        return cast(Report, len(told))

    bench.links.send_each(make)
    assert told == [False, True]


def test_the_status_is_that_of_a_link_that_is_open(bench: Bench) -> None:
    """The best link is the first one that is open; all of them are listed."""
    bench.a.is_open = False
    assert bench.links.best_status.url == "ws://b"
    assert [one.url for one in bench.links.status] == ["ws://a", "ws://b"]


def test_an_agent_of_several_coordinators_dials_often() -> None:
    """One that comes back has its agents within seconds; an agent of one coordinator may pause as long as is set."""

    def longest_s(**addresses: Any) -> float:
        dialer = Dialer(
            CoordinatorSection.model_validate(addresses), cast(Any, None), agent_id="a", agent_name="a", hostname=""
        )
        backoff = dialer.backoff()
        return max(backoff.next_delay_s() for _ in range(30))

    assert longest_s(urls=["ws://one:8081", "ws://two:8081"]) <= MAX_PAUSE_S < longest_s(url="ws://one:8081")
