"""The reports of this agent to its coordinators: when they are sent, and what each is told of the others' load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from moe2.agent.link.links import Links
from moe2.common.link.messages import Report
from moe2.common.status import AgentStatus

REPORT_PAUSE_S = 0.1
"""Changes that come within this time share a report."""
UNWELCOMED_REPORT_S = 5.0
"""The steady rate until a coordinator has said which it wants."""
BEAT_S = 0.05
"""Steady reports fall on multiples of this by the host's clock. Those of hosts whose clocks agree come together so, and
wake a coordinator that has nothing else to do ten times less often: of what an idle fleet costs, waking is half."""


def until_report_s(every_s: float, now_unix_s: float) -> float:
    """Seconds until the next steady report: `every_s`, and at most half a beat, or a quarter of it, more or less."""
    beat_s = min(BEAT_S, every_s / 2)
    return round((now_unix_s + every_s) / beat_s) * beat_s - now_unix_s


class Reporter:
    """Reports what changed, soon but not for each change alone, and at the steady rate.

    status: tells the present state. n_jobs: counts a model's jobs, of those that a predicate of their id says yes to.
    """

    def __init__(
        self, link: Links, status: Callable[[], AgentStatus], n_jobs: Callable[[str, Callable[[str], bool]], int]
    ) -> None:
        self._link = link
        self._status = status
        self._n_jobs = n_jobs
        self._changed = asyncio.Event()
        self._seq = 0
        self.every_s = UNWELCOMED_REPORT_S

    def changed(self) -> None:
        """Have a report sent soon, as something has changed."""
        self._changed.set()

    def send(self) -> None:
        """Sends a report at once, to every coordinator whose link is open."""
        if not self._link.is_open:
            return
        self._seq += 1
        status = self._status()
        report = Report(
            seq=self._seq,
            host=status.host,
            experts=status.experts,
            sensors=status.sensors,
            warnings=status.warnings,
            draining=status.draining,
            standby=status.standby,
            models=status.models,
        )
        self._link.send_each(lambda is_others: self._told(report, is_others))

    def _told(self, report: Report, is_others: Callable[[str], bool]) -> Report:
        """The report for one coordinator, with the load that the others bring."""
        loads = [self._n_jobs(one.model, is_others) for one in report.experts]
        if not any(loads):
            return report
        experts = zip(report.experts, loads, strict=True)
        told = tuple(msgspec.structs.replace(one, elsewhere=load) for one, load in experts)
        return msgspec.structs.replace(report, experts=told)

    async def run(self) -> None:
        """Send reports to the coordinator, in its rhythm and after changes, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(until_report_s(self.every_s, time.time())):
                    await self._changed.wait()
                await asyncio.sleep(REPORT_PAUSE_S)
            self._changed.clear()
            self.send()
