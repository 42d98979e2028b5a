"""Which requests may be what kills engines, and on which terms they are tried again. PURE. Decision 0014.

A job that was in an engine's batch when the engine died, or hung, makes its request a suspect. A suspect works alone:
its second trial is on an engine where nobody else is, so that a second death hits nobody else and leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import EmbedJob, Job, Submit
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Failed
from moe2.coordinator.serving.request import uses_tools

MAX_DEATHS = 2
"""A request with so many engines' deaths behind it is not tried again, whatever it is."""


def is_custom(job: Job) -> bool:
    """True for a job with a grammar, a schema or tools of its client's: the likeliest to bring an engine down."""
    if isinstance(job, EmbedJob):
        return False
    return (isinstance(job, Submit) and not job.is_free) or uses_tools(job.prompt)


def is_suspect(attempts: Iterable[Attempt]) -> bool:
    """True for a request whose engine died with it in the batch, or has been silent for so long that it may hang."""
    return any(attempt.died_with or attempt.hangs for attempt in attempts)


def has_downed_an_engine(attempts: Sequence[Attempt]) -> bool:
    """True for a request whose engine died with it in the batch, or did not even confirm that it had been stopped.

    One that was only late is none: it may have waited for its turn.
    """
    return any(attempt.died_with or (attempt.hangs and attempt.state is AttemptState.LOST) for attempt in attempts)


def isolated_until(attempts: Sequence[Attempt]) -> int | None:
    """How many tokens a new attempt has to write alone, 0 being its first sign of progress; None: it may have company.

    Whoever has come further than where the engine died is not likely to be what killed it.
    """
    reached = [attempt.n_tokens for attempt in attempts if attempt.died_with or attempt.hangs]
    return max(reached, default=None)


def verdict(attempts: Sequence[Attempt]) -> Failed | None:
    """What the client is told if the request must not be tried again; None where it may."""
    died = [attempt for attempt in attempts if attempt.died_with]
    if len(died) < MAX_DEATHS and not any(attempt.is_custom for attempt in died):
        return None
    if len(died) == 1:
        text = (
            f"The engine of {died[0].expert.agent_name} died while it worked on this request, and the request brings "
            "its own grammar, schema or tools, which may be the cause: it is not tried again. Simplify them, or leave "
            "them out."
        )
    else:
        names = " and ".join(dict.fromkeys(attempt.expert.agent_name for attempt in died))
        text = (
            f"{len(died)} engines died while they worked on this request (on {names}): it may be the cause, and is not "
            "tried again. Change the request before you send it again."
        )
    return Failed(JobErrorCode.CRASH_SUSPECTED, f"{text} The engine's last words: {died[-1].error}")


def restarts_seen(attempts: Sequence[Attempt]) -> dict[str, int]:
    """Experts whose engine died under the request, or was down, by key, and their restarts as the request knew them.

    With other restarts to its name the engine is a new one, and may be asked again. One that failed the request in
    another way, too, is left out.
    """
    if not attempts:
        return {}
    failed_otherwise = {attempt.expert.key for attempt in attempts if not attempt.is_engines_fault}
    return {
        attempt.expert.key: attempt.expert.report.restarts
        for attempt in attempts
        if attempt.expert.key not in failed_otherwise
    }
