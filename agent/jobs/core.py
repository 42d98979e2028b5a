"""What this agent does with its jobs and models. PURE: events and `now` in, effects out; the daemon performs them.

Each kind of thing has a desk: jobs, the coordinator's commands, exchanges of models, the host's own measuring. The core
knows which event is whose, and what one desk's doing means for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moe2.agent.engine import protocol
from moe2.agent.jobs.commands import CommandDesk
from moe2.agent.jobs.desk import JobDesk, refusal_of
from moe2.agent.jobs.effects import (
    Effect,
    ReportChange,
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
from moe2.agent.jobs.expert import Expert, report_of
from moe2.agent.jobs.residency import loaded, takes_jobs, unload_at_s, unload_due, wake
from moe2.agent.jobs.selfmeasurement import MeasuringRules, SelfMeasurement
from moe2.agent.jobs.swaps import SwapDesk
from moe2.agent.settings import ModelSection
from moe2.common.energy import Energy
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import Job as Order
from moe2.common.link.messages import (
    LoadModel,
    NextTokens,
    Tokens,
    Vectors,
)
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
        self._desk = JobDesk(stuck_s=stuck_s)
        self.jobs = self._desk.jobs
        self.experts = {
            model.name: Expert(section=model, context_tokens=model.request_tokens, paced=paced, may_unload=allow_unload)
            for model in models
        }
        self.commands = CommandDesk(self.experts, allow_unload=allow_unload, allow_suspend=allow_suspend)
        self.measuring = SelfMeasurement(measuring)
        self.swaps = SwapDesk(
            self.experts,
            self.jobs,
            lambda section, engine: Expert(
                section=section,
                engine=engine,
                context_tokens=section.request_tokens,
                paced=paced,
                may_unload=allow_unload,
            ),
        )
        self.draining = False

    @property
    def jobs_finished(self) -> int:
        """The jobs of the coordinators that ended well since the agent began."""
        return self._desk.n_finished

    @property
    def jobs_failed(self) -> int:
        """The jobs of the coordinators that failed since the agent began."""
        return self._desk.n_failed

    def is_own(self, job_id: str) -> bool:
        """Whether a job is the host's own, to measure itself."""
        return self._desk.is_own(job_id)

    @property
    def is_idle(self) -> bool:
        return not self.jobs

    @property
    def next_deadline_s(self) -> float | None:
        """When the next job's time is up, an engine counts as stuck, a model is to be unloaded or measured, or a
        command has waited too long."""
        models = (unload_at_s(expert) for expert in self.experts.values())
        measuring_s = self.measuring.due_s(self.experts.values()) if self._may_measure else None
        moments = (self._desk.next_deadline_s, *models, measuring_s, self.commands.next_deadline_s)
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
            expert = self.experts[job.model]
            self._desk.enter_own(job, expert, now_s)
            effects += self._desk.fill_slots(expert, now_s)
        return effects

    def _handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case EngineSpoke(model=model, event=spoken):
                return self._engine_spoke(self.expert_of(model), spoken, now_s)
            case JobSubmitted(order=order):
                return self._submit(order, now_s)
            case TokenTaken(take=take):
                return self._desk.take(take)
            case CancelRequested(job_id=job_id):
                job = self.jobs.get(job_id)
                return self._desk.cancel(job, now_s) if job else []
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
            return [*lost, *self._desk.abandon(event.job_ids, now_s)]
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
            return [refusal_of(order, JobErrorCode.INVALID_REQUEST, "This job id is already in use.")]
        expert = self.experts.get(order.model)
        if expert is None:
            names = ", ".join(sorted(self.experts))
            text = f"This agent does not serve {order.model!r}; it serves {names}."
            return [refusal_of(order, JobErrorCode.UNKNOWN_EXPERT, text)]
        if self.draining:
            return [refusal_of(order, JobErrorCode.DRAINING, "The agent is shutting down.")]
        if self.commands.is_leaving:
            return [refusal_of(order, JobErrorCode.DRAINING, "The host is going to sleep.")]
        if not takes_jobs(expert):
            text = f"{order.model} is {expert.state}" + (f": {expert.last_error}" if expert.last_error else ".")
            return [refusal_of(order, JobErrorCode.NOT_READY, text)]
        if refusal := self._desk.enter(order, expert, now_s):
            return [refusal]
        effects = [*self._end_own_work(now_s), *self.commands.job_came(order.model)]
        if not expert.held and wake(expert, now_s):
            return [*effects, StartEngine(expert.engine), ReportChange()]
        return [*effects, *self._desk.fill_slots(expert, now_s), ReportChange()]

    def _expire(self, now_s: float) -> list[Effect]:
        effects = [*self._desk.expire(now_s), *self._desk.kill_stuck(self._all_experts(), now_s)]
        unloaded = unload_due(self.experts.values(), now_s)
        effects += [StopEngine(expert.engine) for expert in unloaded]
        return [*effects, ReportChange()] if unloaded else effects

    def _settled(self, job_id: str, energy: Energy, now_s: float) -> list[Effect]:
        job = self.jobs.get(job_id)
        if job is None:
            return []
        effects = self._desk.settled(job, energy)
        if job.is_own and job.ending:
            self.measuring.ended(job.order.model, energy.joules, now_s)
            return [ReportChange()]
        return effects

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
        return [] if job is None else self._desk.cancel(job, now_s)

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
                return self._desk.decoded(decoded)
            case protocol.Guessed():
                # Of interest to who splits joules alone.
                return []
            case protocol.Started():
                return self._desk.started(event)
            case protocol.Finished() | protocol.Scored():
                return self._desk.finished(expert, event, now_s)
            case NextTokens() | Vectors():
                return self._desk.told(event)
            case protocol.JobFailed():
                return self._desk.job_failed(expert, event, now_s)
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
                return [*self.swaps.loaded(expert), *self._desk.fill_slots(expert, now_s), ReportChange()]
            case protocol.LoadFailed(message=message):
                expert.state, expert.last_error, expert.gpu_fault = ExpertState.FAILED, message, event.gpu_fault
                return [ReportChange()]

    def _engine_exited(self, expert: Expert, reason: str, permanent: bool, now_s: float) -> list[Effect]:
        if (effects := self.swaps.failed(expert, reason)) is not None:
            return effects
        was_loaded = expert.state is ExpertState.READY
        expert.last_error = reason
        expert.woken_at_s = None
        expert.state = ExpertState.FAILED if permanent else ExpertState.RESTARTING
        expert.restarts += 1
        expert.load_progress = None
        lost = self._desk.lost(expert, reason, was_loaded=was_loaded, now_s=now_s)
        return [*lost, ReportChange()]
