"""Jobs from their order to their end: queue, slot, cancellation, deadline, energy. PURE.

A job waits in its expert's bounded queue until the engine has a free slot, runs, and ends exactly once: done, failed,
or (when the link to the coordinator broke and nobody can be told) abandoned. Its end waits for the energy account, so
that the usage that is sent carries the job's joules.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from moe2.agent.engine import protocol
from moe2.agent.jobs.effects import (
    Effect,
    KillEngine,
    ReportChange,
    SendToCoordinator,
    SendToEngine,
    SendTokens,
    SettleEnergy,
)
from moe2.agent.jobs.expert import Expert, Job, Phase, reasoning_part, timing_of, usage_of, usage_of_finished
from moe2.common.energy import Energy
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import (
    CancelJob,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    JobStarted,
    JobUsage,
    NextTokens,
    Submit,
    TakeToken,
    Vectors,
)
from moe2.common.link.messages import Job as Order
from moe2.common.link.reports import ExpertState


class JobDesk:
    """All jobs of one agent, by id. stuck_s: an engine that does not stop a job within this time is stuck."""

    def __init__(self, *, stuck_s: float) -> None:
        self._stuck_s = stuck_s
        self.jobs: dict[str, Job] = {}
        self.n_finished = 0
        self.n_failed = 0

    @property
    def next_deadline_s(self) -> float | None:
        """When the next job's time is up, or an engine counts as stuck."""
        jobs = [job for job in self.jobs.values() if job.phase is not Phase.SETTLING]
        moments = (*(job.deadline_s for job in jobs), *(job.stop_by_s for job in jobs))
        return min((at_s for at_s in moments if at_s is not None), default=None)

    def is_own(self, job_id: str) -> bool:
        """Whether a job is the host's own, to measure itself."""
        job = self.jobs.get(job_id)
        return job is not None and job.is_own

    def enter(self, order: Order, expert: Expert, now_s: float) -> Effect | None:
        """Puts a job into its expert's queue. Returns the refusal if slots and queue are taken."""
        section = expert.section
        has_slot = expert.n_requests + len(expert.queue) < section.slots
        if not has_slot and expert.waiting >= section.max_queue:
            text = f"All {section.slots} slots and {section.max_queue} queue places are taken."
            return refusal_of(order, JobErrorCode.QUEUE_FULL, text)
        self.jobs[order.job_id] = Job(
            order=order,
            expert=expert,
            received_s=now_s,
            deadline_s=None if order.deadline_s is None else now_s + order.deadline_s,
            occupancy=min(expert.n_requests + 1, section.slots),
            queued_ahead=None if has_slot else expert.waiting,
        )
        expert.queue.append(order.job_id)
        return None

    def enter_own(self, order: Submit, expert: Expert, now_s: float) -> None:
        """Puts a job into the queue by which an idle expert measures itself. Nobody is told of it."""
        self.jobs[order.job_id] = Job(
            order=order, expert=expert, received_s=now_s, deadline_s=None, abandoned=True, is_own=True
        )
        expert.own.add(order.job_id)
        expert.queue.append(order.job_id)

    def fill_slots(self, expert: Expert, now_s: float) -> list[Effect]:
        """Gives the free slots of an expert that is ready to its waiting jobs, in the order they came."""
        effects: list[Effect] = []
        is_open = expert.state is ExpertState.READY and not expert.held
        while expert.queue and is_open and len(expert.active) < expert.section.slots:
            job = self.jobs[expert.queue.popleft()]
            job.phase, job.started_s = Phase.RUNNING, now_s
            order = job.order
            expert.active.add(order.job_id)
            expert.occupancy.count(len(expert.active), now_s)
            job.occupancy_at_start = expert.occupancy.until(now_s)
            effects.append(SendToEngine(expert.engine, order))
        return effects

    def cancel(self, job: Job, now_s: float) -> list[Effect]:
        """Stops a job in whatever phase it is. A queued one ends here, a running one when the engine confirms."""
        match job.phase:
            case Phase.QUEUED:
                job.expert.queue.remove(job.order.job_id)
                return [*self._cut_short(job, "cancelled", usage_of(job, now_s)), ReportChange()]
            case Phase.RUNNING if not job.cancel_sent:
                job.cancel_sent, job.stop_by_s = True, now_s + self._stuck_s
                return [SendToEngine(job.expert.engine, CancelJob(job_id=job.order.job_id))]
            case _:
                return []

    def take(self, take: TakeToken) -> list[Effect]:
        """Passes on the token that the coordinator chose for a job that runs."""
        job = self.jobs.get(take.job_id)
        if job is None or job.phase is not Phase.RUNNING or job.cancel_sent:
            return []
        return [SendToEngine(job.expert.engine, take)]

    def expire(self, now_s: float) -> list[Effect]:
        """Cancels the jobs whose time is up."""
        effects: list[Effect] = []
        for job in list(self.jobs.values()):
            if job.deadline_s is None or job.deadline_s > now_s or job.phase is Phase.SETTLING:
                continue
            job.deadline_s = None
            waited_s = now_s - job.received_s
            job.failure = (JobErrorCode.DEADLINE_EXCEEDED, f"The job's time was up after {waited_s:.1f} s.")
            effects += self.cancel(job, now_s)
        return effects

    def kill_stuck(self, experts: Iterable[Expert], now_s: float) -> list[Effect]:
        """Kills the engines that have not stopped a job in the time they had."""
        effects: list[Effect] = []
        for expert in experts:
            jobs = [self.jobs[job_id] for job_id in expert.active]
            if any(job.stop_by_s is not None and job.stop_by_s <= now_s for job in jobs):
                for job in jobs:
                    job.stop_by_s = None
                reason = f"stuck: it did not stop a job within {self._stuck_s:.0f} s"
                effects.append(KillEngine(expert.engine, reason))
        return effects

    def abandon(self, job_ids: frozenset[str] | None, now_s: float) -> list[Effect]:
        """Cancels jobs of which nobody can be told any more; None: all but the host's own."""
        effects: list[Effect] = []
        wanted = self.jobs if job_ids is None else job_ids & self.jobs.keys()
        for job in [job for job_id, job in self.jobs.items() if job_id in wanted and not job.is_own]:
            job.abandoned = True
            effects += self.cancel(job, now_s)
        return effects

    def _end(self, job: Job, ending: JobDone | JobScored, usage: JobUsage) -> list[Effect]:
        """The job is over; what is sent waits for its joules."""
        job.phase = Phase.SETTLING
        job.ending = ending
        if job.failure:
            code, text = job.failure
            job.ending = JobFailed(job_id=ending.job_id, code=code, message=text, usage=usage, in_batch=job.in_batch)
        return [SettleEnergy(ending.job_id)]

    def _cut_short(self, job: Job, reason: str, usage: JobUsage) -> list[Effect]:
        return self._end(job, JobDone(job_id=job.order.job_id, reason=reason, usage=usage), usage)

    def settled(self, job: Job, energy: Energy) -> list[Effect]:
        """A job's joules are known: it is gone, and the coordinator is told. Nobody is told of the host's own."""
        del self.jobs[job.order.job_id]
        if job.timing:
            job.expert.costs.energy_settled(job.timing, energy)
        if job.is_own or job.ending is None:
            return []
        if isinstance(job.ending, JobFailed):
            self.n_failed += 1
        else:
            self.n_finished += 1
        if job.abandoned:
            return []
        usage = job.ending.usage or JobUsage()
        weight = job.expert.token_weight
        usage = msgspec.structs.replace(usage, energy=energy, reasoning_j=reasoning_part(usage, energy, weight))
        return [SendToCoordinator(msgspec.structs.replace(job.ending, usage=usage), job.order.request_id)]

    def lost(self, expert: Expert, reason: str, *, was_loaded: bool, now_s: float) -> list[Effect]:
        """An expert's engine has ended: its jobs fail, those in the batch as suspects."""
        in_batch = frozenset(expert.active)
        held = in_batch.union(expert.queue)
        expert.active.clear()
        expert.own.clear()
        expert.occupancy.count(0, now_s)
        expert.queue.clear()
        effects: list[Effect] = []
        # In the order they came: a set's order differs from run to run.
        for job in [job for job_id, job in self.jobs.items() if job_id in held]:
            if was_loaded:
                job.in_batch = job.order.job_id in in_batch
                job.failure = (JobErrorCode.ENGINE_CRASHED, f"The engine of {expert.section.name} died: {reason}")
            else:
                job.failure = (JobErrorCode.NOT_READY, f"{expert.section.name} could not be loaded: {reason}")
            effects += self._cut_short(job, "failed", usage_of(job, now_s))
        return effects

    def started(self, event: protocol.Started) -> list[Effect]:
        """Takes in that the engine has begun with a job's prompt."""
        job = self.jobs.get(event.job_id)
        if job is None or job.started_s is None:
            return []
        job.prompt_tokens, job.unread_tokens = event.prompt_tokens, event.unread_tokens
        job.batch_wait_s = event.batch_wait_s
        if job.abandoned:
            return []
        queue_s = job.started_s - job.received_s
        started = JobStarted(job_id=event.job_id, prompt_tokens=event.prompt_tokens, queue_s=queue_s)
        return [SendToCoordinator(started, job.order.request_id)]

    def decoded(self, decoded: tuple[JobPieces, ...]) -> list[Effect]:
        """Takes in tokens that the engine has decoded, of one or more jobs."""
        wanted: list[JobPieces] = []
        for tokens in decoded:
            job = self.jobs.get(tokens.job_id)
            if job is None or job.phase is not Phase.RUNNING:
                continue
            job.decoded_tokens += len(tokens.pieces)
            # After a cancellation nobody reads them.
            if not (job.cancel_sent or job.abandoned):
                wanted.append(tokens)
        return [SendTokens(tuple(wanted))] if wanted else []

    def told(self, event: NextTokens | Vectors) -> list[Effect]:
        """The engine has said something of a running job that the coordinator wants to know as it is."""
        job = self.jobs.get(event.job_id)
        if job is None or job.phase is not Phase.RUNNING or job.cancel_sent:
            return []
        if isinstance(event, NextTokens):
            job.decoded_tokens = event.step
        return [SendToCoordinator(event, job.order.request_id)]

    def finished(self, expert: Expert, event: protocol.Finished | protocol.Scored, now_s: float) -> list[Effect]:
        """The engine is done with a job: its slot is free, its costs teach, and its end waits for its joules."""
        job = self._leave_slot(expert, event.job_id, now_s)
        if job is None:
            return []
        queue_s = (job.started_s or job.received_s) - job.received_s + event.wait_s
        # Who waited for the model to be loaded learned nothing about waiting for a slot.
        loading_s = max(0.0, (expert.loaded_at_s or 0.0) - job.received_s)
        if not (isinstance(job.order, Submit) and job.order.only_counts):
            # What went through no model says nothing of its costs.
            job.timing = timing_of(job, expert, event, queue_s - loading_s, now_s)
            expert.costs.request_finished(job.timing)
            expert.measured_at_s = now_s
        usage = usage_of_finished(event, queue_s)
        job_id = event.job_id
        ending: JobDone | JobScored
        if isinstance(event, protocol.Scored):
            ending = JobScored(job_id=job_id, scores=event.scores, usage=usage)
        else:
            ending = JobDone(job_id=job_id, reason=event.reason, usage=usage, stop=event.stop)
        return [*self._end(job, ending, usage), *self.fill_slots(expert, now_s), ReportChange()]

    def job_failed(self, expert: Expert, event: protocol.JobFailed, now_s: float) -> list[Effect]:
        """The engine gave a job up: its slot is free, and its end waits for its joules."""
        job = self._leave_slot(expert, event.job_id, now_s)
        if job is None:
            return []
        job.failure = (_known(event.code), event.message)
        job.prompt_tokens = job.prompt_tokens if event.prompt_tokens is None else event.prompt_tokens
        job.decoded_tokens = max(job.decoded_tokens, event.decoded_tokens)
        ended = self._cut_short(job, "failed", usage_of(job, now_s))
        return [*ended, *self.fill_slots(expert, now_s), ReportChange()]

    def _leave_slot(self, expert: Expert, job_id: str, now_s: float) -> Job | None:
        expert.active.discard(job_id)
        expert.own.discard(job_id)
        expert.idle_since_s = now_s
        expert.occupancy.count(len(expert.active), now_s)
        job = self.jobs.get(job_id)
        if job is None or job.phase is not Phase.RUNNING:
            return None
        for other in (self.jobs[each] for each in expert.active):
            later = max(job, other, key=lambda one: one.started_s or 0.0)
            later.beside_elder_s += now_s - (later.started_s or 0.0)
        return job


def refusal_of(order: Order, code: JobErrorCode, text: str) -> Effect:
    """Tells the coordinator of a job that never began: nothing was spent on it."""
    refusal = JobFailed(job_id=order.job_id, code=code, message=text)
    return SendToCoordinator(refusal, order.request_id)


def _known(code: str) -> JobErrorCode:
    """An engine's error code; one that this daemon does not know is a defect, but no reason to stop."""
    return next((known for known in JobErrorCode if known == code), JobErrorCode.INTERNAL)
