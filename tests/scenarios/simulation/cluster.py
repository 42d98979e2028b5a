"""A whole simulated fleet: one coordinator, many agents, many clients, and faults at random."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from moe2.common.generation import Generation
from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.choosing.request import Demand
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.request import Request
from tests.scenarios.simulation.agent import MODEL, Books, SimAgent
from tests.scenarios.simulation.coordinator import SimCoordinator
from tests.scenarios.simulation.wire import Wire
from tests.scenarios.simulation.world import World


@dataclass(frozen=True)
class Scale:
    """How much is simulated. fault_every_s: mean time between two faults of the whole fleet.

    tampering: share of frames that come twice or late. crashes: of the coordinator.
    """

    agents: int
    requests: int
    seconds: float
    fault_every_s: float
    tampering: float = 0.0
    coordinator_crashes: int = 0


@dataclass
class Client:
    """One request as its client lives through it. ends: what it was told, which must be one thing."""

    request: Request
    ends: list[Outcome | str] = field(default_factory=list)
    pieces: list[TokenPiece] = field(default_factory=list)
    left: bool = False
    task: asyncio.Task[None] | None = None


SETTLING_S = 90.0
"""Longer than the longest stop, drain and stuck engine together."""


class Cluster:
    def __init__(self, world: World, scale: Scale) -> None:
        self.world = world
        self.scale = scale
        self.books = Books()
        self.coordinators: list[SimCoordinator] = []
        self.clients: list[Client] = []
        self.faults: Counter[str] = Counter()
        self.connected_s: list[float] = []
        """When each connection came to the coordinator."""
        self.n_open = 0
        """Clients that wait for their end."""
        self._peace = False
        self._start_coordinator()
        random = world.random
        self._token_s = {f"agent-{n:03}": random.choice((0.02, 0.05, 0.1)) for n in range(scale.agents)}
        self.agents = {agent_id: self._new_agent(agent_id) for agent_id in self._token_s}

    @property
    def coordinator(self) -> SimCoordinator:
        return self.coordinators[-1]

    async def run(self) -> None:
        """From the first agent's start until everything has ended and settled. Raises what broke."""
        world, scale = self.world, self.scale
        for agent in self.agents.values():
            world.later(world.random.uniform(0, 1), agent.start)
        await world.pass_time(5.0)
        for number in range(scale.requests):
            world.later(world.random.uniform(0, scale.seconds), self._arrive, f"req-{number}")
        for _ in range(scale.coordinator_crashes):
            world.later(world.random.uniform(0, scale.seconds), self._coordinator_dies)
        self._next_fault()
        await world.pass_time(scale.seconds)
        self._make_peace()
        await world.pass_time(SETTLING_S)

    def _make_peace(self) -> None:
        self._peace = True
        for agent in self.live_agents():
            if agent.wire:
                agent.wire.tampering = 0.0

    def live_agents(self) -> list[SimAgent]:
        return [agent for agent in self.agents.values() if not agent.is_dead]

    # --- Agents and coordinator ---------------------------------------------------------------------------------------

    def _new_agent(self, agent_id: str) -> SimAgent:
        return SimAgent(self.world, agent_id, token_s=self._token_s[agent_id], books=self.books, connect=self._connect)

    def _connect(self, agent: SimAgent) -> Wire | None:
        coordinator = self.coordinator
        if coordinator.is_dead:
            return None
        self.connected_s.append(self.world.now_s)
        tampering = 0.0 if self._peace else self.scale.tampering
        wire = Wire(self.world, delay_s=self.world.random.uniform(0.001, 0.08), tampering=tampering)
        wire.join(agent=agent, coordinator=coordinator.accept(wire))
        return wire

    def _start_coordinator(self) -> None:
        self.coordinators.append(SimCoordinator(self.world, max_active=2 * self.scale.agents))

    def _coordinator_dies(self) -> None:
        if not self.coordinator.is_dead:
            self.faults["coordinator_crash"] += 1
            self.stop_coordinator(down_s=self.world.random.uniform(1, 4))

    def stop_coordinator(self, *, down_s: float, told_within_s: float = 0.5) -> None:
        """SIGKILL: every socket is reset; a new one listens after so long."""
        self.world.tell("coordinator dies")
        dead = self.coordinator
        dead.is_dead = True
        for socket in dead.sockets:
            socket.is_gone = True
            if socket._tick:
                socket._tick.cancel()
        for agent in self.live_agents():
            if agent.wire:
                agent.wire.snap(told_within_s=told_within_s)
        dead.service._queue.alarm.set(None)
        for request_id in dead.service._active:
            dead.service._alarms.end(request_id)
        for client in self.clients:
            if client.task and not client.task.done():
                client.task.cancel()
                client.ends.append("connection broken")
                self.n_open -= 1
        self.world.later(down_s, self._start_coordinator)

    # --- Clients ------------------------------------------------------------------------------------------------------

    def _arrive(self, request_id: str) -> None:
        random, now_s = self.world.random, self.world.now_s
        max_tokens = random.randint(1, 60)
        prompt = "word " * random.randint(1, 100)
        request = Request(
            request_id=request_id,
            model=MODEL if random.random() < 0.5 else "moe2",
            prompt=TextPrompt(text=prompt),
            generation=Generation(max_tokens=max_tokens),
            demand=Demand(len(prompt.split()), max_tokens),
            arrived_s=now_s,
            deadline_s=now_s + random.choice((3.0, 15.0, 40.0)),
        )
        client = Client(request)
        self.clients.append(client)
        coordinator = self.coordinator
        if coordinator.is_dead or not coordinator.service.has_room_for(1) or coordinator.service.stopping:
            client.ends.append("turned away")
            return
        self.n_open += 1
        client.task = asyncio.ensure_future(self._wait(client, coordinator))
        if random.random() < 0.1:
            self.world.later(random.uniform(0, 10), self._leave, client, coordinator)

    async def _wait(self, client: Client, coordinator: SimCoordinator) -> None:
        """What an HTTP handler does."""
        try:
            exchange = coordinator.service.begin(client.request)
            client.pieces, outcome = await exchange.receive_all()
            self.n_open -= 1
            client.ends.append(outcome)
            self.world.tell(client.request.request_id, type(outcome).__name__, getattr(outcome, "code", ""))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not self.world.broken.done():
                self.world.broken.set_exception(error)

    def _leave(self, client: Client, coordinator: SimCoordinator) -> None:
        if client.task and not client.task.done() and not coordinator.is_dead:
            self.world.tell(client.request.request_id, "leaves")
            client.left = True
            coordinator.service.client_gone(client.request.request_id)

    # --- Faults -------------------------------------------------------------------------------------------------------

    def _next_fault(self) -> None:
        self.world.later(self.world.random.expovariate(1 / self.scale.fault_every_s), self._fault)

    def _fault(self) -> None:
        if self._peace:
            return
        self._next_fault()
        agents = self.live_agents()
        if not agents:
            return
        agent = self.world.random.choice(agents)
        fault = self.world.random.choice(FAULTS)
        name = fault.__name__.removeprefix("_")
        self.world.tell(agent.agent_id, name)
        self.faults[name] += 1
        fault(self, agent)

    def restart(self, agent: SimAgent, delay_s: float) -> None:
        """Whatever became of it, a new process of the same agent starts after so long."""

        def start() -> None:
            if self.agents[agent.agent_id] is agent:
                if not agent.is_dead:
                    agent.kill()
                self.agents[agent.agent_id] = self._new_agent(agent.agent_id)
                self.agents[agent.agent_id].start()

        self.world.later(delay_s, start)


def _link_snaps(cluster: Cluster, agent: SimAgent) -> None:
    if agent.wire:
        agent.wire.snap(told_within_s=2.0)


def _blackhole_up(cluster: Cluster, agent: SimAgent) -> None:
    if agent.wire:
        agent.wire.go_silent(up=True, down=False)


def _blackhole_down(cluster: Cluster, agent: SimAgent) -> None:
    if agent.wire:
        agent.wire.go_silent(up=False, down=True)


def _cable_pulled(cluster: Cluster, agent: SimAgent) -> None:
    if agent.wire:
        agent.wire.go_silent(up=True, down=True)


def _agent_killed(cluster: Cluster, agent: SimAgent) -> None:
    agent.kill()
    cluster.restart(agent, cluster.world.random.uniform(1, 5))


def _power_lost(cluster: Cluster, agent: SimAgent) -> None:
    """Nobody is left to close the socket."""
    if agent.wire:
        agent.wire.go_silent(up=True, down=True)
    _agent_killed(cluster, agent)


def _agent_stopped(cluster: Cluster, agent: SimAgent) -> None:
    agent.stop()
    cluster.world.later(cluster.world.random.uniform(1, 30), agent.go_on)


def _agent_drained(cluster: Cluster, agent: SimAgent) -> None:
    agent.drain()
    cluster.restart(agent, 30.0)


def _engine_crashes(cluster: Cluster, agent: SimAgent) -> None:
    agent.engine.die("killed by SIGSEGV")


def _engine_slows(cluster: Cluster, agent: SimAgent) -> None:
    agent.engine.token_s *= 8


def _engine_hangs(cluster: Cluster, agent: SimAgent) -> None:
    agent.engine.hung = True


FAULTS: tuple[Callable[[Cluster, SimAgent], None], ...] = (
    _link_snaps,
    _blackhole_up,
    _blackhole_down,
    _cable_pulled,
    _agent_killed,
    _power_lost,
    _agent_stopped,
    _agent_drained,
    _engine_crashes,
    _engine_slows,
    _engine_hangs,
)


def outcome_name(end: Outcome | str) -> str:
    match end:
        case Completed():
            return "completed"
        case Cancelled():
            return "cancelled"
        case Failed(code=code):
            return f"failed:{code}"
        case _:
            return str(end)
