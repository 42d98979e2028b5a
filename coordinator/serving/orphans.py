"""Jobs that agents still work on though nobody here knows them: each is told to stop, once. PURE."""

from __future__ import annotations

from collections import OrderedDict

MAX_REMEMBERED = 4096
"""Orphans of all agents that are remembered. One that is forgotten is only told to stop again."""


class Orphans:
    """Remembers which agents have been told to stop which jobs.

    A job is an orphan where its request is over without a word from its agent: a cancellation that was not confirmed in
    time, or a coordinator that has been restarted.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def heard(self, agent_id: str, job_id: str) -> bool:
        """Take in that an agent works on a job that nobody knows; True if it has to be told to stop."""
        if (agent_id, job_id) in self._told:
            return False
        self._told[agent_id, job_id] = None
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        return True

    def ended(self, agent_id: str, job_id: str) -> None:
        """Forget a job that its agent works on no more."""
        self._told.pop((agent_id, job_id), None)

    def forget(self, agent_id: str) -> None:
        """Forget what an agent was told: its link is gone, and it may not have heard it."""
        for told in [told for told in self._told if told[0] == agent_id]:
            del self._told[told]
