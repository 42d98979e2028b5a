"""A simulated agent: the real `AgentCore`, `AgentSession`, `Outbox` and `Backoff`; engine, sensors and link are ours.

What `AgentDaemon` and `Link` do with sockets and processes is done here with events of the world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path

from moe2.agent.engine import protocol
from moe2.agent.jobs import core
from moe2.agent.jobs.effects import (
    Effect,
    KillEngine,
    ReportChange,
    SendToCoordinator,
    SendToEngine,
    SendTokens,
    SettleEnergy,
)
from moe2.agent.jobs.events import (
    CancelRequested,
    DrainRequested,
    EnergySettled,
    EngineExited,
    EngineSpoke,
    Event,
    JobSubmitted,
    LinkLost,
    TimePassed,
)
from moe2.agent.link.outbox import Outbox
from moe2.agent.settings import ModelSection
from moe2.common.backoff import Backoff
from moe2.common.energy import NEVER_RAN, Energy, Quality, unmeasured
from moe2.common.link.messages import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, CancelJob, Hello, Report, Submit
from moe2.common.link.session import AgentSession, Closed, MessageReceived, Opened, SessionEvent
from tests.common.samples import SMALLEST_HOST
from tests.scenarios.simulation.engine import SimEngine
from tests.scenarios.simulation.wire import Wire
from tests.scenarios.simulation.world import World

MODEL = "m"
SLOTS, MAX_QUEUE, STUCK_S = 3, 4, 20.0
FIRST_S, MAX_S = 0.5, 8.0
"""Of the back-off: the first as configured by default."""
REPORT_PAUSE_S, SETTLE_S, CONNECT_TIMEOUT_S, RESTART_S = 0.1, 0.05, 5.0, 1.0

Connect = Callable[["SimAgent"], Wire | None]


class Books:
    """What agents really spent, whether or not anybody heard of it."""

    def __init__(self) -> None:
        self.settled: dict[str, Energy] = {}
        """As agents accounted it, by job."""
        self.burnt: list[dict[str, float]] = []
        """Every engine's own count."""

    def joules(self, job_id: str) -> float:
        """What the job burnt, wherever it ran."""
        return sum(engine.get(job_id, 0.0) for engine in self.burnt)


_INSTANCES = count()
"""Each start of an agent is another process."""


class SimAgent:
    """One process of an agent, from its start to its end. A restarted agent is a new one of the same `agent_id`.

    connect: opens a wire to the coordinator, None if nobody listens.
    """

    def __init__(self, world: World, agent_id: str, *, token_s: float, books: Books, connect: Connect) -> None:
        self._world = world
        self.agent_id = agent_id
        self._books = books
        self._connect = connect
        section = ModelSection(name=MODEL, path=Path("m.gguf"), slots=SLOTS, max_queue=MAX_QUEUE)
        self.core = core.AgentCore((section,), stuck_s=STUCK_S)
        self.engine = SimEngine(
            world, token_s=token_s, slots=SLOTS, on_event=self._engine_spoke, on_exit=self._engine_exited
        )
        books.burnt.append(self.engine.joules)
        # Hosts share no clock: each counts from a moment of its own.
        self._clock_ahead_s = world.random.uniform(0, 100_000)
        self._instance_id = str(next(_INSTANCES))
        self._backoff = Backoff(first_s=FIRST_S, most_s=MAX_S, random=world.random)
        self._outbox = Outbox()
        self.wire: Wire | None = None
        self._session: AgentSession | None = None
        self._was_open = False
        self._tick: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reporting = False
        self._report_s = 5.0
        self._seq = 0
        self._leaving = False
        self._stopped: list[Callable[[], None]] | None = None
        """While the process is stopped (SIGSTOP): what waits for it to go on."""
        self.is_dead = False

    @property
    def _now_s(self) -> float:
        """On this host's clock."""
        return self._world.now_s + self._clock_ahead_s

    def _at(self, at_s: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        """A timer by this host's clock. A microsecond late: rounding must not make it early."""
        return self._world.at(at_s - self._clock_ahead_s + 1e-6, self._do, act)

    # --- The process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.engine.start()
        self._try_to_connect()
        self._report_steadily()

    def kill(self) -> None:
        """SIGKILL: the kernel closes the socket, the engine sees the end of its input."""
        self.is_dead = True
        self.engine.end()
        if self.wire:
            self.wire.close(self)
        for timer in (self._tick, self._deadline):
            if timer:
                timer.cancel()

    def stop(self) -> None:
        """SIGSTOP."""
        if self._stopped is None:
            self._stopped = []

    def go_on(self) -> None:
        """SIGCONT."""
        waiting, self._stopped = self._stopped or [], None
        for act in waiting:
            self._do(act)

    def drain(self) -> None:
        """SIGTERM."""
        self._do(self._drain)

    def _drain(self) -> None:
        self._leaving = True
        self._dispatch(DrainRequested())
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._leaving and self.core.is_idle and not self.is_dead:
            if self._session and self._session.is_open:
                self._pump()
                self._session.close("the agent is shutting down")
                self._pump()
            self.kill()

    def _do(self, act: Callable[[], None]) -> None:
        """Whatever reaches the process: lost on a dead one, late on a stopped one."""
        if self.is_dead:
            return
        if self._stopped is not None:
            self._stopped.append(act)
        else:
            act()

    # --- The core's shell ---------------------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        for effect in self.core.handle(event, self._now_s):
            self._perform(effect)
        if self._deadline:
            self._deadline.cancel()
        at_s = self.core.next_deadline_s
        self._deadline = None if at_s is None else self._at(at_s, self._time_passed)
        self._leave_if_idle()

    def _time_passed(self) -> None:
        self._dispatch(TimePassed())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendToEngine(command=command):
                self.engine.command(command)
            case SendTokens(jobs=jobs):
                if self._session and self._session.is_open:
                    self._outbox.put_tokens(jobs)
                    self._pump()
            case SendToCoordinator(message=message):
                self._world.tell(self.agent_id, "says", type(message).__name__, message.job_id)
                if self._session and self._session.is_open:
                    self._outbox.put(message)
                    self._pump()
            case SettleEnergy(job_id=job_id):
                self._world.later(SETTLE_S, self._do, lambda: self._settle(job_id))
            case KillEngine(reason=reason):
                self.engine.die(reason)
            case ReportChange():
                if not self._reporting:
                    self._reporting = True
                    self._world.later(REPORT_PAUSE_S, self._do, self._report)

    def _settle(self, job_id: str) -> None:
        joules = self.engine.joules.get(job_id)
        energy = NEVER_RAN if joules is None else Energy(joules=joules, quality=Quality.MEASURED_COUNTER)
        if joules is not None and self._world.chance(0.02):
            energy = unmeasured("the sensor broke")
        self._books.settled[job_id] = energy
        self._dispatch(EnergySettled(job_id, energy))

    def _engine_spoke(self, event: protocol.Event) -> None:
        self._do(lambda: self._dispatch(EngineSpoke(MODEL, event)))

    def _engine_exited(self, reason: str) -> None:
        def noticed() -> None:
            self._dispatch(EngineExited(MODEL, reason, permanent=False))
            self._world.later(RESTART_S, self._do, self.engine.start)

        self._do(noticed)

    def _report(self) -> None:
        self._reporting = False
        if self._session is None or not self._session.is_open:
            return
        self._seq += 1
        reports = self.core.expert_reports(self._now_s)
        self._outbox.put(Report(seq=self._seq, host=SMALLEST_HOST, experts=reports, draining=self.core.draining))
        self._pump()

    def _report_steadily(self) -> None:
        if not self.is_dead:
            self._do(self._report)
            self._world.later(self._report_s, self._report_steadily)

    # --- The link -----------------------------------------------------------------------------------------------------

    def _try_to_connect(self) -> None:
        if self._leaving:
            return
        wire = self._connect(self)
        if wire is None:
            self._world.later(self._backoff.next_delay_s(), self._do, self._try_to_connect)
            return
        self.wire = wire
        self._was_open = False
        self._session = AgentSession(
            Hello(
                protocol_min=OLDEST_PROTOCOL_VERSION,
                protocol_max=PROTOCOL_VERSION,
                agent_id=self.agent_id,
                agent_name=self.agent_id,
                agent_version="0",
                instance_id=self._instance_id,
            ),
            now_s=self._now_s,
            handshake_s=CONNECT_TIMEOUT_S,
            max_frame_bytes=2**20,
        )
        self._pump()

    def heard(self, frame: bytes) -> None:
        session = self._session
        self._do(lambda: self._receive(session, frame))

    def broke(self) -> None:
        session = self._session
        self._do(lambda: self._lost(session))

    def _receive(self, session: AgentSession | None, frame: bytes) -> None:
        if session and session is self._session:
            self._act(session, session.receive(frame, self._now_s))

    def _act(self, session: AgentSession, events: list[SessionEvent]) -> None:
        for event in events:
            match event:
                case Opened(welcome=welcome) if welcome:
                    self._world.tell(self.agent_id, "connected")
                    self._was_open = True
                    self._report_s = welcome.report_s
                    self._backoff.succeeded()
                    self._report()
                case MessageReceived(message=Submit() as order):
                    self._dispatch(JobSubmitted(order))
                case MessageReceived(message=CancelJob(job_id=job_id)):
                    self._dispatch(CancelRequested(job_id))
                case Closed(code=code):
                    self._world.tell(self.agent_id, "session closed", code)
        if session is self._session:
            self._pump()
            if session.closed and self.wire:
                self.wire.close(self)
                self._lost(session)

    def _pump(self) -> None:
        session, wire = self._session, self.wire
        if session is None or wire is None:
            return
        for frame in session.take_frames():
            wire.send_up(frame)
        while session.is_open and (message := self._outbox.take()):
            session.send(message)
            for frame in session.take_frames():
                wire.send_up(frame)
        if self._tick:
            self._tick.cancel()
        at_s = session.next_deadline_s
        self._tick = None if at_s is None else self._at(at_s, lambda: self._ticked(session))

    def _ticked(self, session: AgentSession) -> None:
        if session is self._session:
            self._act(session, session.tick(self._now_s))

    def _lost(self, session: AgentSession | None) -> None:
        if session is None or session is not self._session:
            return
        self._session = self.wire = None
        if self._tick:
            self._tick.cancel()
        self._outbox.clear()
        if self._was_open:
            self._world.tell(self.agent_id, "lost its link")
            self._dispatch(LinkLost())
        self._world.later(self._backoff.next_delay_s(), self._do, self._try_to_connect)
