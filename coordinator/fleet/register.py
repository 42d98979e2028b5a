"""The register of enrolment tokens and agents, and who is admitted by it. PURE: a value, `now`, and a new value.

Secrets are here as digests only. All times are wall time.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from moe2.common.clock import is_clock_wrong
from moe2.common.errors import Moe2Error
from moe2.common.link.enrolment import Refusal, digest, is_same

STATIC_TOKEN = "agents.token_file"  # noqa: S105 - a name
"""Under which name agents are listed that enrolled with the configured token."""


class EnrolmentToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token that may enrol agents. None: never expires, any number of uses."""

    name: str
    sha256: str
    created_unix_s: float
    expires_unix_s: float | None = None
    most_uses: int | None = None
    n_used: int = 0
    revoked_unix_s: float | None = None

    def refusal(self, now_unix_s: float) -> Refusal | None:
        """Why it can enrol no agent now; None if it can."""
        if self.revoked_unix_s is not None:
            return Refusal.TOKEN_REVOKED
        if self.expires_unix_s is not None:
            if now_unix_s >= self.expires_unix_s:
                return Refusal.TOKEN_EXPIRED
            if is_clock_wrong(now_unix_s, written_unix_s=self.created_unix_s):
                return Refusal.TOKEN_UNDECIDED
        if self.most_uses is not None and self.n_used >= self.most_uses:
            return Refusal.TOKEN_USED_UP
        return None


class EnrolledAgent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An agent and the digest of its credential. token: the name of the one that enrolled it."""

    agent_id: str
    agent_name: str
    sha256: str
    token: str
    enrolled_unix_s: float
    revoked_unix_s: float | None = None


class Register(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is kept about who may connect."""

    tokens: tuple[EnrolmentToken, ...] = ()
    agents: tuple[EnrolledAgent, ...] = ()

    def agent(self, agent_id: str) -> EnrolledAgent | None:
        return next((agent for agent in self.agents if agent.agent_id == agent_id), None)


@dataclass(frozen=True)
class Presented:
    """What a connecting agent showed.

    bearer: a token or a credential. agent_id: None from agents that know of no credentials. offered: the secret that
    the agent wants to be known by.
    """

    bearer: str
    agent_id: str | None = None
    agent_name: str = ""
    offered: str | None = None


@dataclass(frozen=True)
class Admission:
    """Who was let in. agent_id and sha256 (of its credential) are None where a token alone was shown."""

    agent_id: str | None = None
    sha256: str | None = None


class AdmissionRefusedError(Exception):
    """The agent is turned away."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


# --- Agents -----------------------------------------------------------------------------------------------------------


def admit(
    register: Register, presented: Presented, *, static_token: str | None, now_unix_s: float
) -> tuple[Admission, Register]:
    """Let an agent in, and enrol it if it is new. Raises `AdmissionRefusedError`.

    static_token: the digest of the configured token, which may always enrol; None where none is configured.
    """
    shown = digest(presented.bearer)
    is_static = static_token is not None and is_same(shown, static_token)
    if presented.agent_id is None:
        if not is_static:
            raise AdmissionRefusedError(Refusal.TOKEN_REFUSED)
        return Admission(), register
    known = register.agent(presented.agent_id)
    offered = None if presented.offered is None else digest(presented.offered)
    if known is not None and (is_same(shown, known.sha256) or (offered is not None and is_same(offered, known.sha256))):
        if known.revoked_unix_s is not None:
            raise AdmissionRefusedError(Refusal.CREDENTIAL_REVOKED)
        return Admission(known.agent_id, known.sha256), register
    if offered is None:
        raise AdmissionRefusedError(Refusal.CREDENTIAL_UNKNOWN)
    token = _token(register, shown)
    if not is_static:
        if token is None:
            raise AdmissionRefusedError(Refusal.TOKEN_REFUSED)
        if refusal := token.refusal(now_unix_s):
            raise AdmissionRefusedError(refusal)
    if known is not None:
        raise AdmissionRefusedError(Refusal.IDENTITY_TAKEN)
    agent = EnrolledAgent(
        agent_id=presented.agent_id,
        agent_name=presented.agent_name,
        sha256=offered,
        token=token.name if token and not is_static else STATIC_TOKEN,
        enrolled_unix_s=now_unix_s,
    )
    tokens = register.tokens
    if token is not None and not is_static:
        tokens = tuple(replace(each, n_used=each.n_used + 1) if each is token else each for each in tokens)
    return Admission(agent.agent_id, offered), replace(register, tokens=tokens, agents=(*register.agents, agent))


def standing(register: Register, admission: Admission, agent_id: str) -> Refusal | None:
    """Why a connection that was admitted may not be, or stay, that of `agent_id`; None if it may."""
    known = register.agent(agent_id)
    if admission.agent_id is None:
        return None if known is None else Refusal.CREDENTIAL_NEEDED
    if admission.agent_id != agent_id:
        return Refusal.IDENTITY_MISMATCH
    if known is None or admission.sha256 is None or not is_same(known.sha256, admission.sha256):
        return Refusal.CREDENTIAL_UNKNOWN
    return Refusal.CREDENTIAL_REVOKED if known.revoked_unix_s is not None else None


def revoke_agent(register: Register, which: str, now_unix_s: float) -> tuple[EnrolledAgent, Register]:
    """Bar an agent until it is forgotten. Raises `Moe2Error` where `which` names none, or several."""
    agent = _find(register, which)
    if agent.revoked_unix_s is not None:
        return agent, register
    revoked = replace(agent, revoked_unix_s=now_unix_s)
    agents = tuple(revoked if each is agent else each for each in register.agents)
    return revoked, replace(register, agents=agents)


def forget_agent(register: Register, which: str) -> tuple[EnrolledAgent, Register]:
    """Remove an agent: whoever has a good token may enrol under its id again. Raises `Moe2Error` as above."""
    agent = _find(register, which)
    return agent, replace(register, agents=tuple(each for each in register.agents if each is not agent))


def _find(register: Register, which: str) -> EnrolledAgent:
    """By id, by name, or by an unambiguous beginning of the id."""
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
    """Raises `Moe2Error` if a token of that name can still enrol; a dead one is replaced."""
    former = next((each for each in register.tokens if each.name == token.name), None)
    if former is not None and former.refusal(token.created_unix_s) is None:
        raise Moe2Error(f"There is a token {token.name!r} already.", remedy="Revoke it, or choose another name.")
    return replace(register, tokens=(*(each for each in register.tokens if each is not former), token))


def revoke_token(register: Register, name: str, now_unix_s: float) -> tuple[EnrolmentToken, Register]:
    """Agents that it has enrolled stay enrolled. Raises `Moe2Error` if there is none of that name."""
    token = next((each for each in register.tokens if each.name == name), None)
    if token is None:
        raise Moe2Error(f"There is no token {name!r}.", remedy="`moe2-coordinator agents enrol-token list` shows them.")
    revoked = token if token.revoked_unix_s is not None else replace(token, revoked_unix_s=now_unix_s)
    return revoked, replace(register, tokens=tuple(revoked if each is token else each for each in register.tokens))


def _token(register: Register, shown: str) -> EnrolmentToken | None:
    """Every token is compared, so that the time tells nothing."""
    found = None
    for token in register.tokens:
        if is_same(shown, token.sha256):
            found = token
    return found
