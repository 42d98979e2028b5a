"""What the coordinator does again and again beside its requests: each chore has its own beat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import time

import structlog

from moe2.common.link.messages import Hello
from moe2.common.standby import StandingEnergy
from moe2.coordinator.choosing.lengths import Lengths
from moe2.coordinator.choosing.lengths_file import LengthsFile
from moe2.coordinator.fleet.hub import Hub
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.ledger.standing import BOOK_EVERY_S, StandingBook
from moe2.coordinator.ledger.store import Ledger
from moe2.coordinator.observing.history import RecentPast
from moe2.coordinator.provisioning.price_book import PriceBook
from moe2.coordinator.provisioning.state_files import PriceFile
from moe2.coordinator.serving.service import Service

log = structlog.get_logger()

EVICT_EVERY_S = 5.0
KEEP_TRUST_EVERY_S = 1.0
SAMPLE_POWER_EVERY_S = 2.0
KEEP_LEARNED_EVERY_S = 10.0
BOOKED_AT_ONCE = 50
"""Agents whose joules are booked in one go: a hundred entries at once held requests up for a millisecond."""


class Chores:
    """Evicts agents that stay away, keeps trust current, samples power, and books what time brings.

    load_certificates: loads those whose files were replaced.
    """

    def __init__(
        self,
        *,
        table: CapabilityTable,
        service: Service,
        hub: Hub,
        load_certificates: Callable[[], None],
        past: RecentPast,
        standing: StandingBook,
        ledger: Ledger,
        prices: PriceBook,
        price_file: PriceFile,
        lengths: Lengths,
        lengths_file: LengthsFile,
    ) -> None:
        self._table = table
        self._service = service
        self._hub = hub
        self._load_certificates = load_certificates
        self._past = past
        self._standing = standing
        self._ledger = ledger
        self._prices = prices
        self._price_file = price_file
        self._lengths = lengths
        self._lengths_file = lengths_file
        self._n_prices_kept = self._n_lengths_kept = 0

    async def run(self) -> None:
        """Does all chores until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for chore in (self._evict, self._keep_trust, self._sample_power, self._keep_standing, self._keep_learned):
                tasks.create_task(chore())

    def book_standing(self) -> None:
        """Enters the joules of no request that agents have counted since the last time into the ledger."""
        self._book(self._table.standing_energy())

    def _book(self, some: Sequence[tuple[Hello, StandingEnergy]]) -> None:
        for hello, energy in some:
            entry = self._standing.reported(hello.agent_id, hello.agent_name, energy, time())
            if entry is not None:
                self._ledger.record(entry)

    async def store_learned(self, *, at_end: bool = False) -> None:
        """Writes prices and lengths to their files where there is anything new; at the end what failed before, too."""
        if self._prices.n_settled != (0 if at_end else self._n_prices_kept):
            self._n_prices_kept = self._prices.n_settled
            await asyncio.to_thread(self._price_file.write, self._prices.saved())
        if self._lengths.n_learned != (0 if at_end else self._n_lengths_kept):
            self._n_lengths_kept = self._lengths.n_learned
            await asyncio.to_thread(self._lengths_file.write, self._lengths.saved)

    async def _evict(self) -> None:
        while True:
            await asyncio.sleep(EVICT_EVERY_S)
            for agent_id in self._table.evict(asyncio.get_running_loop().time()):
                log.info("agent_evicted", agent_id=agent_id)
                self._service.agent_evicted(agent_id)

    async def _keep_trust(self) -> None:
        """Notices certificates that were replaced and agents that were revoked."""
        while True:
            self._load_certificates()
            self._hub.disconnect_revoked()
            await asyncio.sleep(KEEP_TRUST_EVERY_S)

    async def _sample_power(self) -> None:
        while True:
            self._past.energy.power_sampled(self._table.fleet_power(), time())
            await asyncio.sleep(SAMPLE_POWER_EVERY_S)

    async def _keep_standing(self) -> None:
        while True:
            await asyncio.sleep(BOOK_EVERY_S / 3)
            waiting = self._table.standing_energy()
            for first in range(0, len(waiting), BOOKED_AT_ONCE):
                self._book(waiting[first : first + BOOKED_AT_ONCE])
                # Requests go in between.
                await asyncio.sleep(0)

    async def _keep_learned(self) -> None:
        """Now and then, so that a crash costs little of what was learned."""
        while True:
            await asyncio.sleep(KEEP_LEARNED_EVERY_S)
            await self.store_learned()
