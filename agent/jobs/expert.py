"""The state of one expert and of the jobs it holds. PURE."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from moe2.agent.energy.attribution import TokenWeight
from moe2.agent.engine import protocol
from moe2.agent.learning.costs import ExpertCosts
from moe2.agent.learning.latency import RequestTiming
from moe2.agent.settings import ModelSection
from moe2.common.cost import RequestShape
from moe2.common.energy import Energy
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, FollowJob, JobDone, JobFailed, JobScored, JobUsage
from moe2.common.link.messages import Job as Order
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.placement import DeviceShare, GpuFault


class Phase(Enum):
    QUEUED = auto()
    RUNNING = auto()
    SETTLING = auto()


@dataclass
class Job:
    """A coordinator's job on its way through this agent. order: what the coordinator asked for."""

    order: Order
    expert: Expert
    """Whose job it is; another one where its model is exchanged while it waits."""
    received_s: float
    deadline_s: float | None
    phase: Phase = Phase.QUEUED
    started_s: float | None = None
    occupancy: float = 1.0
    queued_ahead: int | None = None
    """Both as they were when the job arrived: what a prediction could have known."""
    unread_tokens: int = 0
    """Of others' prompts, when the engine was given this one's."""
    batch_wait_s: float = 0.0
    """That its engine had a batch in progress then."""
    occupancy_at_start: float = 0.0
    beside_elder_s: float = 0.0
    """Job-seconds in its slot of those that had theirs before, as far as one of the two has left."""
    timing: RequestTiming | None = None
    prompt_tokens: int | None = None
    decoded_tokens: int = 0
    cancel_sent: bool = False
    stop_by_s: float | None = None
    """When an engine that was told to stop the job, and has not, counts as stuck."""
    abandoned: bool = False
    is_own: bool = False
    """The host's own, to measure itself: nobody is told of it."""
    failure: tuple[JobErrorCode, str] | None = None
    """Why the job fails although the engine only reports a cancellation."""
    in_batch: bool | None = None
    """Whether its engine worked on it when it died; None while the engine lives."""
    ending: JobDone | JobScored | JobFailed | None = None


@dataclass
class Expert:
    section: ModelSection
    engine: str = ""
    """The name of its engine: the model's, with a number where it has taken another one's place."""
    state: ExpertState = field(init=False)
    facts: protocol.ModelFacts | None = None
    placement: tuple[DeviceShare, ...] = ()
    gpu_fault: GpuFault | None = None
    draft_fault: str | None = None
    """Both as its engine said last; they are worth something while it is ready, the fault also where it failed."""
    context_tokens: int = 0
    load_progress: float | None = field(init=False)
    load_s: float | None = None
    woken_at_s: float | None = None
    """When its engine was started for a request, while it loads."""
    loaded_at_s: float | None = None
    idle_since_s: float | None = None
    file_sha256: str | None = None
    restarts: int = 0
    last_error: str | None = None
    active: set[str] = field(default_factory=set)
    queue: deque[str] = field(default_factory=deque)
    occupancy: Occupancy = field(default_factory=lambda: Occupancy())
    measured_at_s: float | None = None
    paced: bool = False
    """Its speed is a simulated host's."""
    may_unload: bool = False
    """The coordinator may have it unloaded, so that it is loaded for the next request."""
    stopping: bool = False
    """Its process has been told to end, and has not ended yet."""
    held: bool = False
    """Its jobs wait: it is drained, so that another model can take its place."""
    awaited: bool = False
    """It is loaded in another one's place, whose jobs wait for it."""
    own: set[str] = field(default_factory=set)
    """Those of `active` that are the host's own, to measure itself."""

    def __post_init__(self) -> None:
        self.costs = ExpertCosts(self.section.slots)
        self.engine = self.engine or self.section.name
        cold = self.section.load == "on_demand"
        self.state, self.load_progress = (ExpertState.COLD, None) if cold else (ExpertState.LOADING, 0.0)

    @property
    def on_demand(self) -> bool:
        """Whether it takes jobs while it is cold, and is loaded for them."""
        return self.section.loads_on_demand or self.may_unload or self.awaited

    @property
    def n_requests(self) -> int:
        """Requests that hold a slot."""
        return len(self.active) - len(self.own)

    @property
    def token_weight(self) -> TokenWeight:
        """The weight of one token of this expert when a device's energy is split."""
        return self.costs.token_weight(self.facts.file_bytes if self.facts else None)

    @property
    def waiting(self) -> int:
        """Jobs that no slot will be free for when those before them have got theirs."""
        return max(0, self.n_requests + len(self.queue) - self.section.slots)


class Occupancy:
    """The integral over time of how many jobs hold a slot: differences give means."""

    def __init__(self) -> None:
        self._sum_s = 0.0
        self._count = 0
        self._since_s: float | None = None

    def count(self, n: int, now_s: float) -> None:
        """`n` jobs hold a slot from now on."""
        self._sum_s, self._count, self._since_s = self.until(now_s), n, now_s

    def until(self, now_s: float) -> float:
        """The integral of jobs over time so far, in job-seconds."""
        return self._sum_s if self._since_s is None else self._sum_s + self._count * (now_s - self._since_s)


def context_of_a_job(expert: Expert) -> int:
    """The most tokens of one job's prompt and answer: all jobs' together may be more than the model was trained on."""
    trained = expert.facts.trained_context_tokens if expert.facts else None
    return expert.context_tokens if trained is None else min(expert.context_tokens, trained)


def report_of(expert: Expert, now_s: float) -> ExpertReport:
    """What the capability report says of the expert now."""
    facts, section = expert.facts, expert.section
    return ExpertReport(
        model=section.name,
        state=expert.state,
        context_tokens=context_of_a_job(expert),
        slots=section.slots,
        active=expert.n_requests,
        queued=len(expert.queue),
        max_queue=section.max_queue,
        file_bytes=facts.file_bytes if facts else None,
        architecture=facts.architecture if facts else None,
        quantization=facts.quantization if facts else None,
        parameters=facts.parameters if facts else None,
        licence=facts.licence if facts else None,
        vocabulary_sha256=facts.vocabulary_sha256 if facts else None,
        has_chat_template=facts.has_chat_template if facts else None,
        supports_tools=facts.supports_tools if facts else None,
        vector_size=facts.vector_size if facts else None,
        vector_sizes=section.vector_sizes,
        load_progress=expert.load_progress,
        restarts=expert.restarts,
        last_error=expert.last_error,
        performance=expert.costs.performance,
        latency=expert.costs.latency,
        energy=expert.costs.energy,
        measured_age_s=None if expert.measured_at_s is None else now_s - expert.measured_at_s,
        on_demand=expert.on_demand,
        load_s=expert.load_s,
        file_sha256=expert.file_sha256,
        paced=expert.paced,
        sampling=facts.sampling if facts else None,
        supports_thinking=facts.supports_thinking if facts else None,
        supports_infill=facts.supports_infill if facts else None,
        template_variables=facts.template_variables if facts else None,
        placement=expert.placement if expert.state is ExpertState.READY else (),
        gpu_fault=expert.gpu_fault if expert.state in (ExpertState.READY, ExpertState.FAILED) else None,
        draft_fault=expert.draft_fault if expert.state is ExpertState.READY else None,
    )


def usage_of(job: Job, now_s: float) -> JobUsage:
    """What is known of a job that the engine has not accounted for itself."""
    return JobUsage(
        prompt_tokens=job.prompt_tokens,
        decoded_tokens=job.decoded_tokens,
        queue_s=(job.started_s if job.started_s is not None else now_s) - job.received_s,
    )


def usage_of_finished(event: protocol.Finished | protocol.Scored, queue_s: float) -> JobUsage:
    """What a job consumed, as its engine has counted it."""
    return JobUsage(
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        decoded_tokens=event.decoded_tokens,
        reasoning_tokens=(event.reasoning_tokens or None) if isinstance(event, protocol.Finished) else None,
        drafted_tokens=event.drafted_tokens if isinstance(event, protocol.Finished) else None,
        accepted_tokens=event.accepted_tokens if isinstance(event, protocol.Finished) else None,
        model_drafted_tokens=event.model_drafted_tokens if isinstance(event, protocol.Finished) else None,
        model_accepted_tokens=event.model_accepted_tokens if isinstance(event, protocol.Finished) else None,
        queue_s=queue_s,
        prefill_s=event.prefill_s,
        decode_s=event.decode_s,
    )


def reasoning_part(usage: JobUsage, energy: Energy, weight: TokenWeight) -> float | None:
    """Joules of a job's reasoning: its tokens' share, as the account weighs tokens. None where that is not known."""
    if energy.joules is None or not usage.reasoning_tokens:
        return None
    prefilled = max(0, (usage.prompt_tokens or 0) - usage.cached_tokens)
    decoded = weight.decode * usage.decoded_tokens * effort_of(usage.decoded_tokens, usage, weight)
    whole = decoded + weight.prefill * prefilled
    return energy.joules * decoded * usage.reasoning_tokens / (usage.decoded_tokens * whole) if whole > 0 else None


def effort_of(decoded_tokens: int, guesses: JobUsage | protocol.Finished, weight: TokenWeight) -> float:
    """Joules of a decoded token beside those of one that had a step of its own, as the account weighs tokens: a guess
    costs as much as a token of a prompt, and one that was right saves a step."""
    drafted, accepted = guesses.drafted_tokens or 0, guesses.accepted_tokens or 0
    if decoded_tokens < 1 or not drafted:
        return 1.0
    steps = max(1, decoded_tokens - accepted)
    return (weight.decode * steps + weight.prefill * drafted) / (weight.decode * decoded_tokens)


def timing_of(
    job: Job, expert: Expert, event: protocol.Finished | protocol.Scored, queue_s: float, now_s: float
) -> RequestTiming:
    """What can be learned from a finished job."""
    held_s = now_s - job.started_s if job.started_s is not None else 0.0
    occupied_s = expert.occupancy.until(now_s) - job.occupancy_at_start
    prompt_tokens, decoded_tokens = event.prompt_tokens - event.cached_tokens, event.decoded_tokens
    prefill_s, decode_s = event.prefill_s, event.decode_s
    company = occupied_s / held_s if held_s > 0 else None
    elders = job.beside_elder_s / held_s if held_s > 0 else 0.0
    if isinstance(event, protocol.Scored):
        # Continuations go through the model in batches, as a prompt does, and nothing is drawn from them.
        prompt_tokens, decoded_tokens = prompt_tokens + decoded_tokens, 1
        prefill_s, decode_s = event.prefill_s + event.decode_s, None
    elif isinstance(job.order, EmbedJob):
        # All that it takes is reading; what is predicted of answers has at least one token.
        decoded_tokens = 1
    elif isinstance(job.order, FollowJob):
        # Between its tokens it waited for the others.
        decode_s = None
    return RequestTiming(
        shape=RequestShape(
            prompt_tokens=prompt_tokens,
            decoded_tokens=decoded_tokens,
            cached_tokens=event.cached_tokens,
            occupancy=job.occupancy,
            queued_ahead=job.queued_ahead,
            # Whom one that waits for a slot will find nobody can know when it comes.
            unread_tokens=job.unread_tokens if job.queued_ahead is None else None,
            to_write_tokens=elders * max(1, decoded_tokens - 1) if job.queued_ahead is None else None,
        ),
        queue_s=queue_s - job.batch_wait_s,
        wait_s=job.batch_wait_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        mean_occupancy=company,
        newcomers=0.0 if company is None else max(0.0, company - 1 - elders),
        saved_s=event.saved_s if isinstance(event, protocol.Finished) else 0.0,
        effort=effort_of(decoded_tokens, event, expert.token_weight) if isinstance(event, protocol.Finished) else 1.0,
    )
