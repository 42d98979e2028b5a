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
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, ExpertReport, ExpertState, FollowJob, JobDone, JobFailed, JobScored
from moe2.common.link.messages import Job as Order


class Phase(Enum):
    QUEUED = auto()
    RUNNING = auto()
    SETTLING = auto()


@dataclass
class Job:
    """order: what the coordinator asked for."""

    order: Order
    received_s: float
    deadline_s: float | None
    phase: Phase = Phase.QUEUED
    started_s: float | None = None
    occupancy: float = 1.0
    queued_ahead: int | None = None
    """Both as they were when the job arrived: what a prediction could have known."""
    occupancy_at_start: float = 0.0
    timing: RequestTiming | None = None
    prompt_tokens: int | None = None
    decoded_tokens: int = 0
    cancel_sent: bool = False
    stop_by_s: float | None = None
    """When an engine that was told to stop the job, and has not, counts as stuck."""
    abandoned: bool = False
    failure: tuple[JobErrorCode, str] | None = None
    """Why the job fails although the engine only reports a cancellation."""
    in_batch: bool | None = None
    """Whether its engine worked on it when it died; None while the engine lives."""
    ending: JobDone | JobScored | JobFailed | None = None


@dataclass
class Expert:
    section: ModelSection
    state: ExpertState = field(init=False)
    facts: protocol.ModelFacts | None = None
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

    def __post_init__(self) -> None:
        self.costs = ExpertCosts(self.section.slots)
        cold = self.section.load == "on_demand"
        self.state, self.load_progress = (ExpertState.COLD, None) if cold else (ExpertState.LOADING, 0.0)

    @property
    def token_weight(self) -> TokenWeight:
        """The weight of one token of this expert when a device's energy is split."""
        return self.costs.token_weight(self.facts.file_bytes if self.facts else None)

    @property
    def waiting(self) -> int:
        """Jobs that no slot will be free for when those before them have got theirs."""
        return max(0, len(self.active) + len(self.queue) - self.section.slots)


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
        """Job-seconds so far."""
        return self._sum_s if self._since_s is None else self._sum_s + self._count * (now_s - self._since_s)


def report_of(expert: Expert, now_s: float) -> ExpertReport:
    """What the capability report says of the expert now."""
    facts, section = expert.facts, expert.section
    return ExpertReport(
        model=section.name,
        state=expert.state,
        context_tokens=expert.context_tokens,
        slots=section.slots,
        active=len(expert.active),
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
        on_demand=section.loads_on_demand,
        load_s=expert.load_s,
        file_sha256=expert.file_sha256,
        paced=expert.paced,
        sampling=facts.sampling if facts else None,
        supports_thinking=facts.supports_thinking if facts else None,
    )


def timing_of(
    job: Job, expert: Expert, event: protocol.Finished | protocol.Scored, queue_s: float, now_s: float
) -> RequestTiming:
    """What can be learned from a finished job."""
    held_s = now_s - job.started_s if job.started_s is not None else 0.0
    occupied_s = expert.occupancy.until(now_s) - job.occupancy_at_start
    prompt_tokens, decoded_tokens = event.prompt_tokens - event.cached_tokens, event.decoded_tokens
    prefill_s, decode_s = event.prefill_s, event.decode_s
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
        ),
        queue_s=queue_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        mean_occupancy=occupied_s / held_s if held_s > 0 else None,
    )
