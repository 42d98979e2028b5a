"""The joules of jobs: what engines say goes into the host's account, and what becomes final goes to the core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.engine import protocol
from moe2.agent.jobs.core import AgentCore
from moe2.agent.jobs.events import EnergySettled, Event, OwnWorkSpent
from moe2.agent.observing.metrics import AgentMetrics
from moe2.common.energy import NEVER_RAN, Energy
from moe2.common.link.messages import NextTokens, Tokens
from moe2.common.standby import Cause

# A job that has ended waits for a sensor reading after its end; this is how often it is looked for.
SETTLE_EVERY_S = 0.01
CLOSE_ACCOUNTS_EVERY_S = 0.5
WATCH_OWN_WORK_EVERY_S = 0.1


class Settlement:
    """Enters jobs into the account of the host's monitor, and tells the core what each has cost.

    monitor: another one takes its place once the sensors are known. dispatch: tells the core.
    """

    def __init__(
        self, core: AgentCore, monitor: HostMonitor, metrics: AgentMetrics, dispatch: Callable[[Event], None]
    ) -> None:
        self._core = core
        self.monitor = monitor
        self._metrics = metrics
        self._dispatch = dispatch
        self._unsettled = asyncio.Event()

    def engine_spoke(self, engine: str, event: protocol.Event) -> None:
        """Enters what an engine has done for its jobs."""
        now_s = time.monotonic()
        account = self.monitor.account
        match event:
            case protocol.Started(job_id=job_id):
                weight = self._core.expert_of(engine).token_weight
                to_prefill = event.prompt_tokens - event.cached_tokens + event.branch_tokens
                cause = Cause.OTHER if self._core.is_own(job_id) else None
                account.request_started(job_id, to_prefill, now_s, weight, cause, model=engine)
            case protocol.Guessed(jobs=guesses):
                for guessed in guesses:
                    account.tokens_guessed(guessed.job_id, guessed.drafted, guessed.accepted, now_s)
            case Tokens(jobs=jobs):
                for job in jobs:
                    account.tokens_decoded(job.job_id, len(job.pieces), now_s)
            case NextTokens(job_id=job_id):
                # As where it draws by itself, the first token comes with the prompt.
                account.tokens_decoded(job_id, 1, now_s)

    def job_ended(self, job_id: str) -> None:
        """Closes a job's account; one that never ran has none."""
        if not self.monitor.account.request_ended(job_id, time.monotonic()):
            self._settled(job_id, NEVER_RAN)
            return
        self.monitor.sampler.read_now()
        if not self._settle():
            self._unsettled.set()

    async def run(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Hands out energy as it becomes final, until cancelled. watch: is called between, at least twice a second."""
        while True:
            with suppress(TimeoutError):
                pause_s = WATCH_OWN_WORK_EVERY_S if self._core.measuring.job_id else CLOSE_ACCOUNTS_EVERY_S
                async with asyncio.timeout(pause_s):
                    await self._unsettled.wait()
            self._unsettled.clear()
            await watch()
            if (own_j := self.monitor.account.own_work_j(time.monotonic())) is not None:
                self._dispatch(OwnWorkSpent(own_j))
            # The accounts also want to be closed regularly while nothing ends.
            while not self._settle():
                await asyncio.sleep(SETTLE_EVERY_S)
                self.monitor.sampler.drain()

    def _settle(self) -> bool:
        """Hands out the energy that has become final; True if nothing is left to wait for."""
        for job_id, energy in self.monitor.settle().items():
            self._settled(job_id, energy)
        return not self.monitor.account.has_unsettled

    def _settled(self, job_id: str, energy: Energy) -> None:
        job = self._core.jobs.get(job_id)
        if job and job.ending and not job.is_own:
            self._metrics.job_ended(job.order.model, job.ending, energy, abandoned=job.abandoned)
        self._dispatch(EnergySettled(job_id, energy))
