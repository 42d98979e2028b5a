"""The books of a storm: is every request ended, answered rightly and accounted, whatever dies, hangs, breaks or lies?

Eight clients ask a real coordinator with three agents (fake experts, simulated hosts), each in a process of its own.
Meanwhile processes are killed, told to stop and frozen at random, links are spoilt and broken, engines are poisoned,
agents lie, and clients send bombs, leave early or allow no time. Then everything is let finish, and what clients, links
and the ledger say of the same requests is compared.

`python -m benchmarks.storm --minutes 10`; the last line is one JSON object, of which all but `requests` and `answered`
must be 0:

wrong: the text is not what the experts say. doubled: text or end came twice. hung: a request without an end by its
budget and 5 s, the pauses of the coordinator and of this process taken off. internal_errors: responses with 500, and
exceptions in the coordinator's log. ledger_mismatches: a receipt without its entry or with other figures, an entry
without its client, sums that do not add up. joules_missing: joules that an agent has told over a sound link, without an
entry.
fds_over_baseline, tasks_over_baseline: of the coordinator that is left, against one at rest before the storm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import aiohttp

from benchmarks.storm_books import Findings, LedgerBooks, Span, audit
from benchmarks.storm_clients import REQUEST_TIMEOUT_S, Bombs, Client, Ended
from benchmarks.storm_faults import Storm, lie_again_and_again
from benchmarks.storm_fleet import Fleet, storm_fleet
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, mint
from moe2.coordinator.keys.store import KeyFile

N_CLIENTS = 8
SETTLES_S = 90.0
"""After the storm everything must be at rest again by then."""
STALL_S = 0.5
"""What comes later than this, and by as much, shows that this process did not run."""
COUNTED = (
    "wrong",
    "doubled",
    "hung",
    "internal_errors",
    "ledger_mismatches",
    "joules_missing",
    "fds_over_baseline",
    "tasks_over_baseline",
)
WARM_UP = ("plain", "stream", "vote", "rank", "mix", "consensus", "responses", "messages", "bad_body", "structured")
MAX_LINES = 40


async def run(root: Path, *, seconds: float, seed: int) -> dict[str, int]:
    """One storm in the folder `root`; returns the figures of the last line, and prints what they rest on."""
    keys = _make_keys(root)
    async with storm_fleet(root) as fleet:
        baseline = await _baseline(fleet, keys[0])
        askers = [Client(n, seed, fleet.coordinator.api_url, key, baseline.bombs) for n, key in enumerate(keys)]
        of_liars = Client(N_CLIENTS, seed, fleet.coordinator.api_url, keys[0], baseline.bombs)
        clients = [*askers, of_liars, baseline.client]
        storm = Storm(fleet, seed)
        began_s = time.monotonic()
        until_s = began_s + seconds
        watching = asyncio.create_task(_note_stalls(fleet))
        async with asyncio.TaskGroup() as tasks:
            for client in askers:
                tasks.create_task(client.run(until_s))
            tasks.create_task(storm.rage(until_s, spares_coordinator_from_s=began_s + seconds / 2))
            tasks.create_task(lie_again_and_again(fleet, seed, of_liars, until_s, storm.counts))
        watching.cancel()
        found = Findings()
        await _settle(fleet, found)
        fds_over, tasks_over = await baseline.exceeded(fleet)
        await fleet.coordinator.end(signal.SIGTERM)
    ended = [one for client in clients for one in client.ended]
    links = [link for agent in fleet.agents for link in agent.links]
    books = audit(ended, links, _read_ledger(root), fleet.away)
    found.counts.update(books.counts)
    found.lines += books.lines
    print(f"joules: {books.n_told} figures were told by agents, {books.n_compared} of them compared with the ledger")
    _count_exceptions(root, found)
    found.counts |= Counter(fds_over_baseline=fds_over, tasks_over_baseline=tasks_over)
    _tell(storm.counts, ended, found)
    n_answered = sum(one.is_answered for one in ended)
    return {"requests": len(ended), "answered": n_answered, **{name: found.counts[name] for name in COUNTED}}


def _make_keys(root: Path) -> list[str]:
    """A key for each client, in the coordinator's file."""
    file, keys = KeyFile(root), []
    for number in range(N_CLIENTS):
        entropy = bytes([number + 1]) * ENTROPY_BYTES
        record, key = mint(KeyOptions(name=f"client-{number}"), entropy=entropy, now_unix_s=time.time())
        with file.changing() as known:
            file.write(known.with_key(record))
        keys.append(key)
    return keys


class _Baseline:
    """What a coordinator at rest holds that has seen every kind of request."""

    def __init__(self, fds: int, tasks: list[str], client: Client, bombs: Bombs) -> None:
        self._fds = fds
        self._tasks = tasks
        self.client = client
        self.bombs = bombs

    async def exceeded(self, fleet: Fleet) -> tuple[int, int]:
        """(open files, tasks) beyond it; what is closed a little later is waited for."""
        by_s = time.monotonic() + SETTLES_S
        while True:
            tasks = await fleet.tasks()
            over = max(0, fleet.fds() - self._fds), max(0, len(tasks) - len(self._tasks))
            if over == (0, 0) or time.monotonic() > by_s:
                break
            await asyncio.sleep(0.5)
        if any(over):
            more = Counter(map(_without_addresses, tasks)) - Counter(map(_without_addresses, self._tasks))
            print(f"left over: {over[0]} files; tasks {dict(more)}")
        return over


def _without_addresses(line: str) -> str:
    return line.partition(" ")[2].partition(" at 0x")[0]


async def _baseline(fleet: Fleet, key: str) -> _Baseline:
    bombs = await asyncio.to_thread(Bombs)
    client = Client(-1, 0, fleet.coordinator.api_url, key, bombs)
    async with aiohttp.ClientSession(fleet.coordinator.api_url) as http:
        for kind in WARM_UP:
            await client.ask_once(http, kind)
    await fleet.until(lambda status: status.requests_active == 0, REQUEST_TIMEOUT_S)
    await asyncio.sleep(1.0)
    return _Baseline(fleet.fds(), await fleet.tasks(), client, bombs)


async def _note_stalls(fleet: Fleet) -> None:
    """Note when this process itself stands still, on a machine that has other work: clients and links live in it."""
    while True:
        now_s = time.monotonic()
        await asyncio.sleep(STALL_S)
        late_s = time.monotonic() - now_s - STALL_S
        if late_s > STALL_S:
            print(f"this process stood still for {late_s:.1f} s")
            fleet.away.append(Span(now_s, now_s + late_s, deadly=False))


async def _settle(fleet: Fleet, found: Findings) -> None:
    """Wait until nothing is in progress and every agent is back."""
    if not await fleet.until(lambda status: status.requests_active == 0 and fleet.is_whole(status), SETTLES_S):
        status = await fleet.status()
        active = None if status is None else status.requests_active
        found.note("hung", f"{active} requests are in progress and the agents not all ready {SETTLES_S:.0f} s later")


def _read_ledger(root: Path) -> LedgerBooks:
    with closing(sqlite3.connect(root / "ledger.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        requests = {row["request_id"]: dict(row) for row in connection.execute("SELECT * FROM requests")}
        rows = connection.execute("SELECT * FROM attempts")
        return LedgerBooks(requests, {(row["request_id"], row["place"]): dict(row) for row in rows})


def _count_exceptions(root: Path, found: Findings) -> None:
    """A trace in the coordinator's log is a defect, whoever has seen it."""
    for line in (root / "coordinator.log").read_text(errors="replace").splitlines():
        if "Traceback (most recent call last)" in line or '"event": "request_broken"' in line:
            found.note("internal_errors", line[:2000])


def _tell(faults: Counter[str], ended: list[Ended], found: Findings) -> None:
    print("faults:", json.dumps(dict(sorted(faults.items()))))
    outcomes = Counter(f"{one.kind}: {_outcome(one)}" for one in ended)
    for name, count in sorted(outcomes.items()):
        print(f"  {count:5d} {name}")
    refusals = Counter(one.error["message"] for one in ended if one.error and one.status == 503)
    for text, count in refusals.most_common(12):
        print(f"  {count:5d} {text}")
    for line in found.lines[:MAX_LINES]:
        print(line)


def _outcome(one: Ended) -> str:
    if one.error is not None:
        return f"{one.status} {one.error.get('code')}"
    words = ("gave_up", "left", "refused", "broken", "is_answered")
    return next((word for word in words if getattr(one, word)), str(one.status))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of all choices; default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and ledger in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as temporary:
        root = arguments.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        figures = asyncio.run(run(root, seconds=60 * arguments.minutes, seed=arguments.seed))
    print(json.dumps(figures))
    sys.exit(any(figures[name] for name in COUNTED))


if __name__ == "__main__":
    main()
