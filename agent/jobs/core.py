"""The life of jobs on this agent. PURE: events and `now` in, effects out; the daemon performs them.

A job waits in its expert's bounded queue until the engine has a free slot, runs, and ends exactly once: done, failed,
or (when the link to the coordinator broke and nobody can be told) abandoned. Its end waits for the energy account, so
that the usage that is sent carries the job's joules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from moe2.agent.engine import protocol
from moe2.agent.jobs.commands import CommandDesk
from moe2.agent.jobs.effects import (
    Effect,
    KillEngine,
    ReportChange,
    SendToCoordinator,
    SendToEngine,
    SendTokens,
    SettleEnergy,
    StartEngine,
    StopEngine,
)
from moe2.agent.jobs.events import (
    CancelRequested,
    CommandReceived,
    DrainRequested,
    EnergySettled,
    EngineExited,
    EngineGone,
    EngineSpoke,
    EngineStopped,
    Event,
    FileHashed,
    JobSubmitted,
    LinkLost,
    ModelOffered,
    ModelWithdrawn,
    OwnWorkSpent,
    PowerModeChanged,
    ProfileRestored,
    SuspendChecked,
    SuspendEnded,
    TimePassed,
    TokenTaken,
)
from moe2.agent.jobs.expert import Expert, Job, Phase, reasoning_part, report_of, timing_of, usage_of, usage_of_finished
from moe2.agent.jobs.residency import loaded, takes_jobs, unload_at_s, unload_due, wake
from moe2.agent.jobs.selfmeasurement import MeasuringRules, SelfMeasurement
from moe2.agent.jobs.swaps import SwapDesk
from moe2.agent.settings import ModelSection
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
    LoadModel,
    NextTokens,
    Submit,
    TakeToken,
    Tokens,
    Vectors,
)
from moe2.common.link.messages import Job as Order
from moe2.common.link.reports import ExpertReport, ExpertState


class AgentCore:
    """The pure core of an agent: all its jobs and experts. One writer: the daemon's event loop.

    stuck_s: an engine that does not stop a job within this time of being told to is stuck. paced: the host is a
    simulated one, its speed included. allow_unload, allow_suspend: what the coordinator may command. measuring: the
    bounds of measuring itself; None if it does not.
    """

    def __init__(
        self,
        models: tuple[ModelSection, ...],
        *,
        stuck_s: float = 60.0,
        paced: bool = False,
        allow_unload: bool = False,
        allow_suspend: bool = False,
        measuring: MeasuringRules | None = None,
    ) -> None:
        self._stuck_s = stuck_s
        self.experts = {
            model.name: Expert(section=model, context_tokens=model.context_tokens, paced=paced, may_unload=allow_unload)
            for model in models
        }
        self.commands = CommandDesk(self.experts, allow_unload=allow_unload, allow_suspend=allow_suspend)
        self.measuring = SelfMeasurement(measuring)
        self.jobs: dict[str, Job] = {}
        self.swaps = SwapDesk(
            self.experts,
            self.jobs,
            lambda section, engine: Expert(
                section=section,
                engine=engine,
                context_tokens=section.context_tokens,
                paced=paced,
                may_unload=allow_unload,
            ),
        )
        self.draining = False
        self.jobs_finished = 0
        self.jobs_failed = 0

    @property
    def is_idle(self) -> bool:
        return not self.jobs

    @property
    def next_deadline_s(self) -> float | None:
        """When the next job's time is up, an engine counts as stuck, a model is to be unloaded or measured, or a
        command has waited too long."""
        jobs = [job for job in self.jobs.values() if job.phase is not Phase.SETTLING]
        models = (unload_at_s(expert) for expert in self.experts.values())
        measuring_s = self.measuring.due_s(self.experts.values()) if self._may_measure else None
        moments = (
            *(job.deadline_s for job in jobs),
            *(job.stop_by_s for job in jobs),
            *models,
            measuring_s,
            self.commands.next_deadline_s,
        )
        return min((at_s for at_s in moments if at_s is not None), default=None)

    @property
    def _may_measure(self) -> bool:
        """Whether nothing else is done or wanted on this host."""
        if self.jobs or self.draining or self.commands.is_leaving:
            return False
        if not (self.commands.is_empty and self.swaps.is_empty):
            return False
        return not any(expert.stopping or expert.state is ExpertState.LOADING for expert in self.experts.values())

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take in one event; returns what the daemon is to do, in order."""
        effects = self._handle(event, now_s)
        effects += self.commands.advance(now_s, is_idle=self.is_idle)
        effects += self.swaps.advance()
        if self._may_measure and (job := self.measuring.next_job(self.experts.values(), now_s)):
            effects += self._begin_own(job, now_s)
        return effects

    def _handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case EngineSpoke(model=model, event=spoken):
                return self._engine_spoke(self.expert_of(model), spoken, now_s)
            case JobSubmitted(order=order):
                return self._submit(order, now_s)
            case TokenTaken(take=take):
                return self._take(take)
            case CancelRequested(job_id=job_id):
                job = self.jobs.get(job_id)
                return self._cancel(job, now_s) if job else []
            case EnergySettled(job_id=job_id, energy=energy):
                return self._settled(job_id, energy, now_s)
            case LinkLost() | DrainRequested():
                return self._left_alone(event, now_s)
            case CommandReceived() | EngineStopped() | SuspendChecked() | SuspendEnded() | OwnWorkSpent():
                return self._standing(event, now_s)
            case TimePassed():
                return self._expire(now_s)
            case ModelOffered() | ModelWithdrawn() | EngineGone():
                return self._exchange(event, now_s)
            case PowerModeChanged() | ProfileRestored() | FileHashed():
                return self._learned(event)
            case EngineExited(model=model, reason=reason, permanent=permanent):
                return self._engine_exited(self.expert_of(model), reason, permanent, now_s)

    def _left_alone(self, event: LinkLost | DrainRequested, now_s: float) -> list[Effect]:
        if isinstance(event, LinkLost):
            lost = self.commands.link_lost() if event.job_ids is None else []
            return [*lost, *self._abandon(event.job_ids, now_s)]
        self.draining = True
        return [*self._end_own_work(now_s), ReportChange()]

    def _learned(self, event: PowerModeChanged | ProfileRestored | FileHashed) -> list[Effect]:
        """Something of the experts became known that reports and predictions rest on."""
        match event:
            case PowerModeChanged(power_mode=power_mode):
                self.measuring.power_mode_changed(power_mode)
                for expert in self.experts.values():
                    expert.costs.set_power_mode(power_mode)
            case ProfileRestored(model=model, latency=latency, energy=energy):
                if model in self.experts:
                    self.experts[model].costs.restore(latency, energy)
            case FileHashed(model=model, sha256=sha256):
                if model in self.experts:
                    self.experts[model].file_sha256 = sha256
        return [ReportChange()]

    def expert_reports(self, now_s: float) -> tuple[ExpertReport, ...]:
        """What the capability report says of every expert now."""
        return tuple(report_of(expert, now_s) for expert in self.experts.values())

    def n_jobs(self, model: str, counts: Callable[[str], bool]) -> int:
        """Returns how many jobs a model has, running and queued, of those that `counts` says yes to."""
        expert = self.experts.get(model)
        return sum(counts(job_id) for job_id in (*expert.active, *expert.queue)) if expert else 0

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    def _submit(self, order: Order, now_s: float) -> list[Effect]:
        known = self.jobs.get(order.job_id)
        if known and known.order == order:
            # The same words twice: a refusal would end the job that is running.
            return []
        if known:
            return _refuse(order, JobErrorCode.INVALID_REQUEST, "This job id is already in use.")
        expert = self.experts.get(order.model)
        if expert is None:
            names = ", ".join(sorted(self.experts))
            text = f"This agent does not serve {order.model!r}; it serves {names}."
            return _refuse(order, JobErrorCode.UNKNOWN_EXPERT, text)
        if self.draining:
            return _refuse(order, JobErrorCode.DRAINING, "The agent is shutting down.")
        if self.commands.is_leaving:
            return _refuse(order, JobErrorCode.DRAINING, "The host is going to sleep.")
        if not takes_jobs(expert):
            text = f"{order.model} is {expert.state}" + (f": {expert.last_error}" if expert.last_error else ".")
            return _refuse(order, JobErrorCode.NOT_READY, text)
        has_slot = expert.n_requests + len(expert.queue) < expert.section.slots
        if not has_slot and expert.waiting >= expert.section.max_queue:
            text = f"All {expert.section.slots} slots and {expert.section.max_queue} queue places are taken."
            return _refuse(order, JobErrorCode.QUEUE_FULL, text)
        deadline_s = None if order.deadline_s is None else now_s + order.deadline_s
        job = Job(
            order=order,
            expert=expert,
            received_s=now_s,
            deadline_s=deadline_s,
            occupancy=min(expert.n_requests + 1, expert.section.slots),
            queued_ahead=None if has_slot else expert.waiting,
        )
        effects = [*self._end_own_work(now_s), *self.commands.job_came(order.model)]
        self.jobs[order.job_id] = job
        expert.queue.append(order.job_id)
        if not expert.held and wake(expert, now_s):
            return [*effects, StartEngine(expert.engine), ReportChange()]
        return [*effects, *self._fill_slots(expert, now_s), ReportChange()]

    def _fill_slots(self, expert: Expert, now_s: float) -> list[Effect]:
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

    def _cancel(self, job: Job, now_s: float) -> list[Effect]:
        """Stop a job in whatever phase it is. A queued one ends here, a running one when the engine confirms."""
        match job.phase:
            case Phase.QUEUED:
                job.expert.queue.remove(job.order.job_id)
                return [*self._cut_short(job, "cancelled", usage_of(job, now_s)), ReportChange()]
            case Phase.RUNNING if not job.cancel_sent:
                job.cancel_sent, job.stop_by_s = True, now_s + self._stuck_s
                return [SendToEngine(job.expert.engine, CancelJob(job_id=job.order.job_id))]
            case _:
                return []

    def _take(self, take: TakeToken) -> list[Effect]:
        job = self.jobs.get(take.job_id)
        if job is None or job.phase is not Phase.RUNNING or job.cancel_sent:
            return []
        return [SendToEngine(job.expert.engine, take)]

    def _expire(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for job in list(self.jobs.values()):
            if job.deadline_s is None or job.deadline_s > now_s or job.phase is Phase.SETTLING:
                continue
            job.deadline_s = None
            waited_s = now_s - job.received_s
            job.failure = (JobErrorCode.DEADLINE_EXCEEDED, f"The job's time was up after {waited_s:.1f} s.")
            effects += self._cancel(job, now_s)
        effects += self._kill_stuck(now_s)
        unloaded = unload_due(self.experts.values(), now_s)
        effects += [StopEngine(expert.engine) for expert in unloaded]
        return [*effects, ReportChange()] if unloaded else effects

    def _kill_stuck(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for expert in self._all_experts():
            jobs = [self.jobs[job_id] for job_id in expert.active]
            if any(job.stop_by_s is not None and job.stop_by_s <= now_s for job in jobs):
                for job in jobs:
                    job.stop_by_s = None
                reason = f"stuck: it did not stop a job within {self._stuck_s:.0f} s"
                effects.append(KillEngine(expert.engine, reason))
        return effects

    def _abandon(self, job_ids: frozenset[str] | None, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        wanted = self.jobs if job_ids is None else job_ids & self.jobs.keys()
        for job in [job for job_id, job in self.jobs.items() if job_id in wanted and not job.is_own]:
            job.abandoned = True
            effects += self._cancel(job, now_s)
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

    def _settled(self, job_id: str, energy: Energy, now_s: float) -> list[Effect]:
        job = self.jobs.pop(job_id, None)
        if job is None or job.ending is None:
            return []
        if job.timing:
            job.expert.costs.energy_settled(job.timing, energy)
        if job.is_own:
            self.measuring.ended(job.order.model, energy.joules, now_s)
            return [ReportChange()]
        if isinstance(job.ending, JobFailed):
            self.jobs_failed += 1
        else:
            self.jobs_finished += 1
        if job.abandoned:
            return []
        usage = job.ending.usage or JobUsage()
        weight = job.expert.token_weight
        usage = msgspec.structs.replace(usage, energy=energy, reasoning_j=reasoning_part(usage, energy, weight))
        return [SendToCoordinator(msgspec.structs.replace(job.ending, usage=usage), job.order.request_id)]

    # --- Who is awake, and the host's own work -----------------------------------------------------------------------

    def _standing(
        self, event: CommandReceived | EngineStopped | SuspendChecked | SuspendEnded | OwnWorkSpent, now_s: float
    ) -> list[Effect]:
        match event:
            case CommandReceived(order=command):
                ended = [] if isinstance(command, LoadModel) else self._end_own_work(now_s)
                return [*ended, *self.commands.take(command, now_s, is_draining=self.draining)]
            case EngineStopped(model=model):
                return self.commands.engine_stopped(self.expert_of(model).section.name)
            case SuspendChecked(fault=fault):
                self.commands.suspend_fault = fault
                return [ReportChange()]
            case SuspendEnded(command_id=command_id, fault=fault):
                return self.commands.suspend_ended(command_id, fault)
            case OwnWorkSpent(joules=joules):
                return self._stop_own(now_s) if self.measuring.spent(joules) else []

    def is_own(self, job_id: str) -> bool:
        """Whether a job is the host's own, to measure itself."""
        job = self.jobs.get(job_id)
        return job is not None and job.is_own

    def _begin_own(self, order: Submit, now_s: float) -> list[Effect]:
        """Run a job by which an idle expert measures itself. Nobody is told of it."""
        expert = self.experts[order.model]
        self.jobs[order.job_id] = Job(
            order=order, expert=expert, received_s=now_s, deadline_s=None, abandoned=True, is_own=True
        )
        expert.own.add(order.job_id)
        expert.queue.append(order.job_id)
        return self._fill_slots(expert, now_s)

    def _end_own_work(self, now_s: float) -> list[Effect]:
        """Something matters more than measuring: end it at once."""
        job_id = self.measuring.job_id
        if job_id is None:
            return []
        effects = self._stop_own(now_s)
        self.measuring.interrupted(self.jobs[job_id].order.model, now_s)
        return effects

    def _stop_own(self, now_s: float) -> list[Effect]:
        job = self.jobs.get(self.measuring.job_id or "")
        return [] if job is None else self._cancel(job, now_s)

    # --- Which models are served --------------------------------------------------------------------------------------

    def _exchange(self, event: ModelOffered | ModelWithdrawn | EngineGone, now_s: float) -> list[Effect]:
        match event:
            case EngineGone(engine=engine):
                return self.swaps.gone(engine)
            case ModelOffered(section=section):
                gone, effects = section.name, self.swaps.offered(event, is_draining=self.draining)
            case ModelWithdrawn(name=name):
                gone, effects = name, self.swaps.withdrawn(event, is_draining=self.draining)
        return [*self._end_own_work(now_s), *self.commands.model_exchanged(gone), *effects]

    def expert_of(self, engine: str) -> Expert:
        """The expert that has this engine, served or not."""
        return next(expert for expert in self._all_experts() if expert.engine == engine)

    def _all_experts(self) -> Iterator[Expert]:
        yield from self.experts.values()
        yield from self.swaps.aside()

    # --- Engines ------------------------------------------------------------------------------------------------------

    def _engine_spoke(self, expert: Expert, event: protocol.Event, now_s: float) -> list[Effect]:
        match event:
            case Tokens(jobs=decoded):
                return self._decoded(decoded)
            case protocol.Guessed():
                # Of interest to who splits joules alone.
                return []
            case protocol.Started(job_id=job_id, prompt_tokens=prompt_tokens):
                return self._started(job_id, prompt_tokens)
            case protocol.Finished() | protocol.Scored():
                return self._finished(expert, event, now_s)
            case NextTokens() | Vectors():
                return self._told(event)
            case protocol.JobFailed():
                return self._job_failed(expert, event, now_s)
            case protocol.Loading(progress=progress):
                expert.state, expert.load_progress = ExpertState.LOADING, progress
                return []
            case protocol.Loaded():
                expert.state, expert.load_progress, expert.last_error = ExpertState.READY, None, None
                expert.facts, expert.context_tokens = event.facts, event.context_tokens
                expert.placement, expert.gpu_fault = event.placement, event.gpu_fault
                expert.draft_fault = event.draft_fault
                expert.costs.warmed_up(event.warmup_prefill_tokens_per_s, event.warmup_decode_tokens_per_s)
                loaded(expert, event.load_s, now_s)
                return [*self.swaps.loaded(expert), *self._fill_slots(expert, now_s), ReportChange()]
            case protocol.LoadFailed(message=message):
                expert.state, expert.last_error, expert.gpu_fault = ExpertState.FAILED, message, event.gpu_fault
                return [ReportChange()]

    def _started(self, job_id: str, prompt_tokens: int) -> list[Effect]:
        job = self.jobs.get(job_id)
        if job is None or job.started_s is None:
            return []
        job.prompt_tokens = prompt_tokens
        if job.abandoned:
            return []
        queue_s = job.started_s - job.received_s
        started = JobStarted(job_id=job_id, prompt_tokens=prompt_tokens, queue_s=queue_s)
        return [SendToCoordinator(started, job.order.request_id)]

    def _decoded(self, decoded: tuple[JobPieces, ...]) -> list[Effect]:
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

    def _told(self, event: NextTokens | Vectors) -> list[Effect]:
        job = self.jobs.get(event.job_id)
        if job is None or job.phase is not Phase.RUNNING or job.cancel_sent:
            return []
        if isinstance(event, NextTokens):
            job.decoded_tokens = event.step
        return [SendToCoordinator(event, job.order.request_id)]

    def _finished(self, expert: Expert, event: protocol.Finished | protocol.Scored, now_s: float) -> list[Effect]:
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
        return [*self._end(job, ending, usage), *self._fill_slots(expert, now_s), ReportChange()]

    def _job_failed(self, expert: Expert, event: protocol.JobFailed, now_s: float) -> list[Effect]:
        job = self._leave_slot(expert, event.job_id, now_s)
        if job is None:
            return []
        job.failure = (_known(event.code), event.message)
        job.prompt_tokens = job.prompt_tokens if event.prompt_tokens is None else event.prompt_tokens
        job.decoded_tokens = max(job.decoded_tokens, event.decoded_tokens)
        ended = self._cut_short(job, "failed", usage_of(job, now_s))
        return [*ended, *self._fill_slots(expert, now_s), ReportChange()]

    def _leave_slot(self, expert: Expert, job_id: str, now_s: float) -> Job | None:
        expert.active.discard(job_id)
        expert.own.discard(job_id)
        expert.idle_since_s = now_s
        expert.occupancy.count(len(expert.active), now_s)
        job = self.jobs.get(job_id)
        return job if job and job.phase is Phase.RUNNING else None

    def _engine_exited(self, expert: Expert, reason: str, permanent: bool, now_s: float) -> list[Effect]:
        if (effects := self.swaps.failed(expert, reason)) is not None:
            return effects
        was_loaded = expert.state is ExpertState.READY
        expert.last_error = reason
        expert.woken_at_s = None
        expert.state = ExpertState.FAILED if permanent else ExpertState.RESTARTING
        expert.restarts += 1
        expert.load_progress = None
        in_batch = frozenset(expert.active)
        held = in_batch.union(expert.queue)
        # In the order they came: a set's order differs from run to run.
        lost = [job for job_id, job in self.jobs.items() if job_id in held]
        expert.active.clear()
        expert.own.clear()
        expert.occupancy.count(0, now_s)
        expert.queue.clear()
        effects = []
        for job in lost:
            if was_loaded:
                job.in_batch = job.order.job_id in in_batch
                job.failure = (JobErrorCode.ENGINE_CRASHED, f"The engine of {expert.section.name} died: {reason}")
            else:
                job.failure = (JobErrorCode.NOT_READY, f"{expert.section.name} could not be loaded: {reason}")
            effects += self._cut_short(job, "failed", usage_of(job, now_s))
        return [*effects, ReportChange()]


def _known(code: str) -> JobErrorCode:
    """An engine's error code; one that this daemon does not know is a defect, but no reason to stop."""
    return next((known for known in JobErrorCode if known == code), JobErrorCode.INTERNAL)


def _refuse(order: Order, code: JobErrorCode, text: str) -> list[Effect]:
    """A job that never began: nothing was spent on it."""
    refusal = JobFailed(job_id=order.job_id, code=code, message=text)
    return [SendToCoordinator(refusal, order.request_id)]
