"""What peers of an earlier protocol are told, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import msgpack
import msgspec
import pytest

from moe2.common.generation import Sampling
from moe2.common.link.earlier import OPS_SINCE, Unspeakable, spoken
from moe2.common.link.messages import (
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    Report,
    Submit,
    ToAgent,
    Welcome,
    WireMessage,
)
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.link.session import AgentSession, CoordinatorSession, JobMessage, NotSent, Opened, Session
from moe2.common.link.supply import ModelStore
from moe2.common.link.wire import Codec, wire_codec
from tests.common.samples import HELLO, SAMPLES, SMALLEST_HOST, WELCOME
from tests.fakes.version1 import OPS, STATES, Version1Codec


def recorded(protocol: int) -> dict[str, str]:
    """Frames that builds of this protocol sent, by the name of their sample."""
    path = Path(__file__).parent / "golden" / f"protocol{protocol}.hex"
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


RECORDED = recorded(1)
LATER_RECORDS = [(protocol, name) for protocol in (2, 3) for name in recorded(protocol)]
VERSIONS = range(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION + 1)
JOB_MESSAGES = {name: message for name, message in SAMPLES.items() if isinstance(message, JobMessage)}


SAMPLES_SINCE = {"submit.later": 3, "submit.protocol4": 4, "submit.ids": 4}
"""The first protocol that knows what a sample asks for, where that is later than its op."""


def report(*states: ExpertState) -> Report:
    experts = tuple(
        ExpertReport(model=f"m{number}", state=state, context_tokens=8, slots=1, on_demand=True)
        for number, state in enumerate(states)
    )
    return Report(seq=1, host=SMALLEST_HOST, experts=experts)


def opened(agent_speaks: tuple[int, int], coordinator_newest: int) -> tuple[AgentSession, CoordinatorSession]:
    """Two sessions back to back after their handshake."""
    least, most = agent_speaks
    hello = msgspec.structs.replace(HELLO, protocol_min=least, protocol_max=most)
    agent = AgentSession(hello, now_s=0.0, handshake_s=9.0, max_frame_bytes=2**20)
    welcome = msgspec.structs.replace(WELCOME, protocol=coordinator_newest)
    coordinator = CoordinatorSession(welcome, now_s=0.0, handshake_s=9.0)
    for frame in agent.take_frames():
        coordinator.receive(frame, 0.0)
    for frame in coordinator.take_frames():
        [event] = agent.receive(frame, 0.0)
        assert isinstance(event, Opened)
    return agent, coordinator


@pytest.mark.parametrize("name", RECORDED)
def test_frames_that_protocol_1_recorded_are_understood(name: str) -> None:
    """Every op that it had, with nothing misread: what is said of it since is only more."""
    message = wire_codec().decode(bytes.fromhex(RECORDED[name]))
    assert type(message) is type(SAMPLES[name])
    assert Version1Codec().decode(wire_codec().encode(message)) == message


@pytest.mark.parametrize(("protocol", "name"), LATER_RECORDS)
def test_frames_that_protocols_2_and_3_recorded_are_understood(protocol: int, name: str) -> None:
    """With every word: since then the order of a map's fields has changed, and some have been added."""
    frame = bytes.fromhex(recorded(protocol)[name])
    read = wire_codec().decode(frame)
    content = msgpack.unpackb(frame, strict_map_key=False)
    assert msgpack.unpackb(wire_codec().encode(read), strict_map_key=False) == content
    sent = msgpack.unpackb(wire_codec().encode(SAMPLES[name]), strict_map_key=False)
    assert {key: value for key, value in sent.items() if key in content} == content


def test_a_repeat_penalty_of_one_is_no_word_that_a_peer_must_know() -> None:
    """It changes nothing, so that every peer may take the job."""
    submit = msgspec.structs.replace(SAMPLES["submit.smallest"], sampling=Sampling(repeat_penalty=1.0))
    assert isinstance(submit, Submit)
    assert spoken(submit, 2) is submit


def test_the_record_is_of_every_op_of_protocol_1() -> None:
    """And of no later one."""
    assert {name.partition(".")[0] for name in RECORDED} == OPS


def test_every_op_and_state_is_of_protocol_1_or_has_its_since() -> None:
    """A new one is entered into `OPS_SINCE` or `STATES_SINCE` with its protocol."""
    later = {kind.__struct_config__.tag for kind in OPS_SINCE}
    assert {member.__struct_config__.tag for member in WireMessage.__args__} - OPS == later
    for state in ExpertState:
        told = spoken(report(state), 1)
        assert isinstance(told, Report)
        assert told.experts[0].state.value in STATES


@pytest.mark.parametrize("newest", VERSIONS)
@pytest.mark.parametrize("spoken_to", VERSIONS)
def test_both_ends_settle_on_the_newest_that_both_speak(newest: int, spoken_to: int) -> None:
    """An older agent at a newer coordinator, and the other way round."""
    agent, coordinator = opened((1, spoken_to), newest)
    assert agent.protocol == coordinator.protocol == min(newest, spoken_to)


@pytest.mark.parametrize("protocol", VERSIONS)
@pytest.mark.parametrize("name", JOB_MESSAGES)
def test_nothing_is_sent_that_the_peer_cannot_read(name: str, protocol: int) -> None:
    """Either it reads every word, or the job is told that it cannot be."""
    message = JOB_MESSAGES[name]
    agent, coordinator = opened((1, protocol), PROTOCOL_VERSION)
    sender: Session = coordinator if isinstance(message, ToAgent) else agent
    sender.take_frames()
    events = sender.send(message)
    frames = sender.take_frames()
    if protocol < SAMPLES_SINCE.get(name, OPS_SINCE.get(type(message), 1)):
        assert frames == []
        [event] = events
        assert isinstance(event, NotSent)
        assert "Upgrade moe2" in event.reason
        return
    codec = Version1Codec() if protocol == 1 else wire_codec()
    assert [type(codec.decode(frame)) for frame in frames] == [type(message)]


def test_a_cold_model_is_a_loading_one_to_protocol_1() -> None:
    """`on_demand`, where it is known, tells that it takes requests all the same. Others are told as they are."""
    states = (ExpertState.READY, ExpertState.COLD)
    told = spoken(report(*states), 1)
    assert isinstance(told, Report)
    assert [expert.state for expert in told.experts] == [ExpertState.READY, ExpertState.LOADING]
    assert told.experts[1].on_demand
    assert spoken(report(*states), 2) == report(*states)
    unchanged = report(ExpertState.READY)
    assert spoken(unchanged, 1) is unchanged


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_parameter_that_a_peer_would_ignore_is_unspeakable(protocol: int) -> None:
    """Where it is set: unset it changes nothing, and any peer takes the job."""
    assert spoken(SAMPLES["submit.later"], protocol) == Unspeakable(3)  # type: ignore[arg-type]
    assert spoken(SAMPLES["submit"], protocol) is SAMPLES["submit"]  # type: ignore[arg-type]


PROMPTS_OF_4 = (
    ChatPrompt(messages=(ChatMessage(role="user", content="?"),), template_kwargs='{"enable_thinking":false}'),
    ChatPrompt(messages=(ChatMessage(role="assistant", content="!", reasoning_content="So."),)),
    TextPrompt(text="", tokens=(1,)),
)


@pytest.mark.parametrize("prompt", PROMPTS_OF_4)
def test_a_prompt_that_a_peer_would_misread_is_unspeakable(prompt: ChatPrompt | TextPrompt) -> None:
    """Whatever the job is that has it."""
    for name in ("submit", "score", "follow"):
        job = msgspec.structs.replace(SAMPLES[name], prompt=prompt)
        assert spoken(job, 3) == Unspeakable(4)  # type: ignore[arg-type]
        assert spoken(job, 4) is job  # type: ignore[arg-type]


def test_parts_are_told_to_any_peer() -> None:
    """One that does not know them reads the same words in the message's content."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="a\nb", parts=("a", "b")),))
    job = msgspec.structs.replace(SAMPLES["submit"], prompt=prompt)
    assert spoken(job, 1) is job  # type: ignore[arg-type]


def test_what_is_unspeakable_names_its_protocol() -> None:
    """For the error that a person reads."""
    assert spoken(JOB_MESSAGES["score"], 1) == Unspeakable(2)


@pytest.mark.parametrize("protocol", [1, 2, 3])
@pytest.mark.parametrize("name", ["load_model", "unload_model", "suspend", "wake_neighbour", "command_answer", "embed"])
def test_commands_are_unspeakable_before_protocol_4(name: str, protocol: int) -> None:
    """An earlier agent is never asked to sleep or to embed, and an earlier coordinator never hears of it."""
    assert spoken(JOB_MESSAGES[name], protocol) == Unspeakable(4)


def test_an_earlier_coordinator_reads_how_a_host_waits_as_nothing_at_all() -> None:
    """A report with all of it is the same report without, to a peer that does not know the fields."""
    told = JOB_MESSAGES["report.standby"]
    assert isinstance(told, Report)
    content = msgpack.unpackb(wire_codec().encode(told))
    del content["standby"]
    for expert in content["experts"]:
        del expert["load_cost"], expert["unload_cost"]
    bare = wire_codec().decode(msgpack.packb(content))
    assert isinstance(bare, Report)
    assert bare.standby is None
    assert bare.experts[0] == msgspec.structs.replace(told.experts[0], load_cost=None, unload_cost=None)


def test_a_peer_of_protocol_1_does_not_know_of_enrolment() -> None:
    """A welcome without the field means that no credential is known."""
    welcome = wire_codec().decode(bytes.fromhex(RECORDED["welcome"]))
    assert isinstance(welcome, Welcome)
    assert not welcome.enrolled


ORDERS_OF_LATE = ("pull_model", "delete_file")
"""Ops of this protocol that agents tell of in their reports, as earlier ones of it do not know them."""


@pytest.mark.parametrize("name", ORDERS_OF_LATE)
def test_an_agent_that_does_not_know_an_order_says_so_and_goes_on(name: str) -> None:
    """Builds of protocol 4 before these orders: the session stays, and jobs are read as before."""
    known = tuple(kind for kind in WireMessage.__args__ if kind.__struct_config__.tag not in ORDERS_OF_LATE)
    agent, coordinator = opened((1, PROTOCOL_VERSION), PROTOCOL_VERSION)
    agent._codec = Codec(Union[known])  # noqa: UP007 - a union of a tuple
    for message in (JOB_MESSAGES[name], JOB_MESSAGES["cancel"]):
        coordinator.send(message)
    heard = [event for frame in coordinator.take_frames() for event in agent.receive(frame, 0.0)]
    assert [getattr(event, "message", None) for event in heard] == [JOB_MESSAGES["cancel"]]
    assert agent.closed is None
    told = [event for frame in agent.take_frames() for event in coordinator.receive(frame, 0.0)]
    assert coordinator.closed is None, told


def test_an_earlier_coordinator_reads_a_report_with_pulls_in_it() -> None:
    """What it does not know it passes over."""
    fields = [field for field in msgspec.structs.fields(ModelStore) if field.name not in LATE_FIELDS]
    former = msgspec.defstruct("Former", [(one.name, one.type, one.default) for one in fields])
    frame = wire_codec().encode(SAMPLES["report.pulls"])
    content = msgspec.convert(msgpack.unpackb(frame)["models"], former)
    assert msgspec.to_builtins(content)["takes_orders"] is True


LATE_FIELDS = ("pulling", "pull_from", "deletes")


def test_a_report_of_an_earlier_agent_says_nothing_of_pulls() -> None:
    """Unknown is not the same as not allowed."""
    store = msgspec.convert({"takes_orders": True}, ModelStore)
    assert (store.pull_from, store.deletes, store.pulling) == (None, None, ())
