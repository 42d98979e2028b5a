"""Admission of agents by the register, as a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.errors import Moe2Error
from moe2.common.link.enrolment import Refusal, digest
from moe2.coordinator.fleet.register import (
    STATIC_TOKEN,
    AgentRefusedError,
    EnrolledAgent,
    EnrolmentToken,
    Presented,
    ProvenIdentity,
    Register,
    add_token,
    admit,
    admit_all,
    forget_agent,
    refusal_of,
    revoke_agent,
    revoke_token,
)

NOW_S = 1_800_000_000.0
STATIC = digest("static")


def token(name: str = "t", secret: str = "tok", *, expires: float | None = None, uses: int | None = None) -> Register:
    made = EnrolmentToken(name=name, sha256=digest(secret), created_unix_s=0.0, expires_unix_s=expires, most_uses=uses)
    return add_token(Register(), made)


def first(agent_id: str = "a", bearer: str = "tok", secret: str = "own") -> Presented:
    return Presented(bearer=bearer, agent_id=agent_id, agent_name=f"name-{agent_id}", offered=secret)


def again(agent_id: str = "a", secret: str = "own") -> Presented:
    return Presented(bearer=secret, agent_id=agent_id, agent_name=f"name-{agent_id}")


def let_in(register: Register, presented: Presented, now_unix_s: float = NOW_S) -> tuple[ProvenIdentity, Register]:
    return admit(register, presented, static_token=STATIC, now_unix_s=now_unix_s)


def refused(register: Register, presented: Presented, now_unix_s: float = NOW_S) -> Refusal:
    with pytest.raises(AgentRefusedError) as raised:
        let_in(register, presented, now_unix_s)
    return raised.value.refusal


COMERS = st.builds(
    Presented,
    bearer=st.sampled_from(["tok", "static", "own", "other", "guessed"]),
    agent_id=st.sampled_from([None, "a", "b", "c"]),
    agent_name=st.just("name"),
    offered=st.sampled_from([None, "own", "other"]),
)


@given(several=st.lists(COMERS, max_size=8), uses=st.sampled_from([None, 1, 2]))
def test_whoever_comes_together_is_taken_one_after_the_other(several: list[Presented], uses: int | None) -> None:
    """What becomes of agents that come together, and of the register, is as if each had come after the one before."""
    register = token(uses=uses)
    alone: list[ProvenIdentity | Refusal] = []
    for presented in several:
        try:
            identity, register = let_in(register, presented)
        except AgentRefusedError as error:
            alone.append(error.refusal)
        else:
            alone.append(identity)
    outcomes, after = admit_all(token(uses=uses), several, static_token=STATIC, now_unix_s=NOW_S)
    assert [each.refusal if isinstance(each, AgentRefusedError) else each for each in outcomes] == alone
    assert after == register


def test_the_first_of_two_agents_with_one_id_counts() -> None:
    """A register that was written by hand with an id twice is read as one that was searched from its beginning."""
    one, two = (
        EnrolledAgent(agent_id="a", agent_name=name, sha256="", token="t", enrolled_unix_s=0.0) for name in ("1", "2")
    )
    assert Register(agents=(one, two)).agent("a") is one


# --- Enrolment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bearer", "named"), [("tok", "t"), ("static", STATIC_TOKEN)])
def test_a_token_enrols_a_new_agent(bearer: str, named: str) -> None:
    """A token made by command, or the configured one, enrols an agent, whose credential is then good without it."""
    identity, register = let_in(token(), first(bearer=bearer))
    [agent] = register.agents
    assert (agent.agent_id, agent.agent_name, agent.token) == ("a", "name-a", named)
    assert let_in(register, again()) == (identity, register)


def test_only_digests_are_kept() -> None:
    """The register holds digests only, so that its reader can neither enrol nor connect."""
    _, register = let_in(token(), first())
    assert "tok" not in repr(register).replace("token", "")
    assert "own" not in repr(register)


def test_a_lost_answer_loses_nothing() -> None:
    """The same first contact again is the same agent, and uses the token up no further."""
    identity, register = let_in(token(uses=1), first())
    assert let_in(register, first()) == (identity, register)


@pytest.mark.parametrize("bearer", ["tok", "static", "other"])
def test_a_token_does_not_take_over_an_enrolled_id(bearer: str) -> None:
    """A token does not take over an id that is enrolled already."""
    _, register = let_in(token(), first())
    refusal = refused(register, first(bearer=bearer, secret="stolen"))
    assert refusal is (Refusal.TOKEN_REFUSED if bearer == "other" else Refusal.IDENTITY_TAKEN)


def test_a_credential_is_good_for_its_own_id_only() -> None:
    """A credential does not open another agent's id."""
    _, register = let_in(token(), first("a", secret="of-a"))
    _, register = let_in(register, first("b", secret="of-b"))
    assert refused(register, again("b", secret="of-a")) is Refusal.CREDENTIAL_UNKNOWN
    assert refused(register, again("c", secret="of-a")) is Refusal.CREDENTIAL_UNKNOWN


def test_a_token_is_no_credential() -> None:
    """A token alone, without a credential to enrol, admits no agent that knows of credentials."""
    assert refused(token(), Presented(bearer="tok", agent_id="a")) is Refusal.CREDENTIAL_UNKNOWN


@pytest.mark.parametrize("bearer", ["", "wrong", digest("tok"), STATIC])
def test_what_is_no_token_is_refused(bearer: str) -> None:
    """Anything but a token is refused, including the digest that the register holds."""
    assert refused(token(), first(bearer=bearer)) is Refusal.TOKEN_REFUSED


def test_without_a_configured_token_none_is_configured() -> None:
    """An empty bearer does not match a configured token that is not there."""
    with pytest.raises(AgentRefusedError):
        admit(Register(), Presented(bearer=""), static_token=None, now_unix_s=NOW_S)


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_expires() -> None:
    """A token expires to the second; agents that it has enrolled stay."""
    register = token(expires=NOW_S)
    _, later = let_in(register, first(), NOW_S - 0.5)
    assert refused(register, first(), NOW_S) is Refusal.TOKEN_EXPIRED
    assert let_in(later, again(), NOW_S + 1e6)


def test_a_token_that_expires_enrols_nobody_while_the_clock_is_wrong() -> None:
    """While the clock is wrong a token that expires enrols nobody; tokens without an end do."""
    register = token(expires=NOW_S)
    assert refused(register, first(), 60.0) is Refusal.TOKEN_UNDECIDED
    _, later = let_in(register, first(), NOW_S - 1)
    assert let_in(later, again(), 60.0)
    assert let_in(token(), first(), 60.0)


@given(uses=st.integers(1, 5))
def test_a_token_enrols_as_many_agents_as_it_has_uses(uses: int) -> None:
    """A token enrols as many agents as it has uses, and not one more."""
    register = token(uses=uses)
    for number in range(uses):
        _, register = let_in(register, first(f"a{number}", secret=f"s{number}"))
    assert refused(register, first("late", secret="late")) is Refusal.TOKEN_USED_UP
    assert len(register.agents) == uses


def test_a_revoked_token_enrols_nobody() -> None:
    """A revoked token enrols nobody; agents that it has enrolled stay."""
    _, register = let_in(token(), first())
    _, register = revoke_token(register, "t", NOW_S)
    assert refused(register, first("b", secret="b")) is Refusal.TOKEN_REVOKED
    assert let_in(register, again())


def test_a_name_is_free_again_once_its_token_is_dead() -> None:
    """A new token may take the name of a dead one, but not that of one that can still enrol."""
    fresh = EnrolmentToken(name="t", sha256=digest("new"), created_unix_s=NOW_S)
    with pytest.raises(Moe2Error, match="There is a token 't' already"):
        add_token(token(), fresh)
    _, dead = revoke_token(token(), "t", NOW_S)
    assert add_token(dead, fresh).tokens == (fresh,)


def test_a_token_that_is_not_there_cannot_be_revoked() -> None:
    """Revoking a token that does not exist is an error."""
    with pytest.raises(Moe2Error, match="There is no token 'x'"):
        revoke_token(token(), "x", NOW_S)


# --- Revocation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("presented", [again(), first(), first(bearer="static")])
def test_a_revoked_agent_stays_out_also_with_a_token(presented: Presented) -> None:
    """A revoked agent stays out, even with a good token."""
    _, register = let_in(token(), first())
    _, register = revoke_agent(register, "a", NOW_S)
    assert refused(register, presented) is Refusal.CREDENTIAL_REVOKED
    assert refused(register, first(secret="another")) is Refusal.IDENTITY_TAKEN


def test_a_forgotten_agent_enrols_anew() -> None:
    """A forgotten agent enrols anew with a token and any credential."""
    _, register = let_in(token(), first())
    _, register = revoke_agent(register, "a", NOW_S)
    _, register = forget_agent(register, "a")
    assert refused(register, again()) is Refusal.CREDENTIAL_UNKNOWN
    assert let_in(register, first(secret="another"))


def test_a_connection_stands_as_long_as_its_credential() -> None:
    """A connection may stay until its credential is revoked, forgotten, or enrolled anew by another agent."""
    identity, register = let_in(token(), first())
    assert refusal_of(register, identity, "a") is None
    assert refusal_of(revoke_agent(register, "a", NOW_S)[1], identity, "a") is Refusal.CREDENTIAL_REVOKED
    _, without = forget_agent(register, "a")
    assert refusal_of(without, identity, "a") is Refusal.CREDENTIAL_UNKNOWN
    _, other = let_in(without, first(secret="another"))
    assert refusal_of(other, identity, "a") is Refusal.CREDENTIAL_UNKNOWN


def test_an_agent_is_who_its_credential_says() -> None:
    """The id that an agent says over the link must be that of its credential."""
    identity, register = let_in(token(), first())
    assert refusal_of(register, identity, "b") is Refusal.IDENTITY_MISMATCH


def test_an_older_agent_with_the_configured_token_is_whoever_is_not_enrolled() -> None:
    """An older agent with the configured token may have any id that has no credential."""
    identity, register = let_in(Register(), Presented(bearer="static"))
    assert register == Register()
    assert refusal_of(register, identity, "a") is None
    _, enrolled = let_in(register, first(bearer="static"))
    assert refusal_of(enrolled, identity, "a") is Refusal.CREDENTIAL_NEEDED


def test_an_older_agent_needs_the_configured_token() -> None:
    """An older agent needs the configured token; an enrolment token is to be exchanged for a credential."""
    assert refused(token(), Presented(bearer="tok")) is Refusal.TOKEN_REFUSED


@pytest.mark.parametrize("which", ["agent-12", "agent-1", "two"])
def test_an_agent_is_found_by_id_beginning_or_name(which: str) -> None:
    """An agent is found by its id, by the beginning of its id, and by its name."""
    register = Register()
    for agent_id, name in (("agent-12", "two"), ("b-3", "three")):
        presented = Presented(bearer="static", agent_id=agent_id, agent_name=name, offered=agent_id)
        _, register = let_in(register, presented)
    assert revoke_agent(register, which, NOW_S)[0].agent_id == "agent-12"


def test_an_ambiguous_beginning_names_the_candidates() -> None:
    """An ambiguous beginning of an id is refused with the ids that begin so."""
    _, register = let_in(Register(), first("agent-1", "static", "x"))
    _, register = let_in(register, first("agent-2", "static", "y"))
    with pytest.raises(Moe2Error, match="may mean 2 agents: agent-1, agent-2"):
        revoke_agent(register, "agent", NOW_S)
    with pytest.raises(Moe2Error, match="No agent 'z' is enrolled"):
        forget_agent(register, "z")
