"""The wire messages between coordinator and agents: frozen values, no behaviour.

Each message is a msgpack map whose `op` names it (encoding: `moe2.common.link.wire`). Fields that a newer peer adds are
ignored; fields are never renamed or given a new meaning without a new `PROTOCOL_VERSION`. Durations are in seconds and
relative (two hosts share no clock); `*_bytes`, `*_tokens`, `*_j`, `*_w` carry their unit in the name; None is unknown.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from moe2.common.energy import Energy
from moe2.common.generation import Generation, TokenCount, since
from moe2.common.health import HealthWarning
from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertReport, HostFacts, SensorReport
from moe2.common.link.supply import ModelStore, SupplyOrder, Ticket, TicketWanted
from moe2.common.standby import Standby

PROTOCOL_VERSION = 4
"""The newest version this build speaks. 2: scoring and following, for answers that several experts give together.
3: the parameters `repeat_penalty` and `grammar_syntax`. 4: `tool_rules`, `echo`, `thinking_budget_tokens`,
`cache_prompt`; prompts with variables for the template, with reasoning, and of token ids; vectors of texts; commands to
load, unload, suspend and wake."""
OLDEST_PROTOCOL_VERSION = 1
"""The oldest version this build still speaks."""

MAX_EXPERTS = 256
MAX_SENSORS = 64
MAX_WARNINGS = 256
"""Of one agent's report."""
MAX_JOBS_PER_FRAME = 4096
MAX_PIECES_PER_JOB = 65_536
MAX_ALTERNATIVES = 64
MAX_CANDIDATES = 4096
MAX_SCORES = 1024
MAX_VECTORS = 1024
"""Of one frame: longer arrays are refused by their length, before anything is built from them."""

JobId = Annotated[str, Meta(max_length=256)]
CommandId = Annotated[str, Meta(max_length=256)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op"):
    """Base of every wire message."""


# --- Session: who is there, which version is spoken, is the link alive ------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """Agent to coordinator, first frame. The enrolment token travels in the upgrade request, never in a message.

    instance_id: of the process that speaks, drawn anew at each start: it tells a reconnect from another host that
    claims the same agent_id. hostname: of its host. Both are None from earlier releases.
    """

    protocol_min: int
    protocol_max: int
    agent_id: str
    agent_name: str
    agent_version: str
    instance_id: str | None = None
    hostname: str | None = None


class Welcome(Message, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """Coordinator to agent: the version to speak and the rhythm to keep.

    enrolled: the agent's own credential is known, it needs no token any more.
    """

    protocol: int
    coordinator_id: str
    coordinator_version: str
    heartbeat_s: float
    report_s: float
    max_frame_bytes: int
    enrolled: bool = False


class Refused(Message, frozen=True, kw_only=True, omit_defaults=True, tag="refused"):
    """Coordinator to agent: this session cannot be; the link is closed after it."""

    code: str
    message: str
    remedy: str | None = None


class Ping(Message, frozen=True, kw_only=True, omit_defaults=True, tag="ping"):
    seq: int


class Pong(Message, frozen=True, kw_only=True, omit_defaults=True, tag="pong"):
    seq: int


class Fault(Message, frozen=True, kw_only=True, omit_defaults=True, tag="fault"):
    """Either way: your last message was not understood. The session goes on."""

    code: str
    message: str
    in_reply_to: str | None = None


class Goodbye(Message, frozen=True, kw_only=True, omit_defaults=True, tag="goodbye"):
    """Either way: the link is being closed on purpose. reason: `ASLEEP` from an agent whose host goes to sleep."""

    reason: str


ASLEEP = "asleep"
"""The reason of an agent's goodbye that comes back as the same agent when its host is woken."""


# --- The capability report --------------------------------------------------------------------------------------------


class Report(Message, frozen=True, kw_only=True, omit_defaults=True, tag="report"):
    """Agent to coordinator, on change and at a steady rate: everything the capability table knows of this agent.

    standby: None from earlier releases. models: the host's files; None from earlier releases.
    """

    seq: int
    host: HostFacts
    experts: Annotated[tuple[ExpertReport, ...], Meta(max_length=MAX_EXPERTS)]
    sensors: Annotated[tuple[SensorReport, ...], Meta(max_length=MAX_SENSORS)] = ()
    warnings: Annotated[tuple[HealthWarning, ...], Meta(max_length=MAX_WARNINGS)] = ()
    draining: bool = False
    standby: Standby | None = None
    models: ModelStore | None = None


# --- Commands: who is awake -------------------------------------------------------------------------------------------


class LoadModel(Message, frozen=True, kw_only=True, omit_defaults=True, tag="load_model"):
    """Coordinator to agent: bring this model into memory. Done when it is ready. Protocol 4, as all commands."""

    command_id: CommandId
    model: str


class UnloadModel(Message, frozen=True, kw_only=True, omit_defaults=True, tag="unload_model"):
    """Coordinator to agent: end this model's process once its jobs have ended. Done when its memory is given back.

    A job that comes meanwhile calls it off ("busy"); the next one after it loads the model again.

    drain_s: how long running jobs may take before the agent answers "busy"; None: as long as they need.
    """

    command_id: CommandId
    model: str
    drain_s: float | None = None


class Suspend(Message, frozen=True, kw_only=True, omit_defaults=True, tag="suspend"):
    """Coordinator to agent: suspend the host once its jobs have ended.

    Done is answered right before the goodbye with the reason `ASLEEP`. If the host then stays awake after all, the
    agent connects again and answers "failed". drain_s: as in `UnloadModel`.
    """

    command_id: CommandId
    drain_s: float | None = None


class WakeNeighbour(Message, frozen=True, kw_only=True, omit_defaults=True, tag="wake_neighbour"):
    """Coordinator to agent: send a magic packet to another host on your network. Done when it is sent.

    mac, network: of a `WakeAddress` that the sleeping host has reported. An agent with no interface on that network
    refuses.
    """

    command_id: CommandId
    mac: Annotated[str, Meta(max_length=32)]
    network: Annotated[str, Meta(max_length=64)]


class CommandOutcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    """Nothing was begun: it is not allowed, not possible, or not now."""
    FAILED = "failed"
    """It was begun and did not come to its end."""


class CommandAnswer(Message, frozen=True, kw_only=True, omit_defaults=True, tag="command_answer"):
    """Agent to coordinator: what became of a command, once for each.

    code: why it was not done, a `moe2.common.errors.CommandErrorCode`; None where it was. message: for people.
    """

    command_id: CommandId
    outcome: CommandOutcome
    code: str | None = None
    message: str | None = None


# --- Jobs: one expert's work for one request --------------------------------------------------------------------------


class Submit(Generation, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", tag="submit"):
    """Coordinator to agent: run this job. On the wire its `Generation` is flat, beside the job's own fields.

    prefix: how the answer begins; the expert goes on from there. Protocol 2.
    deadline_s: the agent gives up this long after receipt.
    """

    job_id: str
    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    prefix: Annotated[str, Meta(extra=since(2))] = ""
    deadline_s: float | None = None


class ScoreJob(Message, frozen=True, kw_only=True, omit_defaults=True, tag="score"):
    """Coordinator to agent: how likely is each continuation after the prompt? Answered with `JobScored`. Protocol 2."""

    job_id: str
    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    continuations: tuple[str, ...]
    deadline_s: float | None = None


class FollowJob(Message, frozen=True, kw_only=True, omit_defaults=True, tag="follow"):
    """Coordinator to agent: say what you think of each next token, and take the one that the coordinator draws.

    The first `NextTokens` comes after the prompt, each further one after a `TakeToken`. Protocol 2.

    top_p, most: only the most likely tokens that make up this probability are sent, and never more than `most`.
    max_tokens: how many tokens will be taken at most.
    """

    job_id: str
    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    most: TokenCount = 256
    max_tokens: TokenCount | None = None
    deadline_s: float | None = None


class EmbedJob(Message, frozen=True, kw_only=True, omit_defaults=True, tag="embed"):
    """Coordinator to agent: a vector for each of these texts. Answered with `Vectors`, then `JobDone`. Protocol 4."""

    job_id: str
    request_id: str
    model: str
    texts: tuple[TextPrompt, ...]
    deadline_s: float | None = None


class TakeToken(Message, frozen=True, kw_only=True, omit_defaults=True, tag="take_token"):
    """Coordinator to agent: the answer's token number `step`, from 0. None: it is complete, end with a `JobDone`."""

    job_id: str
    step: int
    token: int | None = None


class CancelJob(Message, frozen=True, kw_only=True, omit_defaults=True, tag="cancel"):
    """Coordinator to agent: stop this job now. Answered with its `JobDone` (reason "cancelled")."""

    job_id: str


class TokenAlternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that might have been drawn, and its natural log-probability.

    hex: the token's bytes in hexadecimal, where they are no text by themselves; "" where they are the text's; None for
    a control token, which has a name and no bytes. Protocol 4.
    """

    text: str
    logprob: float
    hex: str | None = ""


class TokenPiece(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One token's text (a whole number of UTF-8 characters, maybe none) and, where asked for, its log-probability.

    is_reasoning: it belongs to what the model thought before its answer. hex: with a log-probability, the token's own
    bytes in hexadecimal where they are not those of its text; "" where they are. name: where log-probabilities were
    asked for, how a control token is spelt, which has no text; "" for all others. Protocol 4.
    """

    text: str
    logprob: float | None = None
    alternatives: Annotated[tuple[TokenAlternative, ...], Meta(max_length=MAX_ALTERNATIVES)] = ()
    is_reasoning: bool = False
    hex: str = ""
    name: str = ""


class JobStarted(Message, frozen=True, kw_only=True, omit_defaults=True, tag="job_started"):
    """Agent to coordinator: the job left the queue and holds a slot."""

    job_id: JobId
    prompt_tokens: int
    queue_s: float


class JobPieces(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one job."""

    job_id: JobId
    pieces: Annotated[tuple[TokenPiece, ...], Meta(max_length=MAX_PIECES_PER_JOB)]


class Tokens(Message, frozen=True, kw_only=True, omit_defaults=True, tag="tokens"):
    """Agent to coordinator: tokens since the last such frame, of every job: a slow link gets fewer, fuller frames."""

    jobs: Annotated[tuple[JobPieces, ...], Meta(max_length=MAX_JOBS_PER_FRAME)]


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """One possible next token. `piece` are its bytes, maybe part of a character; `ends` means it ends the answer."""

    token: int
    logprob: float
    piece: bytes
    ends: bool


class NextTokens(Message, frozen=True, kw_only=True, omit_defaults=True, tag="next_tokens"):
    """Agent to coordinator: the most likely tokens of the answer's place `step`, from 0, best first.

    What they lack to 1 lies on the others.
    """

    job_id: JobId
    step: int
    candidates: Annotated[tuple[Candidate, ...], Meta(max_length=MAX_CANDIDATES)]


class Vectors(Message, frozen=True, kw_only=True, omit_defaults=True, tag="vectors"):
    """Agent to coordinator: the vectors of an `EmbedJob`'s next texts, in the order asked.

    vectors: of length 1, as 32-bit floats, little-endian.
    """

    job_id: JobId
    vectors: Annotated[tuple[bytes, ...], Meta(max_length=MAX_VECTORS)]


class ContinuationScore(msgspec.Struct, frozen=True, array_like=True):
    """How likely a continuation is after a prompt. logprob: natural logarithm, the sum over its tokens."""

    logprob: float
    tokens: int
    utf8_bytes: int


class JobUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job consumed, whatever became of it. Seconds by phase; None where the phase was never reached.

    reasoning_tokens: those of `decoded_tokens` that were reasoning; None without any, and from earlier releases.
    reasoning_j: their part of `energy.joules`, by the weights of tokens; None where it is not known.
    drafted_tokens: guesses of the next tokens that went through the model; accepted_tokens: those of them that were
    right, and are among `decoded_tokens`; None where nothing is guessed, and from earlier releases.
    model_drafted_tokens, model_accepted_tokens: those of either that a draft model has guessed; None where it has
    guessed none, and from earlier releases.
    """

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    decoded_tokens: int = 0
    reasoning_tokens: int | None = None
    reasoning_j: float | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    model_drafted_tokens: int | None = None
    model_accepted_tokens: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    energy: Energy = Energy(reason="not measured")


class JobDone(Message, frozen=True, kw_only=True, omit_defaults=True, tag="job_done"):
    """Agent to coordinator: the job's end.

    reason: "stop", "length" or "cancelled". stop: the stop string that ended the answer, where it was one; None from
    agents of before this field, too.
    """

    job_id: JobId
    reason: str
    usage: JobUsage
    stop: str | None = None


class JobScored(Message, frozen=True, kw_only=True, omit_defaults=True, tag="job_scored"):
    """Agent to coordinator: the end of a `ScoreJob`, one score per continuation in the order asked."""

    job_id: JobId
    scores: Annotated[tuple[ContinuationScore, ...], Meta(max_length=MAX_SCORES)]
    usage: JobUsage


class JobFailed(Message, frozen=True, kw_only=True, omit_defaults=True, tag="job_failed"):
    """Agent to coordinator: the job ended in an error. `code` is a `moe2.common.errors.JobErrorCode`.

    usage: None if the job was refused: it never began, and nothing was spent on it.
    in_batch: where an engine died or hung, whether it was working on this job then, so that the job may be the cause;
    False if the job only waited for its turn. None: the agent does not say (agents of before this field never do).
    """

    job_id: JobId
    code: str
    message: str
    usage: JobUsage | None = None
    in_batch: bool | None = None


SessionMessage = Hello | Welcome | Refused | Ping | Pong | Fault | Goodbye
Job = Submit | ScoreJob | FollowJob | EmbedJob
"""What an expert can be asked to do."""
Command = LoadModel | UnloadModel | Suspend | WakeNeighbour | SupplyOrder
"""What an agent can be asked to do about who is awake and what is served."""
ToAgent = Job | TakeToken | CancelJob | Command | Ticket
JobWord = JobStarted | NextTokens | Vectors | JobDone | JobScored | JobFailed
"""What an agent says of one job."""
FromAgent = JobWord | Tokens
WireMessage = SessionMessage | Report | ToAgent | FromAgent | CommandAnswer | TicketWanted
