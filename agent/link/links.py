"""The links to all coordinators of the fleet: each job and each command belongs to the link that it came by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from moe2.agent.link.link import Link, LinkTiming
from moe2.common.backoff import Backoff
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import (
    CancelJob,
    CommandAnswer,
    EmbedJob,
    FollowJob,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    ScoreJob,
    Submit,
    TakeToken,
    Welcome,
)
from moe2.common.link.session import JobMessage
from moe2.common.status import LinkState, LinkStatus

log = structlog.get_logger()

MAX_COMMANDS = 256
"""Commands whose link is remembered; the oldest is forgotten first."""
_JOBS = (Submit, ScoreJob, FollowJob, EmbedJob)
_LAST_WORDS = (JobDone, JobFailed, JobScored)

MakeLink = Callable[[str, Callable[[Welcome], None], Callable[[JobMessage], None], Callable[[], None]], Link]
"""Makes the link to one address, with what it calls: on_opened, on_message, on_lost."""


class Links:
    """One link for each address, and whose jobs are whose.

    on_opened, on_message: as a link calls them. on_lost: called with the ids of the jobs that a lost link had, and
    whether another link is open.
    """

    def __init__(
        self,
        urls: Sequence[str],
        make: MakeLink,
        *,
        on_opened: Callable[[Welcome], None],
        on_message: Callable[[JobMessage], None],
        on_lost: Callable[[frozenset[str], bool], None],
    ) -> None:
        self._on_opened, self._on_message, self._on_lost = on_opened, on_message, on_lost
        self._owners: dict[str, Link] = {}
        """The link of each job that has not ended."""
        self._commanders: dict[str, Link] = {}
        self._links: list[Link] = []
        for url in urls:
            self._links.append(self._made(url, make))

    @property
    def status(self) -> tuple[LinkStatus, ...]:
        """The state of every link, in the order of the addresses."""
        return tuple(link.status for link in self._links)

    @property
    def best_status(self) -> LinkStatus:
        """The state of the first link that is open; of the first one where none is."""
        states = self.status
        return next((one for one in states if one.state is LinkState.CONNECTED), states[0])

    @property
    def is_open(self) -> bool:
        """Whether any coordinator can be told something now."""
        return any(link.is_open for link in self._links)

    def use(self, timing: LinkTiming, backoff: Callable[[], Backoff] | None) -> None:
        """Goes on with other settings from each link's next attempt on. backoff: makes new ones; None to keep them."""
        for link in self._links:
            link.timing = timing
            if backoff is not None:
                link.backoff = backoff()

    def send(self, message: JobMessage) -> None:
        """Sends a word about a job, or a command's answer, to the coordinator that it is for.

        It is dropped where that one is not connected; a command's answer then goes to any other.
        """
        if isinstance(message, CommandAnswer):
            commander = self._commanders.pop(message.command_id, None)
            open_links = [link for link in (commander, *self._links) if link is not None and link.is_open]
            for link in open_links[:1]:
                link.send(message)
            return
        job_id = getattr(message, "job_id", None)
        if job_id is None:
            for link in self._links:
                link.send(message)
            return
        owner = self._owners.pop(job_id, None) if isinstance(message, _LAST_WORDS) else self._owners.get(job_id)
        if owner is not None:
            owner.send(message)

    def send_each(self, make: Callable[[Callable[[str], bool]], JobMessage]) -> None:
        """Sends each coordinator a message of its own. make: is given what tells whether a job is another's."""
        for link in self._links:
            if link.is_open:
                link.send(make(partial(self._is_others, link)))

    def send_tokens(self, jobs: tuple[JobPieces, ...]) -> None:
        """Sends tokens to the coordinators of their jobs."""
        if len(self._links) == 1:
            self._links[0].send_tokens(jobs)
            return
        by_owner: dict[int, tuple[Link, list[JobPieces]]] = {}
        for job in jobs:
            if (owner := self._owners.get(job.job_id)) is not None:
                by_owner.setdefault(id(owner), (owner, []))[1].append(job)
        for owner, parts in by_owner.values():
            owner.send_tokens(tuple(parts))

    def close(self, reason: str) -> None:
        """Says goodbye on every link once everything queued has been sent; none is opened again."""
        for link in self._links:
            link.close(reason)

    async def leave(self, reason: str) -> None:
        """Says goodbye on every link; returns when it is said. Stays away until `come_back`."""
        await asyncio.gather(*(link.leave(reason) for link in self._links))

    def come_back(self) -> None:
        """Connects every link again at once."""
        for link in self._links:
            link.come_back()

    async def run(self) -> None:
        """Keeps all links alive. Returns only after `close()`."""
        async with asyncio.TaskGroup() as tasks:
            for link in self._links:
                tasks.create_task(link.run())

    def _is_others(self, link: Link, job_id: str) -> bool:
        return self._owners.get(job_id, link) is not link

    def _made(self, url: str, make: MakeLink) -> Link:
        def heard(message: JobMessage) -> None:
            self._heard(link, message)

        link = make(url, self._on_opened, heard, lambda: self._lost(link))
        return link

    def _heard(self, link: Link, message: JobMessage) -> None:
        """Takes in a message. Nobody can speak of another coordinator's job."""
        if (command_id := getattr(message, "command_id", None)) is not None:
            self._commanders[command_id] = link
            while len(self._commanders) > MAX_COMMANDS:
                del self._commanders[next(iter(self._commanders))]
        elif isinstance(message, (*_JOBS, TakeToken, CancelJob)):
            owner = self._owners.get(message.job_id)
            if owner is not None and owner is not link:
                log.warning("foreign_job_named", job_id=message.job_id, op=type(message).__name__)
                if isinstance(message, _JOBS):
                    text = "This job id is already in use by another coordinator."
                    link.send(JobFailed(job_id=message.job_id, code=JobErrorCode.INVALID_REQUEST, message=text))
                return
            if isinstance(message, _JOBS):
                self._owners[message.job_id] = link
        self._on_message(message)

    def _lost(self, link: Link) -> None:
        jobs = frozenset(job_id for job_id, owner in self._owners.items() if owner is link)
        for job_id in jobs:
            del self._owners[job_id]
        self._on_lost(jobs, any(other.is_open for other in self._links if other is not link))
