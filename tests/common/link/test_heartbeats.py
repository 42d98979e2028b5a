"""Heartbeats: pings, round trips, and peers that have gone silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.messages import (
    Ping,
    Pong,
)
from moe2.common.link.session import (
    LATER,
    RTT_HEARTBEATS,
    Closed,
    RttMeasured,
    Session,
)
from tests.common.link.sessions import (
    HEARTBEAT_S,
    HELLO,
    REPORT,
    UNKNOWN_OP,
    coordinator_session,
    joined,
    open_agent,
    say,
    sent,
)


def quiet_s(session: Session) -> float:
    """The seconds after which this end asks a quiet peer."""
    return (session.quiet_heartbeats + LATER) * HEARTBEAT_S


def test_a_session_pings_at_once_and_then_when_the_peer_is_quiet(opened: Session) -> None:
    """The first ping gives a first round trip, later ones keep the link alive, a little later than a report comes."""
    assert opened.next_deadline_s == 0.0
    assert opened.tick(0.0) == []
    assert sent(opened) == [Ping(seq=1)]
    assert opened.next_deadline_s == quiet_s(opened)
    opened.tick(quiet_s(opened) - 0.001)
    assert sent(opened) == []
    opened.tick(quiet_s(opened))
    assert sent(opened) == [Ping(seq=2)]


def test_a_peer_that_talks_is_asked_seldom(opened: Session) -> None:
    """Each word puts the next ping off, but no further than to the fourth heartbeat: the round trip changes."""
    last_s = (RTT_HEARTBEATS + LATER) * HEARTBEAT_S
    opened.tick(0.0)
    opened.take_frames()
    opened.receive(UNKNOWN_OP, 0.6 * HEARTBEAT_S)
    opened.take_frames()
    assert opened.next_deadline_s == 0.6 * HEARTBEAT_S + quiet_s(opened)
    for heartbeats in (1.5, 2.5, 3.5):
        opened.receive(UNKNOWN_OP, heartbeats * HEARTBEAT_S)
        opened.take_frames()
    opened.tick(last_s - 0.001)
    assert sent(opened) == []
    opened.tick(last_s)
    assert sent(opened) == [Ping(seq=2)]


def test_a_question_goes_with_a_report_and_with_an_answer() -> None:
    """Each host wakes once for both, in place of twice; who was asked or heard just now is not asked."""
    agent = open_agent()
    agent.tick(0.0)
    agent.take_frames()
    agent.send(REPORT, HEARTBEAT_S)
    assert sent(agent) == [REPORT]
    agent.send(REPORT, 2 * HEARTBEAT_S)
    assert sent(agent) == [REPORT, Ping(seq=2)]
    say(agent, Pong(seq=2), 2 * HEARTBEAT_S)
    assert agent.next_deadline_s == 2 * HEARTBEAT_S + quiet_s(agent)
    say(agent, Ping(seq=1), 2.5 * HEARTBEAT_S)
    assert sent(agent) == [Pong(seq=1)]
    say(agent, Ping(seq=2), 6 * HEARTBEAT_S)
    assert sent(agent) == [Pong(seq=2), Ping(seq=3)]


def test_an_idle_agent_asks_with_its_reports_alone() -> None:
    """Reports that come once a heartbeat, a little late each time, leave nothing for the timer to ask."""
    agent, coordinator = joined()
    n_wakes = 0
    for number in range(20):
        now_s = number * 1.01 * HEARTBEAT_S
        for end in (agent, coordinator):
            while (due_s := end.next_deadline_s) is not None and due_s <= now_s:
                end.tick(due_s)
                n_wakes += end.has_frames
        agent.send(REPORT, now_s)
        while agent.has_frames or coordinator.has_frames:
            for one, other in ((agent, coordinator), (coordinator, agent)):
                for frame in one.take_frames():
                    other.receive(frame, now_s)
    assert n_wakes == 2, "only what both ask at the beginning, for the first round trip, wakes them apart"


def test_a_probe_asks_a_peer_that_has_just_talked(opened: Session) -> None:
    """Whoever has to know whether the peer is alive does not wait for a heartbeat."""
    opened.tick(0.0)
    opened.receive(UNKNOWN_OP, 1.0)
    opened.take_frames()
    opened.probe(1.0)
    opened.tick(1.0)
    assert sent(opened) == [Ping(seq=2)]


def test_a_ping_is_answered_with_its_number(opened: Session) -> None:
    """The peer measures its own round trip by it."""
    assert say(opened, Ping(seq=42)) == []
    assert sent(opened) == [Pong(seq=42)]


def test_a_pong_measures_the_round_trip_once(opened: Session) -> None:
    """From the ping's departure to its pong; a second pong of the same number says nothing."""
    opened.tick(1.0)
    assert say(opened, Pong(seq=1), 1.25) == [RttMeasured(0.25)]
    assert say(opened, Pong(seq=1), 1.5) == []


def test_a_pong_nobody_asked_for_is_ignored(opened: Session) -> None:
    """A late pong of an earlier ping would give a wrong round trip."""
    opened.tick(0.0)
    opened.tick(quiet_s(opened))
    assert say(opened, Pong(seq=1), quiet_s(opened)) == []


def test_a_silent_peer_is_given_up(opened: Session) -> None:
    """After three heartbeats without a word of an agent, four of a coordinator, the session is over, and not before."""
    silence_s = opened.silent_heartbeats * HEARTBEAT_S
    assert opened.tick(silence_s - 0.001) == []
    [closed] = opened.tick(silence_s)
    assert isinstance(closed, Closed)
    assert closed.code == "silent"
    assert opened.next_deadline_s is None


@given(heard_s=st.floats(0, 1e6))
def test_a_deadline_that_is_reached_has_passed(heard_s: float) -> None:
    """Rounding cannot make a session miss its own deadline, and its shell spin."""
    session = coordinator_session()
    say(session, HELLO)
    session.tick(0.0)
    session.receive(UNKNOWN_OP, heard_s)
    session.tick(heard_s)
    while (deadline_s := session.next_deadline_s) is not None:
        assert session.tick(deadline_s) or session.next_deadline_s != deadline_s


def test_any_word_breaks_the_silence(opened: Session) -> None:
    """Even one that could not be read: the peer is there."""
    silence_s = opened.silent_heartbeats * HEARTBEAT_S
    opened.receive(UNKNOWN_OP, 1.0)
    assert opened.tick(silence_s) == []
    [closed] = opened.tick(1.0 + silence_s)
    assert isinstance(closed, Closed)


def test_a_coordinator_that_is_late_by_two_heartbeats_is_not_left() -> None:
    """Whatever an agent asks is answered once the coordinator works again, and until then it waits."""
    agent, _ = joined()
    agent.tick(0.0)
    agent.send(REPORT, 2 * HEARTBEAT_S)
    assert sent(agent)[-1] == Ping(seq=2)
    assert agent.tick(3.99 * HEARTBEAT_S) == []
    assert agent.closed is None
