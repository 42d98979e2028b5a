"""A fleet with one agent behind a fault proxy, one out of harm's way, and a request in a known phase on the first."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import numpy as np
from structlog.testing import capture_logs

from moe2.coordinator.choosing import consensus
from moe2.coordinator.serving.modes import panel
from tests.fakes.agentprocess import agent_process
from tests.fakes.control import ExpertControl, Step, expert_control
from tests.fakes.faultproxy import FaultProxy, fault_proxy
from tests.fakes.fleet import FAKE_EXPERT, POLL_S, TOKEN, Fleet, fleet, model_file

WORDS = ("a", "b", "c", "d")
ANSWER = "a b c d "
# Silence is noticed after three of them. Short, as these tests wait for it; but who is only starved of a busy machine's
# processor must not count as gone.
HEARTBEAT_S = 1.0
# Nobody in a panel counts as late meanwhile: these tests are of members that are lost.
PANEL_GRACE_S = 60.0
MAX_FRAME_BYTES = 65_536


class Phase(StrEnum):
    """Where the request is when the fault strikes."""

    QUEUED = "queued"
    """At the agent, behind another one."""
    PREFILL = "prefill"
    STREAM = "stream"
    """Two of its four tokens have reached the client."""
    VOTE = "vote"
    """`steady` has scored the choices, `shaky` is about to."""
    RANK_WRITE = "rank_write"
    """`steady` has written its candidate, `shaky` half of its own."""
    RANK_SCORE = "rank_score"
    """Their candidates differ; `steady` has scored them, `shaky` is about to."""
    CONSENSUS_FIRST = "consensus_first"
    """`shaky` is asked first and has written half of its answer; `steady` has not been asked yet."""
    CONSENSUS_NEXT = "consensus_next"
    """`steady` has answered, and `shaky`, which was asked next, has written half of its answer."""
    MIX = "mix"
    """Two tokens have been drawn together; `shaky` is asked for the third."""


ALONE: dict[str, Any] = {"hedging": False, "breakers": False}
"""Both would hide what a fault does: a second expert answers while the first one hangs, or the first one, once it is
back, gets nothing to do. `test_defaults` has them on."""

PHASES = tuple(Phase)
CONSENSUS: dict[str, Any] = {
    "moe2": {"mode": "consensus", "answer": "text"},
    "messages": [{"role": "user", "content": " ".join((*WORDS, "END"))}],
    "max_tokens": len(WORDS) + 1,
    "stop": ["END"],
}
"""Its texts end by themselves: one that is cut off has no final answer."""
PANELS: dict[Phase, dict[str, Any]] = {
    Phase.VOTE: {"max_tokens": None, "moe2": {"mode": "vote", "choices": ["yes", "no"]}},
    Phase.RANK_WRITE: {"moe2": {"mode": "rank"}},
    Phase.RANK_SCORE: {"moe2": {"mode": "rank"}},
    Phase.CONSENSUS_FIRST: CONSENSUS,
    Phase.CONSENSUS_NEXT: CONSENSUS,
    Phase.MIX: {"temperature": 0, "moe2": {"mode": "mix"}},
}
"""Phases in which both experts work on one answer, and what a client sends for that."""
MODELS = {Phase.CONSENSUS_FIRST: "last", Phase.CONSENSUS_NEXT: "early", Phase.RANK_SCORE: "fake-70b"}
"""`steady`'s model in phases where it counts; `shaky` has "fake". Each model votes once, and equals are asked by name.
A ranking of two is decided by the gate, which takes the larger model for the better writer."""
WRITTEN = {Phase.RANK_SCORE: ("answered", "outvoted")}
"""What has become of earlier rounds' work by the end."""


def panel_answer(phase: Phase) -> str:
    """What the client reads, whether `shaky` survives or not."""
    return "yes" if phase is Phase.VOTE else ANSWER


@dataclass(frozen=True)
class Ended:
    """What a client saw of a request, all of it. error: of the body or of the last event. marks: ends that it was told:
    an error, or the end marker of a stream, or a whole JSON body."""

    status: int
    text: str
    error: dict[str, Any] | None
    receipt: dict[str, Any] | None
    marks: int
    broken: bool = False
    """The connection ended before the response did."""


@dataclass
class Bench:
    fleet: Fleet
    proxy: FaultProxy
    shaky: ExpertControl
    steady: ExpertControl
    process: asyncio.subprocess.Process | None = None
    """`shaky`'s, where it has one of its own."""
    keys: dict[str, str] = field(default_factory=dict)
    """The experts' keys by their agent's name."""
    logs: list[Any] = field(default_factory=list)

    async def ask(self, *, model: str = "moe2", stream: bool = False, **fields: Any) -> Ended:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": " ".join(WORDS)}],
            "max_tokens": len(WORDS),
            "stream": stream,
            **fields,
        }
        return await read_end(await self.fleet.http.post("/v1/chat/completions", json=body))

    def pinned(self, agent: str) -> str:
        """A model name that only this agent's expert answers to."""
        return self.keys[agent]

    def agent_id(self, name: str) -> str:
        return self.keys[name].partition("/")[0]

    async def learn_keys(self) -> None:
        for row in self.fleet.coordinator.status().agents:
            self.keys[row.agent_name] = f"{row.agent_id}/{row.experts[0].model if row.experts else 'fake'}"

    def is_connected(self, name: str) -> bool:
        return any(row.connected for row in self.fleet.coordinator.status().agents if row.agent_name == name)

    def engine_pid(self) -> int:
        """The process of `shaky`'s expert."""
        if self.process is None:
            pid = self.fleet.agents["shaky"].engine_pids()["fake"]
            assert pid is not None
            return pid
        [child] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def request_ends(self) -> list[dict[str, Any]]:
        return [entry for entry in self.logs if entry["event"] == "request_ended"]


@dataclass
class InPhase:
    """The request under test, the one before it in the queue, and one on the other agent that must not notice."""

    phase: Phase
    victim: asyncio.Task[Ended]
    held: Step
    bystander: asyncio.Task[Ended]
    bystander_held: Step
    holder: asyncio.Task[Ended] | None = None

    def let_go(self, bench: Bench) -> None:
        """Everybody may go on."""
        for control in (bench.shaky, bench.steady):
            control.release()
        self.bystander_held.answer()
        self.held.answer()


@asynccontextmanager
async def bench(
    root: Path,
    *,
    api: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    own_process: bool = False,
    dispatch: dict[str, Any] = ALONE,
) -> AsyncIterator[Bench]:
    """Coordinator, proxy, and the agent `shaky` behind it, ready. `steady` is started by `in_phase`.

    own_process: `shaky` runs in a process of its own. dispatch: keys of [dispatch].
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(patch.object(panel, "GRACE_S", PANEL_GRACE_S))
        # A vote of two gains nothing, so that one alone would be asked: these tests are of what happens to both.
        stack.enter_context(patch.object(consensus, "best_plan", lambda plans, *_: np.array([len(plans.wanted) - 1])))
        shaky = await stack.enter_async_context(expert_control(root / "shaky-control.sock"))
        steady = await stack.enter_async_context(expert_control(root / "steady-control.sock"))
        running = await stack.enter_async_context(
            fleet(
                root,
                agents=(),
                api={"max_body_bytes": MAX_FRAME_BYTES // 2, **(api or {})},
                dispatch=dispatch,
                listener={"heartbeat_s": HEARTBEAT_S, "max_frame_bytes": MAX_FRAME_BYTES},
            )
        )
        proxy = await stack.enter_async_context(fault_proxy(running.coordinator.agents_url))
        built = Bench(running, proxy, shaky, steady)
        gguf = model_file(root)
        options = ("--control", str(root / "shaky-control.sock"))
        if own_process:
            built.process = await stack.enter_async_context(
                agent_process(root, "shaky", proxy.url, token=TOKEN, expert=options)
            )
        else:
            await running.start_agent(
                "shaky",
                engine_argv=(*FAKE_EXPERT, *options),
                models=[{"name": "fake", "path": gguf, "slots": 1}],
                link={"url": proxy.url},
                engine=engine,
            )
        await running.until(ready=1)
        await built.learn_keys()
        built.logs = stack.enter_context(capture_logs())
        try:
            yield built
        finally:
            for control in (shaky, steady):
                control.release()


async def in_phase(built: Bench, phase: Phase, *, stream: bool | None = None) -> InPhase:
    """Bring a request into the phase on `shaky`, start `steady`, and have it in the middle of a stream there.

    stream: whether the client streams; by default it does where tokens flow.
    """
    if phase in PANELS:
        return await _in_panel(built, phase)
    streams = phase is Phase.STREAM if stream is None else stream
    holder = None
    if phase is Phase.QUEUED:
        holder = asyncio.create_task(built.ask(stream=streams))
        held = await built.shaky.next_phase()
    victim = asyncio.create_task(built.ask(stream=streams))
    if phase is Phase.QUEUED:
        await built.fleet.until_status(lambda status: status.agents[0].experts[0].queued == 1)
    else:
        held = await _steps(built.shaky, 2 if phase is Phase.STREAM else 0)
    if phase is Phase.STREAM:
        await built.fleet.until_status(lambda _: _has_tokens(built))
    await start_steady(built)
    bystander = asyncio.create_task(built.ask(model=built.pinned("steady"), stream=True))
    return InPhase(phase, victim, held, bystander, await _steps(built.steady, 2), holder)


async def _in_panel(built: Bench, phase: Phase) -> InPhase:
    await start_steady(built, model=MODELS.get(phase, "fake"))
    built.steady.free = True
    victim = asyncio.create_task(built.ask(**PANELS[phase]))
    held = await built.shaky.next_phase()
    while not _is_reached(phase, held):
        # In its own words, so that there is something to score.
        held.answer("shout" if phase is Phase.RANK_SCORE and held.phase.startswith("token") else "go")
        held = await built.shaky.next_phase()
    await built.fleet.until_status(lambda _: _steady_has_done_its_part(built, phase))
    built.steady.free = False
    bystander = asyncio.create_task(built.ask(model=built.pinned("steady"), stream=True))
    return InPhase(phase, victim, held, bystander, await _steps(built.steady, 2))


def _is_reached(phase: Phase, step: Step) -> bool:
    kind, *_, last = step.phase.split()
    return kind == "score" if phase in (Phase.VOTE, Phase.RANK_SCORE) else last == "2"


def _steady_has_done_its_part(built: Bench, phase: Phase) -> bool:
    """Of the round that `shaky` is in the middle of. A mix goes on with the next token, so nobody is done there; nor is
    anybody where `shaky` is asked first."""
    if phase is Phase.CONSENSUS_FIRST:
        return True
    lives = built.fleet.coordinator._service.lives()
    rounds = [[a for a in life.attempts if a.expert.agent_name == "steady"] for life in lives]
    return phase is Phase.MIX or all(attempts[-1].is_over for attempts in rounds)


async def start_steady(built: Bench, model: str = "fake") -> None:
    """Have the second agent join."""
    options = ("--control", str(built.fleet.root / "steady-control.sock"))
    models = [{"name": model, "path": model_file(built.fleet.root, model), "slots": 4}]
    await built.fleet.start_agent("steady", engine_argv=(*FAKE_EXPERT, *options), models=models)
    await built.fleet.until(ready=2)
    await built.learn_keys()


async def _steps(control: ExpertControl, tokens: int) -> Step:
    """Let an expert write so many tokens; it then waits to be allowed the next step. Work for a panel passes."""
    steps = tokens + (tokens > 0)
    while True:
        step = await control.next_phase()
        is_own = step.phase.split()[0] not in ("score", "propose")
        if is_own and not steps:
            return step
        steps -= is_own
        step.answer()


def _has_tokens(built: Bench) -> bool:
    lives = built.fleet.coordinator._service.lives()
    return any(life.first_token_s is not None for life in lives)


async def read_end(response: aiohttp.ClientResponse) -> Ended:
    """Read a response to its end, whatever that is."""
    async with response:
        broken = False
        try:
            body = await response.read()
        except (aiohttp.ClientError, ConnectionError):
            body, broken = b"", True
        if response.content_type == "text/event-stream":
            return _stream_end(response.status, body.decode(), broken)
        content = json.loads(body) if body else {}
        text = content["choices"][0]["message"]["content"] if "choices" in content else ""
        return Ended(response.status, text, content.get("error"), content.get("moe2"), int(bool(content)), broken)


def _stream_end(status: int, body: str, broken: bool) -> Ended:
    text, error, receipt, marks = "", None, None, 0
    for line in body.split("\n\n"):
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            marks += 1
            continue
        event = json.loads(line.removeprefix("data: "))
        receipt = event.get("moe2", receipt)
        if "error" in event:
            error, marks = event["error"], marks + 1
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
    return Ended(status, text, error, receipt, marks, broken)


# --- What must hold every time ----------------------------------------------------------------------------------------


def assert_one_end(ended: Ended) -> None:
    """Exactly one terminal outcome, and no empty 200."""
    assert ended.marks == 1, ended
    assert not ended.broken
    if ended.error is None:
        assert ended.status == 200
        assert ended.text
    else:
        assert ended.error["message"]
        assert ended.error["code"]


def assert_accounted(ended: Ended) -> None:
    """Every attempt's joules are on the receipt, or it says why not."""
    assert ended.receipt is not None
    lines = ended.receipt["experts"]
    assert lines
    for line in (*lines, ended.receipt):
        assert line["energy"]["joules"] is not None or line["energy"]["reason"], line
    if any(line["energy"]["joules"] is None for line in lines):
        assert ended.receipt["energy"]["joules"] is None, "unknown is not nothing"


def assert_settled(built: Bench, *, requests: int) -> None:
    """So many requests have ended, each once, each with its joules or the word that nobody knows them."""
    entries = built.request_ends()
    assert len({entry["request_id"] for entry in entries}) == len(entries) == requests
    for entry in entries:
        assert entry["joules"] is not None or entry["energy_quality"] == "unmeasured", entry


def assert_survived(victim: Ended, phase: Phase, *, outcome: str, code: str) -> None:
    """What becomes of a request whose expert on `shaky` is no more: a panel goes on without it, before the first token
    another expert takes over, after it the client is told. outcome, code: of the attempt, and of the error."""
    assert victim.receipt is not None
    outcomes = [line["outcome"] for line in victim.receipt["experts"]]
    if phase in PANELS:
        assert victim.error is None
        assert sorted(outcomes) == sorted([outcome, "answered", *WRITTEN.get(phase, ())])
        assert len(victim.receipt["collaboration"]["dropped"]) == 1
        assert victim.text == panel_answer(phase)
    elif phase is Phase.STREAM:
        assert victim.error is not None
        assert victim.error["code"] == code
        assert ANSWER.startswith(victim.text)
        assert outcomes == [outcome]
    else:
        assert victim.error is None
        assert victim.text == ANSWER
        assert outcomes == [outcome, "answered"]


@dataclass(frozen=True)
class Resources:
    """What this process holds."""

    fds: int
    tasks: int

    @staticmethod
    def now() -> Resources:
        return Resources(fds=len(os.listdir("/proc/self/fd")), tasks=len(asyncio.all_tasks()))

    async def back(self) -> None:
        """Wait until no more is held than here; fails if that never comes."""
        try:
            async with asyncio.timeout(60):
                while (held := Resources.now()).fds > self.fds or held.tasks > self.tasks:
                    gc.collect()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            names = sorted(task.get_name() + str(task.get_coro()) for task in asyncio.all_tasks())
            raise AssertionError(f"{held} instead of {self}: {names}") from None
