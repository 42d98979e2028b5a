"""Ten cells on one database, in virtual time: do budgets hold and books balance? Run as `python -m benchmarks.cells`.

Ten pairs of coordinators share the daily limits of keys. Requests of all keys come to all coordinators; coordinators
crash and start again, the database goes away for a minute, journals arrive twice or late. Leases are those of the
product (`moe2.coordinator.ledger.leases`), the database is `lend`, time is a heap of events. SIMULATED: no request is
answered, nothing is measured but counts.

The last line is one JSON object: `over_limit`: microjoules beyond a limit, over all keys. `stranded_requests`: what is
left of a limit that a key with requests waiting could not use, in its largest requests, at most over all keys and per
coordinator. `lost_entries`, `sum_mismatch_uj`: journals against books. `draws_per_s`, `draws_per_request`: what the
database is asked for leases. `polls_per_s`, `shipments_per_s`: what it is asked otherwise.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from moe2.coordinator.ledger.leases import Ask, Lease, lend

CELLS = 10
COORDINATORS_PER_CELL = 2
N_KEYS = 200
REQUESTS_PER_S = 1000.0
LARGEST_UJ = 60_000_000
RENEW_EVERY_S = 0.5
SHIP_EVERY_S = 0.5
POLL_EVERY_S = 1.0
OUTAGES_S = ((200.0, 260.0), (420.0, 430.0))
CRASHES = 30
RESTART_S = 20.0


@dataclass
class Held:
    """What one coordinator knows of one key: its lease, what is settled in its journal, what is reserved."""

    lease: Lease
    settled_uj: int = 0
    reserved_uj: int = 0

    @property
    def used_uj(self) -> int:
        return self.settled_uj + self.reserved_uj


@dataclass
class Coordinator:
    """One coordinator. journal: entries (id, key, microjoules) that survive its death; shipped: how many arrived."""

    name: str
    held: dict[int, Held] = field(default_factory=dict)
    journal: list[tuple[str, int, int]] = field(default_factory=list)
    shipped: int = 0
    epoch: int = 0
    is_up: bool = True


class Cells:
    """The simulation. limits_uj: of each key for the day."""

    def __init__(self, *, n_keys: int, requests_per_s: float, seconds: float, seed: int) -> None:
        self._random = Random(seed)
        self._seconds, self._rate = seconds, requests_per_s
        mean_uj = LARGEST_UJ // 2
        share = requests_per_s * seconds / n_keys
        # Half of the keys run out before the end.
        self.limits_uj = [int(mean_uj * share * self._random.uniform(0.3, 1.6)) for _ in range(n_keys)]
        self.drawn: list[dict[str, int]] = [{} for _ in range(n_keys)]
        self.books: dict[str, tuple[int, int]] = {}
        self.all = [Coordinator(f"{cell}-{n}") for cell in range(CELLS) for n in range(COORDINATORS_PER_CELL)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self.now_s = 0.0
        self.n_requests = self.n_admitted = self.n_refused = self.n_draws = self.n_shipments = self.n_polls = 0
        self.worst_over_uj = 0

    def at(self, at_s: float, act: Callable[[], None]) -> None:
        """Has something happen at a time."""
        self._n += 1
        heapq.heappush(self._events, (at_s, self._n, act))

    def run(self) -> None:
        """Lets the day pass, then has everything shipped."""
        self.at(0.0, self._arrive)
        for one in self.all:
            self.at(self._random.random(), lambda one=one: self._steady(one))  # type: ignore[misc]
        for _ in range(CRASHES):
            one = self._random.choice(self.all)
            self.at(self._random.uniform(0.0, self._seconds), lambda one=one: self._crash(one))  # type: ignore[misc]
        while self._events and self._events[0][0] < self._seconds:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = self._seconds
        for one in self.all:
            self._ship(one)

    @property
    def is_database_up(self) -> bool:
        return not any(begins <= self.now_s < ends for begins, ends in OUTAGES_S)

    def _arrive(self) -> None:
        self.at(self.now_s + self._random.expovariate(self._rate), self._arrive)
        up = [one for one in self.all if one.is_up]
        if not up:
            return
        one, key = self._random.choice(up), self._random.randrange(len(self.limits_uj))
        need_uj = self._random.randrange(1, LARGEST_UJ)
        self.n_requests += 1
        held = one.held.setdefault(key, Held(Lease(self.limits_uj[key])))
        held.lease = held.lease.needs(need_uj)
        if held.lease.free(held.used_uj, self.now_s) < need_uj and self.is_database_up:
            self._ask(one, key, held.lease.draw(held.used_uj, need_uj, self.now_s, len(self.all)))
            if held.lease.free(held.used_uj, self.now_s) < need_uj:
                self._recall(key, but=one)
                self._ask(one, key, held.lease.draw(held.used_uj, need_uj, self.now_s, len(self.all)))
        if held.lease.free(held.used_uj, self.now_s) < need_uj:
            self.n_refused += 1
            return
        self.n_admitted += 1
        held.reserved_uj += need_uj
        took_uj = self._random.randrange(need_uj + 1)
        epoch, number = one.epoch, self.n_requests
        ends_s = self.now_s + self._random.expovariate(0.5)
        self.at(ends_s, lambda: self._settle(one, key, held, f"{number}", need_uj, took_uj, epoch))

    def _settle(
        self, one: Coordinator, key: int, held: Held, entry: str, need_uj: int, took_uj: int, epoch: int
    ) -> None:
        if one.epoch != epoch:
            return  # It died meanwhile; what was reserved was charged then.
        held.reserved_uj -= need_uj
        held.settled_uj += took_uj
        one.journal.append((entry, key, took_uj))
        self._check(key)

    def _steady(self, one: Coordinator) -> None:
        """Renews, ships and polls, twice a second."""
        self.at(self.now_s + RENEW_EVERY_S, lambda: self._steady(one))
        if not (one.is_up and self.is_database_up):
            return
        self.n_polls += RENEW_EVERY_S / POLL_EVERY_S  # type: ignore[assignment]
        for key, held in one.held.items():
            ask = held.lease.renewal(held.used_uj, self.now_s, len(self.all))
            if ask is not None:
                self._ask(one, key, ask)
        self._ship(one)

    def _ship(self, one: Coordinator) -> None:
        """Ships what is new, and sometimes something old once more, as after a failover."""
        again = self._random.randrange(20) if self._random.random() < 0.05 else 0
        part = one.journal[max(0, one.shipped - again) :]
        if part:
            self.n_shipments += 1
            self.books.update({f"{one.name}/{entry}": (key, took_uj) for entry, key, took_uj in part})
            one.shipped = len(one.journal)

    def _crash(self, one: Coordinator) -> None:
        """Dies, and starts again after a while: what was reserved stays charged, the rest of its leases comes back."""
        if not one.is_up:
            return
        one.epoch, one.is_up = one.epoch + 1, False
        for key, held in one.held.items():
            if held.reserved_uj:
                one.journal.append((f"interrupted-{one.epoch}-{key}", key, held.reserved_uj))
            one.held[key] = Held(Lease(self.limits_uj[key]), held.used_uj)

        def start() -> None:
            if not self.is_database_up:
                self.at(self.now_s + 1.0, start)
                return
            one.is_up = True
            for key, held in one.held.items():
                self._ask(one, key, Ask(held.used_uj))

        self.at(self.now_s + RESTART_S, start)

    def _recall(self, key: int, *, but: Coordinator) -> None:
        for other in self.all:
            held = other.held.get(key)
            if other is not but and other.is_up and held is not None:
                ask = held.lease.surplus(held.used_uj, self.now_s)
                if ask is not None:
                    self._ask(other, key, ask)

    def _ask(self, one: Coordinator, key: int, ask: Ask) -> None:
        self.n_draws += 1
        held = one.held[key]
        held.lease = held.lease.asked(ask)
        self.drawn[key], answer = lend(self.drawn[key], one.name, self.limits_uj[key], ask)
        held.lease = held.lease.took(answer, self.now_s)
        self._check(key)

    def _check(self, key: int) -> None:
        used_uj = sum(one.held[key].used_uj for one in self.all if key in one.held)
        self.worst_over_uj = max(self.worst_over_uj, used_uj - self.limits_uj[key])


def figures(cells: Cells, seconds: float) -> dict[str, float]:
    """The last line's figures."""
    journals = {f"{one.name}/{entry}": (key, took) for one in cells.all for entry, key, took in one.journal}
    used = [sum(one.held[key].used_uj for one in cells.all if key in one.held) for key in range(len(cells.limits_uj))]
    settled = sum(one.held[key].settled_uj for one in cells.all for key in one.held)
    left = [limit - spent for limit, spent in zip(cells.limits_uj, used, strict=True)]
    exhausted = [uj for uj, limit in zip(left, cells.limits_uj, strict=True) if uj < 0.02 * limit]
    return {
        "over_limit": max(0, cells.worst_over_uj),
        "stranded_requests": round(max(exhausted, default=0) / LARGEST_UJ / len(cells.all), 3),
        "exhausted_keys": len(exhausted),
        "lost_entries": len(journals.keys() - cells.books.keys()),
        "sum_mismatch_uj": abs(sum(took for _, took in cells.books.values()) - settled),
        "requests": cells.n_requests,
        "admitted": cells.n_admitted,
        "draws_per_s": round(cells.n_draws / seconds, 1),
        "draws_per_request": round(cells.n_draws / max(1, cells.n_requests), 3),
        "shipments_per_s": round(cells.n_shipments / seconds, 1),
        "polls_per_s": round(cells.n_polls / seconds, 1),
    }


def main() -> None:
    """Runs the simulation and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="virtual seconds")
    parser.add_argument("--requests-per-s", type=float, default=REQUESTS_PER_S, help="of all cells together")
    parser.add_argument("--keys", type=int, default=N_KEYS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    cells = Cells(
        n_keys=arguments.keys,
        requests_per_s=arguments.requests_per_s,
        seconds=arguments.seconds,
        seed=arguments.seed,
    )
    cells.run()
    print("SIMULATED: virtual time, no request was answered.")
    print(json.dumps(figures(cells, arguments.seconds)))


if __name__ == "__main__":
    main()
