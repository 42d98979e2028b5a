"""Errors with a code, a message for a person, and a remedy. One list of codes for the whole product."""

from __future__ import annotations

import errno
from enum import StrEnum


class JobErrorCode(StrEnum):
    """Why a job failed, as agents report it and the coordinator acts on it."""

    CONTEXT_EXCEEDED = "context_exceeded"
    """The prompt, or prompt and `max_tokens`, do not fit the expert's context. The request is at fault."""
    INVALID_REQUEST = "invalid_request"
    """The request cannot be served as written. The request is at fault."""
    INVALID_GRAMMAR = "invalid_grammar"
    """The grammar or schema that the answer is to follow cannot be used. The request is at fault."""
    UNKNOWN_EXPERT = "unknown_expert"
    """This agent does not serve that expert (any more)."""
    QUEUE_FULL = "queue_full"
    """The agent's queue is full."""
    DRAINING = "draining"
    """The agent is shutting down and takes no new work."""
    NOT_READY = "not_ready"
    """The expert's model is not loaded (yet)."""
    ENGINE_CRASHED = "engine_crashed"
    """The llama.cpp process died."""
    CRASH_SUSPECTED = "crash_suspected"
    """Engines died or hung while they worked on the request, so it is not tried again. Set by the coordinator."""
    OUT_OF_MEMORY = "out_of_memory"
    """llama.cpp could not get memory for this batch."""
    AGENT_LOST = "agent_lost"
    """The link to the agent broke. Set by the coordinator."""
    AGENT_BROKE_RULES = "agent_broke_rules"
    """The agent said what cannot be, so that its answer is not believed. Set by the coordinator."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The request's time is up."""
    INTERNAL = "internal"
    """A defect of moe2."""


class CommandErrorCode(StrEnum):
    """Why an agent did not do what it was commanded to (`moe2.common.link.messages.CommandAnswer`)."""

    NOT_ALLOWED = "not_allowed"
    """The agent's configuration does not allow it."""
    NOT_POSSIBLE = "not_possible"
    """This host cannot do it."""
    UNKNOWN_MODEL = "unknown_model"
    """This agent does not serve that model."""
    BUSY = "busy"
    """Jobs run or have come, and nothing that runs is cut off."""
    DRAINING = "draining"
    """The agent is shutting down."""
    SUPERSEDED = "superseded"
    """A later command asks for something else."""
    LOAD_FAILED = "load_failed"
    """The model could not be brought into memory."""
    FETCH_FAILED = "fetch_failed"
    """A model could not be fetched, or was not what it should have been."""
    SUSPEND_FAILED = "suspend_failed"
    """The host was asked to suspend and stayed awake."""
    INTERNAL = "internal"
    """A defect of moe2, or a code of a later release."""


class LinkCode(StrEnum):
    """Why a message on the link was not understood, or a session ended. Refusals of an identity have codes of their own
    (`moe2.common.link.enrolment.Refusal`)."""

    FRAME_TOO_LARGE = "frame_too_large"
    MALFORMED_FRAME = "malformed_frame"
    """The bytes are no message at all: nothing after them can be trusted."""
    FRAME_OUT_OF_ORDER = "frame_out_of_order"
    UNKNOWN_OP = "unknown_op"
    """A newer peer's word."""
    INVALID_MESSAGE = "invalid_message"
    """A known op with fields that it does not allow."""
    UNSOUND = "unsound"
    """A message of the right types that says what cannot be."""
    TOO_MANY_FAULTS = "too_many_faults"
    UNEXPECTED_MESSAGE = "unexpected_message"
    PROTOCOL_VERSION = "protocol_version"
    """The two ends have no version of the protocol in common."""
    INVALID_HELLO = "invalid_hello"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    SILENT = "silent"
    UNREAD = "unread"
    """The peer is alive, and reads nothing."""
    GOODBYE = "goodbye"
    SESSION_NOT_OPEN = "session_not_open"
    PROTOCOL_ERROR = "protocol_error"


REQUEST_FAULTS = frozenset({JobErrorCode.CONTEXT_EXCEEDED, JobErrorCode.INVALID_REQUEST, JobErrorCode.INVALID_GRAMMAR})
"""Codes that blame the request itself: what an operator could mend does not come into it."""


class Moe2Error(Exception):
    """Base of moe2's errors. `str()` is one sentence for a person; `remedy` says what to do."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class ProtocolError(Moe2Error):
    """Bytes or messages that break the wire protocol."""

    def __init__(self, message: str, *, code: str = LinkCode.PROTOCOL_ERROR, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class ConfigError(Moe2Error):
    """A configuration that cannot be used; lists every fault found, not only the first."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


_DISK_REMEDIES = {
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Make room within the disk quota of the user.",
    errno.EROFS: "Name a place on a file system that can be written to.",
}


def file_remedy(error: OSError | UnicodeError, otherwise: str) -> str:
    """Return what to do about a file that cannot be used; `otherwise` where its disk is not the cause."""
    cause = error.errno if isinstance(error, OSError) else None
    return _DISK_REMEDIES.get(cause or 0, otherwise)
