"""The checks of everything that agents say, at the one place where it comes in. PURE.

The decoder has checked types and the lengths of arrays (`moe2.common.link.messages`), and frames are limited in size
(`moe2.common.link.wire`). Here the content is checked: decisions are arithmetic over all experts, and accounts are sums
over all requests, where one NaN or one negative number of slots from one agent would spoil those of everybody.

An impossible figure becomes unknown where that is enough (joules, seconds, watts), and costs its expert or its job
where it is not. The rest of the message counts.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from moe2.common.energy import Energy, unmeasured
from moe2.common.errors import CommandErrorCode, JobErrorCode
from moe2.common.link.messages import (
    CommandAnswer,
    EmbedJob,
    FollowJob,
    FromAgent,
    Hello,
    Job,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    JobStarted,
    JobUsage,
    JobWord,
    NextTokens,
    Report,
    ScoreJob,
    Submit,
    ToAgent,
    Tokens,
    Vectors,
)
from moe2.common.link.session import JobMessage
from moe2.common.link.supply import TicketWanted
from moe2.coordinator.fleet.bounds import (
    MAX_FIGURE,
    MAX_JOULES,
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    MAX_TOKENS,
    MAX_WATTS,
    first_range_fault,
    name_fault,
    range_fault,
    shown,
)
from moe2.coordinator.fleet.report_checks import sound_report

MAX_LOGPROB = 1e-6
"""The largest log-probability: 0, up to the rounding of a sum."""
MAX_MASS = 1.001
"""The largest sum of the probabilities of different next tokens."""
MAX_PIECE_BYTES = 4096
FLOAT_BYTES = 4
MAX_VECTOR_BYTES = 65_536 * FLOAT_BYTES
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
MAX_UNKNOWN_JOBS = 256
"""The number of unknown jobs that one frame may name: jobs that this connection was never given, or has ended.

A restarted coordinator hears of jobs that its agents still work on.
"""
MAX_REMEMBERED_JOBS = 16_384
"""The number of jobs that one connection remembers.

Words about a forgotten job are checked like those about an unknown one.
"""

DONE_REASONS = frozenset({"stop", "length", "cancelled"})
AGENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JOB_CODES = frozenset(JobErrorCode)
_COMMAND_CODES = frozenset(CommandErrorCode)


class Checked(msgspec.Struct, frozen=True):
    """The result of checking a message."""

    messages: tuple[Report | FromAgent | CommandAnswer | TicketWanted, ...] = ()
    """The messages, or what is left of them, that may be believed."""
    faults: tuple[str, ...] = ()
    """The faults of the message, for the agent and the log."""
    suspends: bool = False
    """True if the agent is to get no requests for a while; False where only a part of its report was left out."""
    stopped: tuple[str, ...] = ()
    """Ids of the jobs that the agent is to work on no longer."""


@dataclass
class _Given:
    """A job that the agent was given."""

    job: Job
    context_tokens: int | None
    """The context of its expert when it was given; None if that was never reported."""
    n_pieces: int = 0
    n_vectors: int = 0

    @property
    def max_decoded(self) -> int:
        """The most tokens that the job can decode."""
        match self.job:
            case Submit(max_tokens=max_tokens) | FollowJob(max_tokens=max_tokens):
                return self.max_prompt if max_tokens is None else max_tokens
            case EmbedJob():
                return 0
            case ScoreJob(continuations=continuations):
                # A token has at least one byte; a tokenizer may put a space before the text.
                return sum(len(text.encode("utf-8", "replace")) + 1 for text in continuations)

    @property
    def max_pieces(self) -> int:
        """The most pieces that the job can send: one for each token, and for an unfinished character at the end."""
        echoed = self.max_prompt if isinstance(self.job, Submit) and self.job.echo else 0
        return self.max_decoded + echoed + 1

    @property
    def max_prompt(self) -> int:
        """The most tokens that the job's prompt can have, if it ran. Each text of several has the context to itself."""
        n_texts = len(self.job.texts) if type(self.job) is EmbedJob else 1
        return MAX_TOKENS if self.context_tokens is None else self.context_tokens * n_texts


class AgentChecks:
    """The checks of one agent's connection, which remembers the jobs that went out and so knows what may come back."""

    def __init__(self) -> None:
        self._given: OrderedDict[str, _Given] = OrderedDict()
        self._context_tokens: dict[str, int] = {}
        self._former: Report | None = None
        """What could be believed of the agent's latest report."""

    def sent(self, message: ToAgent) -> None:
        """Notes a message that the agent is sent."""
        if isinstance(message, Job):
            self._given[message.job_id] = _Given(message, self._context_tokens.get(message.model))
            if len(self._given) > MAX_REMEMBERED_JOBS:
                self._given.popitem(last=False)

    def check(self, message: JobMessage) -> Checked:
        """Checks a message that the agent has sent, one of `SAID_BY_AGENTS`, and returns what may be believed of it."""
        return _CHECKS[type(message)](self, message)

    def unreadable(self, op: str, job_id: str | None, reason: str) -> Checked:
        """Returns what follows from a message that could not be read: the jobs that it was about fail."""
        if op == Tokens.__struct_config__.tag:
            job_ids = tuple(self._given)
        else:
            job_ids = (job_id,) if job_id is not None and job_id in self._given else ()
        failures = tuple(self._fail(job_id, reason) for job_id in job_ids)
        return Checked(failures, (reason,), suspends=True, stopped=job_ids)

    def _report(self, message: Report) -> Checked:
        told, faults = sound_report(message, self._former)
        if self._former is None or told.experts is not self._former.experts:
            self._context_tokens = {expert.model: expert.context_tokens for expert in told.experts}
        self._former = told
        return Checked((told,), faults)

    def _ticket_wanted(self, message: TicketWanted) -> Checked:
        return Checked((message,))

    # --- Words about jobs ---------------------------------------------------------------------------------------------

    def _started(self, message: JobStarted) -> Checked:
        fault = first_range_fault(
            ("prompt_tokens", message.prompt_tokens, MAX_TOKENS), ("queue_s", message.queue_s, MAX_SECONDS)
        )
        return Checked((message,)) if fault is None else Checked((), (fault,), suspends=True)

    def _tokens(self, message: Tokens) -> Checked:
        if len(message.jobs) > MAX_UNKNOWN_JOBS:
            unknown = sum(job.job_id not in self._given for job in message.jobs)
            if unknown > MAX_UNKNOWN_JOBS:
                return Checked((), (f"tokens of {unknown} jobs that it was never given",), suspends=True)
        faults: dict[str, str] = {}
        for job in message.jobs:
            if fault := self._pieces_fault(job):
                faults[job.job_id] = fault
        if not faults:
            return Checked((message,))
        sound = tuple(job for job in message.jobs if job.job_id not in faults)
        words: list[Report | FromAgent] = [Tokens(jobs=sound)] if sound else []
        words += [self._fail(job_id, fault) for job_id, fault in faults.items() if job_id in self._given]
        return Checked(tuple(words), tuple(faults.values()), suspends=True, stopped=tuple(faults))

    def _pieces_fault(self, job: JobPieces) -> str | None:
        if given := self._given.get(job.job_id):
            if not isinstance(given.job, Submit):
                return "tokens of a job that was not to write"
            given.n_pieces += len(job.pieces)
            if given.n_pieces > given.max_pieces:
                return f"{given.n_pieces} tokens where at most {given.max_pieces - 1} were asked for"
        for piece in job.pieces:
            if piece.logprob is None and not piece.hex and not piece.alternatives:
                continue  # It is a text alone, as most are.
            if piece.logprob is not None and not _is_logprob(piece.logprob):
                return f"a log-probability of {piece.logprob}"
            for other in piece.alternatives:
                if not _is_logprob(other.logprob):
                    return f"a log-probability of {other.logprob}"
            if not all(map(_is_hex, (piece.hex, *(other.hex or "" for other in piece.alternatives)))):
                return "a token's bytes that are no hexadecimal number"
        return None

    def _next_tokens(self, message: NextTokens) -> Checked:
        return self._needed(message, self._next_tokens_fault(message))

    def _next_tokens_fault(self, message: NextTokens) -> str | None:
        candidates = message.candidates
        if not candidates:
            return "no candidate for the next token"
        for candidate in candidates:
            if not _is_logprob(candidate.logprob):
                return f"a log-probability of {candidate.logprob}"
            if not 0 <= candidate.token < MAX_TOKENS or len(candidate.piece) > MAX_PIECE_BYTES:
                return f"a token {candidate.token} of {len(candidate.piece)} bytes"
        if len({candidate.token for candidate in candidates}) < len(candidates):
            return "the same next token twice"
        if sum(math.exp(candidate.logprob) for candidate in candidates) > MAX_MASS:
            return "next tokens with a probability above 1"
        given = self._given.get(message.job_id)
        if given is None:
            return None
        if not isinstance(given.job, FollowJob):
            return "next tokens of a job that was not to follow"
        if len(candidates) > given.job.most or not 0 <= message.step <= given.max_decoded:
            return f"{len(candidates)} candidates at step {message.step}"
        given.n_pieces = message.step
        return None

    def _vectors(self, message: Vectors) -> Checked:
        return self._needed(message, self._vectors_fault(message))

    def _vectors_fault(self, message: Vectors) -> str | None:
        if fault := vectors_fault(message.vectors):
            return fault
        given = self._given.get(message.job_id)
        if given is None:
            return None
        if not isinstance(given.job, EmbedJob):
            return "vectors of a job that was not to embed"
        given.n_vectors += len(message.vectors)
        asked = len(given.job.texts)
        return None if given.n_vectors <= asked else f"{given.n_vectors} vectors where {asked} were asked for"

    def _done(self, message: JobDone) -> Checked:
        given = self._given.get(message.job_id)
        if message.reason not in DONE_REASONS:
            return self._needed(message, f"an unknown reason for a job's end, {message.reason[:64]!r}")
        if message.stop is not None and not (
            given and isinstance(given.job, Submit) and message.stop in given.job.stop
        ):
            # A word that nobody has asked for is no reason for an end.
            message = replace(message, stop=None)
        if given and type(given.job) is ScoreJob and message.reason != "cancelled":
            return self._needed(message, "no scores where it was asked for them")
        if given and type(given.job) is EmbedJob and message.reason != "cancelled":
            asked = len(given.job.texts)
            if given.n_vectors < asked:
                return self._needed(message, f"{given.n_vectors} vectors where {asked} were asked for")
        return self._ended(message, message.usage)

    def _scored(self, message: JobScored) -> Checked:
        for score in message.scores:
            if not _is_logprob(score.logprob):
                return self._needed(message, f"a log-likelihood of {score.logprob}")
            if not (0 <= score.tokens <= MAX_TOKENS and 0 <= score.utf8_bytes <= MAX_TOKENS):
                return self._needed(message, f"a score over {score.tokens} tokens, {score.utf8_bytes} bytes")
        if given := self._given.get(message.job_id):
            asked = len(given.job.continuations) if isinstance(given.job, ScoreJob) else 0
            if len(message.scores) != asked:
                return self._needed(message, f"{len(message.scores)} scores where {asked} were asked for")
        return self._ended(message, message.usage)

    def _failed(self, message: JobFailed) -> Checked:
        code = message.code if message.code in _JOB_CODES else JobErrorCode.INTERNAL
        text = shown(message.message)
        if (code, text) != (message.code, message.message):
            message = replace(message, code=code, message=text)
        if message.usage is None:
            self._given.pop(message.job_id, None)
            return Checked((message,))
        return self._ended(message, message.usage)

    def _answered(self, message: CommandAnswer) -> Checked:
        """Returns the answer to a command, which may be one of an earlier connection: a host could not sleep after all.

        Whoever has sent the command knows its id.
        """
        code = message.code if message.code is None or message.code in _COMMAND_CODES else CommandErrorCode.INTERNAL
        return Checked((replace(shown(message), code=code),))

    def _ended(self, message: JobDone | JobScored | JobFailed, usage: JobUsage) -> Checked:
        """Returns the end of a job, with what can be believed of its usage."""
        given = self._given.pop(message.job_id, None)
        # A prompt that was refused for its length may be longer than the context.
        max_prompt = given.max_prompt if given and not isinstance(message, JobFailed) else MAX_TOKENS
        max_decoded = given.max_decoded if given else MAX_TOKENS
        faults: list[str] = []
        fields: dict[str, Any] = {}
        if fault := _counts_fault(usage, max_prompt, max_decoded):
            faults.append(fault)
            fields = {"prompt_tokens": None, "cached_tokens": 0, "decoded_tokens": given.n_pieces if given else 0}
            fields |= {"reasoning_tokens": None, "reasoning_j": None, "drafted_tokens": None, "accepted_tokens": None}
            fields |= {"model_drafted_tokens": None, "model_accepted_tokens": None}
        for name, seconds in (
            ("queue_s", usage.queue_s),
            ("prefill_s", usage.prefill_s),
            ("decode_s", usage.decode_s),
        ):
            if fault := range_fault(name, seconds, MAX_SECONDS):
                faults.append(fault)
                fields[name] = None
        joules = usage.energy.joules
        if fault := _energy_fault(usage.energy):
            faults.append(fault)
            fields |= {"energy": unmeasured(f"its agent's figure cannot be: {fault}"), "reasoning_j": None}
        elif fault := range_fault("reasoning_j", usage.reasoning_j, MAX_JOULES if joules is None else joules):
            faults.append(fault)
            fields["reasoning_j"] = None
        readable = shown(usage)
        if not faults and readable is usage:
            return Checked((message,))
        return Checked((replace(message, usage=replace(readable, **fields)),), tuple(faults), suspends=bool(faults))

    def _needed(self, message: JobWord, fault: str | None) -> Checked:
        """Returns the message, or the failure of its job where there is a fault: the job cannot do without it."""
        if fault is None:
            return Checked((message,))
        failures = (self._fail(message.job_id, fault),) if message.job_id in self._given else ()
        return Checked(failures, (fault,), suspends=True, stopped=(message.job_id,))

    def _fail(self, job_id: str, fault: str) -> JobFailed:
        """Returns the failure of a job whose agent cannot be believed, with unknown usage."""
        given = self._given.pop(job_id)
        return JobFailed(
            job_id=job_id,
            code=JobErrorCode.AGENT_BROKE_RULES,
            message=f"Its agent broke a rule: {fault}.",
            usage=JobUsage(decoded_tokens=given.n_pieces, energy=unmeasured(f"its agent broke a rule: {fault}")),
        )


_CHECKS: Mapping[type[Any], Callable[[AgentChecks, Any], Checked]] = {
    Report: AgentChecks._report,
    JobStarted: AgentChecks._started,
    Tokens: AgentChecks._tokens,
    NextTokens: AgentChecks._next_tokens,
    Vectors: AgentChecks._vectors,
    JobDone: AgentChecks._done,
    JobScored: AgentChecks._scored,
    JobFailed: AgentChecks._failed,
    CommandAnswer: AgentChecks._answered,
    TicketWanted: AgentChecks._ticket_wanted,
}
SAID_BY_AGENTS = _CHECKS.keys()
"""The kinds of messages that an agent may send; they are told apart by a table, as each word of a job comes by here."""


def _counts_fault(usage: JobUsage, max_prompt: int, max_decoded: int) -> str | None:
    prompt, decoded = usage.prompt_tokens, usage.decoded_tokens
    drafted, accepted = usage.drafted_tokens or 0, usage.accepted_tokens or 0
    by_model = usage.model_drafted_tokens or 0
    return first_range_fault(
        ("prompt_tokens", prompt, max_prompt),
        ("cached_tokens", usage.cached_tokens, MAX_TOKENS if prompt is None else prompt),
        ("decoded_tokens", decoded, max_decoded),
        ("reasoning_tokens", usage.reasoning_tokens, decoded),
        ("drafted_tokens", usage.drafted_tokens, MAX_TOKENS),
        ("accepted_tokens", usage.accepted_tokens, min(decoded, drafted)),
        ("model_drafted_tokens", usage.model_drafted_tokens, drafted),
        ("model_accepted_tokens", usage.model_accepted_tokens, min(by_model, accepted)),
    )


def _energy_fault(energy: Energy) -> str | None:
    marginal = energy.marginal_joules
    return first_range_fault(
        ("joules", energy.joules, MAX_JOULES),
        ("marginal_joules", None if marginal is None else abs(marginal), MAX_JOULES),
        ("idle_w", energy.idle_w, MAX_WATTS),
        ("coverage", energy.coverage, 1.0 + 1e-9),
        ("n_samples", energy.n_samples, MAX_FIGURE),
        ("max_gap_s", energy.max_gap_s, MAX_SECONDS),
    )


def vectors_fault(vectors: Sequence[bytes]) -> str | None:
    """Returns what is wrong with vectors that an agent has sent; None if nothing is."""
    sizes = {len(vector) for vector in vectors}
    if not sizes or max(sizes) > MAX_VECTOR_BYTES or any(size == 0 or size % FLOAT_BYTES for size in sizes):
        return f"vectors of {sorted(sizes)[-1:]} bytes"
    if any(not np.isfinite(np.frombuffer(vector, "<f4")).all() for vector in vectors):
        return "a vector with a number that is not finite"
    return None


def _is_hex(text: str) -> bool:
    return not text or (len(text) <= 2 * MAX_PIECE_BYTES and _HEX.fullmatch(text) is not None)


def _is_logprob(value: float) -> bool:
    return -math.inf < value <= MAX_LOGPROB


# --- Who it is --------------------------------------------------------------------------------------------------------


def hello_fault(hello: Hello) -> str | None:
    """Returns what is wrong with how an agent introduces itself; None if nothing is."""
    if not AGENT_ID.fullmatch(hello.agent_id):
        return f"its id {hello.agent_id[:MAX_NAME_CHARACTERS]!r} is not 1 to 64 letters, digits or . _ -"
    names = {
        "its name": hello.agent_name,
        "its version": hello.agent_version,
        "its instance id": hello.instance_id,
        "its host's name": hello.hostname,
    }
    return next((fault for what, name in names.items() if name is not None and (fault := name_fault(what, name))), None)
