"""What must hold of a simulated cluster: after every event, and once everything has settled."""

from __future__ import annotations

from collections import Counter

from moe2.agent.jobs.expert import Phase as JobPhase
from moe2.common.energy import Quality
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.effects import Completed, Failed
from moe2.coordinator.serving.progress import WIND_DOWN_S
from tests.scenarios.simulation.cluster import Cluster
from tests.scenarios.simulation.coordinator import SimCoordinator

# Sums of dyadic fractions are exact; virtual time is not quite.
TIME_TOLERANCE_S = 1e-6
FULL_CHECK_EVERY = 64


class Invariants:
    """Call `check` after every event, `check_end` at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._n_checked = 0
        self._n_retired: Counter[int] = Counter()

    def check(self) -> None:
        """Counters and bounds always; every 64th time against everything that is there."""
        coordinator = self._cluster.coordinator
        service = coordinator.service
        assert sum(service._in_flight.count.values()) == len(service._jobs)
        self._check_retired(coordinator)
        self._n_checked += 1
        if self._n_checked % FULL_CHECK_EVERY == 0:
            self._check_all(coordinator)

    def _check_all(self, coordinator: SimCoordinator) -> None:
        service, now_s = coordinator.service, self._cluster.world.now_s
        running = [attempt for life in service.lives() for attempt in life.attempts if not attempt.is_over]
        assert service._in_flight.count == Counter(attempt.expert.key for attempt in running)
        assert set(service._jobs) == {(attempt.expert.agent_id, attempt.job_id) for attempt in running}
        for life in service.lives():
            if coordinator.is_dead:
                break
            limit_s = life.request.deadline_s if life.concluded_s is None else life.concluded_s + WIND_DOWN_S
            assert now_s <= limit_s + TIME_TOLERANCE_S, f"{life.request.request_id} overran"
            assert (life.outcome is None) == (life.concluded_s is None)
        for client in self._cluster.clients[-200:]:
            assert len(client.ends) <= 1, client
        for agent in self._cluster.live_agents():
            expert = agent.core.experts["m"]
            assert len(expert.active) <= expert.section.slots
            assert len(expert.queue) <= expert.section.slots + expert.section.max_queue
            assert {*expert.active, *expert.queue} <= set(agent.core.jobs)
            for job in agent.core.jobs.values():
                # Nobody reads on: the decoder has been told to stop.
                assert not job.abandoned or job.cancel_sent or job.phase is JobPhase.SETTLING, job

    def _check_retired(self, coordinator: SimCoordinator) -> None:
        """Each receipt, once, as soon as it is final."""
        books, n_known = self._cluster.books, self._n_retired[id(coordinator)]
        for life, receipt in coordinator.retired[n_known:]:
            assert life.outcome is not None
            assert life.concluded_s is not None
            assert life.concluded_s <= life.request.deadline_s + TIME_TOLERANCE_S
            answered = [attempt for attempt in life.attempts if attempt.state is AttemptState.ANSWERED]
            assert len(answered) <= 1
            assert not isinstance(life.outcome, Completed) or answered
            known = []
            for attempt in life.attempts:
                assert attempt.is_over
                if attempt.usage is not None:
                    assert attempt.usage.energy == books.settled[attempt.job_id]
                    known.append(attempt.usage.energy.joules)
                elif attempt.state is AttemptState.LOST:
                    assert attempt.error, "lost joules need a reason"
                    known.append(None)
            if None in known:
                assert receipt.energy.joules is None
                assert receipt.energy.reason
            else:
                assert receipt.energy.joules == sum(joules for joules in known if joules is not None)
        self._n_retired[id(coordinator)] = len(coordinator.retired)

    def check_end(self) -> None:
        """Nothing is left anywhere, everybody was told once, every joule is on a receipt or called unknown there."""
        cluster = self._cluster
        for coordinator in cluster.coordinators:
            if not coordinator.is_dead:
                self._check_left(coordinator)
            self._check_joules(coordinator)
        assert cluster.n_open == 0
        for client in cluster.clients:
            assert len(client.ends) == 1, client
            end = client.ends[0]
            if isinstance(end, Completed):
                # Nothing lost, doubled or out of order: exactly one whole answer.
                words = "".join(piece.text for piece in client.pieces).split()
                assert words == [str(number) for number in range(client.request.generation.max_tokens or 0)], client
            if isinstance(end, Failed):
                assert end.code
                assert end.message

    def _check_left(self, coordinator: SimCoordinator) -> None:
        service = coordinator.service
        assert (service.n_active, len(service._jobs), len(service._in_flight.count)) == (0, 0, 0)
        totals = service.totals
        assert totals.finished + totals.failed + totals.cancelled == len(coordinator.retired)
        live = {agent.agent_id: agent for agent in self._cluster.live_agents()}
        assert set(coordinator.hub._by_agent) == set(live), set(live) ^ set(coordinator.hub._by_agent)
        assert len(coordinator.hub._connections) == len(live)
        for agent in live.values():
            assert agent.core.is_idle, f"{agent.agent_id} still has {list(agent.core.jobs)}"
            assert agent.core.next_deadline_s is None
            assert not agent.core.experts["m"].active
        assert coordinator.choosable() == len(live)

    def _check_joules(self, coordinator: SimCoordinator) -> None:
        books = self._cluster.books
        for life, receipt in coordinator.retired:
            for attempt in life.attempts:
                burnt_j = books.joules(attempt.job_id)
                line = next(line for line in receipt.experts if line.expert == attempt.expert.key)
                if line.energy.joules is not None:
                    assert line.energy.joules == burnt_j, f"{attempt.job_id}: {line}"
                else:
                    assert line.energy.quality == Quality.UNMEASURED
                    assert line.energy.reason
