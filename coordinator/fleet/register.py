"""The register of enrolment tokens and agents, and the rules by which it admits. PURE: changes return a new value.

Secrets are kept as digests only. All times are wall time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
from msgspec.structs import replace

from moe2.common.clock import is_clock_wrong
from moe2.common.errors import Moe2Error
from moe2.common.link.enrolment import Refusal, digest, is_same

STATIC_TOKEN = "agents.token_file"  # noqa: S105 - a name
"""The name of the token that is listed for agents that enrolled with the configured one."""


class EnrolmentToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token that may enrol agents. None: it never expires, or has any number of uses."""

    name: str
    sha256: str
    created_unix_s: float
    expires_unix_s: float | None = None
    most_uses: int | None = None
    n_used: int = 0
    revoked_unix_s: float | None = None

    def refusal(self, now_unix_s: float) -> Refusal | None:
        """Returns why the token can enrol no agent now; None if it can."""
        if self.revoked_unix_s is not None:
            return Refusal.TOKEN_REVOKED
        if self.expires_unix_s is not None:
            if is_clock_wrong(now_unix_s, written_unix_s=self.created_unix_s):
                return Refusal.TOKEN_UNDECIDED
            if now_unix_s >= self.expires_unix_s:
                return Refusal.TOKEN_EXPIRED
        if self.most_uses is not None and self.n_used >= self.most_uses:
            return Refusal.TOKEN_USED_UP
        return None


class EnrolledAgent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An enrolled agent and the digest of its credential. token: the name of the token that enrolled it."""

    agent_id: str
    agent_name: str
    sha256: str
    token: str
    enrolled_unix_s: float
    revoked_unix_s: float | None = None


class Register(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """Everything that is kept about who may connect."""

    tokens: tuple[EnrolmentToken, ...] = ()
    agents: tuple[EnrolledAgent, ...] = ()

    def agent(self, agent_id: str) -> EnrolledAgent | None:
        """Returns the agent of this id; None if it is not enrolled."""
        return self._by_id.get(agent_id)

    @cached_property
    def _by_id(self) -> dict[str, EnrolledAgent]:
        return {agent.agent_id: agent for agent in reversed(self.agents)}


@dataclass(frozen=True)
class Presented:
    """The credentials that a connecting agent showed."""

    bearer: str
    """The bearer token of its request: an enrolment token or a credential."""
    agent_id: str | None = None
    """The agent's id; None from agents that know of no credentials."""
    agent_name: str = ""
    offered: str | None = None
    """The secret that the agent wants to be known by."""


@dataclass(frozen=True)
class ProvenIdentity:
    """The identity that an admitted agent has proven. Both fields are None where it showed a token alone."""

    agent_id: str | None = None
    sha256: str | None = None
    """The digest of the agent's credential."""


class AgentRefusedError(Exception):
    """An agent may not connect."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


# --- Agents -----------------------------------------------------------------------------------------------------------


def admit(
    register: Register, presented: Presented, *, static_token: str | None, now_unix_s: float
) -> tuple[ProvenIdentity, Register]:
    """Admits an agent, and enrols it if it is new. Raises `AgentRefusedError`.

    static_token: the digest of the configured token, which may always enrol; None where none is configured.
    """
    [outcome], after = admit_all(register, (presented,), static_token=static_token, now_unix_s=now_unix_s)
    if isinstance(outcome, AgentRefusedError):
        raise outcome
    return outcome, after


def admit_all(
    register: Register, several: Sequence[Presented], *, static_token: str | None, now_unix_s: float
) -> tuple[tuple[ProvenIdentity | AgentRefusedError, ...], Register]:
    """Admits agents one after the other as `admit` does, and returns what became of each, in their order.

    The register is only copied once, so that a thousand agents that come together take no longer than as many alone.
    """
    tokens = list(register.tokens)
    enrolled: dict[str, EnrolledAgent] = {}
    outcomes: list[ProvenIdentity | AgentRefusedError] = []
    for presented in several:
        known = None
        if presented.agent_id is not None:
            known = enrolled.get(presented.agent_id) or register.agent(presented.agent_id)
        try:
            agent = _enrolled(tokens, known, presented, static_token=static_token, now_unix_s=now_unix_s)
        except AgentRefusedError as error:
            outcomes.append(error)
            continue
        outcomes.append(ProvenIdentity() if agent is None else ProvenIdentity(agent.agent_id, agent.sha256))
        if agent is not None and agent is not known:
            enrolled[agent.agent_id] = agent
    if not enrolled:
        return tuple(outcomes), register
    after = replace(register, tokens=tuple(tokens), agents=(*register.agents, *enrolled.values()))
    return tuple(outcomes), after


def _enrolled(
    tokens: list[EnrolmentToken],
    known: EnrolledAgent | None,
    presented: Presented,
    *,
    static_token: str | None,
    now_unix_s: float,
) -> EnrolledAgent | None:
    """Returns `known`, or the agent that is enrolled now, with its use counted in `tokens`; None where a token alone
    was shown. Raises `AgentRefusedError`."""
    shown = digest(presented.bearer)
    is_static = static_token is not None and is_same(shown, static_token)
    if presented.agent_id is None:
        if not is_static:
            raise AgentRefusedError(Refusal.TOKEN_REFUSED)
        return None
    offered = None if presented.offered is None else digest(presented.offered)
    if known is not None and (is_same(shown, known.sha256) or (offered is not None and is_same(offered, known.sha256))):
        if known.revoked_unix_s is not None:
            raise AgentRefusedError(Refusal.CREDENTIAL_REVOKED)
        return known
    if offered is None:
        raise AgentRefusedError(Refusal.CREDENTIAL_UNKNOWN)
    token = _token(tokens, shown)
    if not is_static:
        if token is None:
            raise AgentRefusedError(Refusal.TOKEN_REFUSED)
        if refusal := token.refusal(now_unix_s):
            raise AgentRefusedError(refusal)
    if known is not None:
        raise AgentRefusedError(Refusal.IDENTITY_TAKEN)
    if token is not None and not is_static:
        tokens[tokens.index(token)] = replace(token, n_used=token.n_used + 1)
    return EnrolledAgent(
        agent_id=presented.agent_id,
        agent_name=presented.agent_name,
        sha256=offered,
        token=token.name if token and not is_static else STATIC_TOKEN,
        enrolled_unix_s=now_unix_s,
    )


def refusal_of(register: Register, identity: ProvenIdentity, agent_id: str) -> Refusal | None:
    """Returns why a connection with this proven identity may not be, or stay, that of `agent_id`; None if it may."""
    known = register.agent(agent_id)
    if identity.agent_id is None:
        return None if known is None else Refusal.CREDENTIAL_NEEDED
    if identity.agent_id != agent_id:
        return Refusal.IDENTITY_MISMATCH
    if known is None or identity.sha256 is None or not is_same(known.sha256, identity.sha256):
        return Refusal.CREDENTIAL_UNKNOWN
    return Refusal.CREDENTIAL_REVOKED if known.revoked_unix_s is not None else None


def revoke_agent(register: Register, which: str, now_unix_s: float) -> tuple[EnrolledAgent, Register]:
    """Bars an agent until it is forgotten. Raises `Moe2Error` where `which` names no agent, or several."""
    agent = _find(register, which)
    if agent.revoked_unix_s is not None:
        return agent, register
    revoked = replace(agent, revoked_unix_s=now_unix_s)
    agents = tuple(revoked if each is agent else each for each in register.agents)
    return revoked, replace(register, agents=agents)


def forget_agent(register: Register, which: str) -> tuple[EnrolledAgent, Register]:
    """Removes an agent, so that whoever has a good token may enrol under its id again.

    Raises `Moe2Error` where `which` names no agent, or several.
    """
    agent = _find(register, which)
    return agent, replace(register, agents=tuple(each for each in register.agents if each is not agent))


def _find(register: Register, which: str) -> EnrolledAgent:
    """Returns the agent with this id, with this name, or with an id that begins so unambiguously."""
    by_id = register.agent(which)
    found = [by_id] if by_id else [agent for agent in register.agents if agent.agent_name == which]
    found = found or [agent for agent in register.agents if agent.agent_id.startswith(which)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(agent.agent_id for agent in found)
        raise Moe2Error(f"{which!r} may mean {len(found)} agents: {ids}.", remedy="Name one by its id.")
    raise Moe2Error(f"No agent {which!r} is enrolled.", remedy="`moe2-coordinator agents list` shows them.")


# --- Tokens -----------------------------------------------------------------------------------------------------------


def add_token(register: Register, token: EnrolmentToken) -> Register:
    """Adds a token, in the place of one of that name that can enrol no more.

    Raises `Moe2Error` if a token of that name still can.
    """
    former = next((each for each in register.tokens if each.name == token.name), None)
    if former is not None and former.refusal(token.created_unix_s) is None:
        raise Moe2Error(f"There is a token {token.name!r} already.", remedy="Revoke it, or choose another name.")
    return replace(register, tokens=(*(each for each in register.tokens if each is not former), token))


def revoke_token(register: Register, name: str, now_unix_s: float) -> tuple[EnrolmentToken, Register]:
    """Revokes a token; agents that it has enrolled stay enrolled. Raises `Moe2Error` if there is none of that name."""
    token = next((each for each in register.tokens if each.name == name), None)
    if token is None:
        raise Moe2Error(f"There is no token {name!r}.", remedy="`moe2-coordinator agents enrol-token list` shows them.")
    revoked = token if token.revoked_unix_s is not None else replace(token, revoked_unix_s=now_unix_s)
    return revoked, replace(register, tokens=tuple(revoked if each is token else each for each in register.tokens))


def _token(tokens: Sequence[EnrolmentToken], shown: str) -> EnrolmentToken | None:
    """Returns the token that was shown. Every token is compared, so that the time tells nothing."""
    found = None
    for token in tokens:
        if is_same(shown, token.sha256):
            found = token
    return found
