"""Jobs for hosts that sleep, held until their host is awake. PURE."""

from __future__ import annotations

from collections.abc import Callable, Collection

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import FromAgent, Job, JobFailed

MAX_HELD_JOBS = 256
"""Jobs that may wait for sleeping hosts, of all together."""


class HeldJobs:
    """Holds jobs by agent, and gives back those that cannot reach theirs, so that another expert is tried.

    on_message: takes the word about a job that its agent never got.
    """

    def __init__(self, on_message: Callable[[str, FromAgent], None]) -> None:
        self._on_message = on_message
        self._held: dict[str, list[Job]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents for which jobs are held."""
        return tuple(self._held)

    @property
    def has_room(self) -> bool:
        """Whether one more job may be held."""
        return sum(map(len, self._held.values())) < MAX_HELD_JOBS

    def hold(self, agent_id: str, job: Job) -> None:
        """Keep a job until its agent takes it."""
        self._held.setdefault(agent_id, []).append(job)

    def cancel(self, agent_id: str, job_id: str) -> bool:
        """Give a job back that is not wanted any more. Returns False where no job is held for this agent."""
        held = self._held.get(agent_id)
        if held is None:
            return False
        for job in [job for job in held if job.job_id == job_id]:
            held.remove(job)
            self.give_back(agent_id, job, "it was cancelled while its host was waking up")
        return True

    def take(self, agent_id: str, models: Collection[str]) -> list[Job]:
        """Return the jobs for these models, which are held no longer."""
        held = self._held.pop(agent_id, [])
        left = [job for job in held if job.model not in models]
        if left:
            self._held[agent_id] = left
        return [job for job in held if job.model in models]

    def give_up(self, agent_id: str, why: str, *, but: Collection[str] = ()) -> None:
        """Give back what is held for an agent, but not the jobs for some models. why: the end of a sentence."""
        for job in self._held.pop(agent_id, []):
            if job.model in but:
                self.hold(agent_id, job)
            else:
                self.give_back(agent_id, job, why)

    def forget(self, agent_id: str) -> None:
        """Hold nothing any more for an agent whose requests have been told that it is lost."""
        self._held.pop(agent_id, None)

    def give_back(self, agent_id: str, job: Job, why: str) -> None:
        """Fail a job that no agent ever got."""
        text = f"The expert did not get the request: {why}."
        self._on_message(agent_id, JobFailed(job_id=job.job_id, code=JobErrorCode.NOT_READY, message=text))
