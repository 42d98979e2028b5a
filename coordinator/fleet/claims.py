"""Claims to an agent id: which of two connections with the same id keeps it. PURE.

An agent that has lost its link comes back before its old connection is known to be dead, so that a second connection is
no sign of a second host. The id of the process in its hello tells: the same process has only one link, and the newer
one is it. For any other process the holder is asked whether it is alive; if it is, it keeps the id.

Events and monotonic seconds come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.enrolment import WHY, Refusal
from moe2.common.link.messages import Hello

PROBE_S = 2.0
"""A holder that says nothing for this long after it was asked is taken for dead."""
ONE_RECONNECT_S = 30.0
"""The time within which the same process may replace its own connection once without its holder being asked.

If it does so twice, there may be two: a running virtual machine was cloned with its memory.
"""
WARNED_S = 300.0
"""The time for which a refused claim is warned of: several times as long as a refused agent waits to ask again."""


@dataclass(frozen=True)
class Claimant:
    """A connection that claims an agent id. address: where it comes from, None if unknown."""

    hello: Hello
    address: str | None

    def __str__(self) -> str:
        known = [text for text in (self.hello.hostname, self.address) if text]
        return f"{self.hello.agent_name} ({', '.join(known)})" if known else self.hello.agent_name


class Verdict(Enum):
    """The decision about a connection that claims an agent id."""

    WELCOME = auto()
    REPLACE = auto()
    """The holder is the same process, whose old connection is dead."""
    ASK_HOLDER = auto()


@dataclass(frozen=True)
class _Refused:
    holder: Claimant
    claimant: Claimant
    at_s: float


class Claims:
    """The decisions about claimed agent ids, and the warnings about those that were refused."""

    def __init__(self) -> None:
        self._replaced_s: dict[str, float] = {}
        self._refused: dict[str, _Refused] = {}

    def verdict(self, claimant: Claimant, holder: Claimant | None, now_s: float) -> Verdict:
        """Decides what to do about a claim. holder: the connection that has the id now, None if there is none."""
        if holder is None:
            return Verdict.WELCOME
        instance_id = claimant.hello.instance_id
        if instance_id is None or instance_id != holder.hello.instance_id:
            return Verdict.ASK_HOLDER
        replaced_s = self._replaced_s.get(claimant.hello.agent_id)
        is_again = replaced_s is not None and now_s - replaced_s < ONE_RECONNECT_S
        return Verdict.ASK_HOLDER if is_again else Verdict.REPLACE

    def replaced(self, agent_id: str, now_s: float) -> None:
        """Notes that a claimant has taken the holder's place."""
        self._replaced_s = {
            known: at_s for known, at_s in self._replaced_s.items() if now_s - at_s < ONE_RECONNECT_S
        } | {agent_id: now_s}

    def refused(self, claimant: Claimant, holder: Claimant, now_s: float) -> tuple[str, str]:
        """Notes that a claim was refused as the holder is alive; returns the message and the remedy to tell."""
        self._refused[claimant.hello.agent_id] = _Refused(holder, claimant, now_s)
        message, remedy = WHY[Refusal.AGENT_ID_SHARED]
        return f"{message} It is {holder}; this one is {claimant}.", remedy

    def warnings(self, now_s: float) -> list[HealthWarning]:
        """Returns a warning for each agent id that two hosts have claimed lately."""
        self._refused = {
            agent_id: refused for agent_id, refused in self._refused.items() if now_s - refused.at_s < WARNED_S
        }
        return [
            HealthWarning(
                code=Refusal.AGENT_ID_SHARED.value,
                severity=Severity.DEGRADED,
                message=f"Two hosts claim {agent_id}: {refused.holder} has it, {refused.claimant} was refused.",
                remedy=WHY[Refusal.AGENT_ID_SHARED][1],
            )
            for agent_id, refused in self._refused.items()
        ]
