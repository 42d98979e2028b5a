"""Keys, register, scores and wishes that coordinators share, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moe2.common.link.enrolment import digest
from moe2.coordinator.database import membership as membership_module
from moe2.coordinator.database.importing import import_files
from moe2.coordinator.database.pair import Pair
from moe2.coordinator.database.postgresql import DatabaseError, Session
from moe2.coordinator.database.settings import DatabaseSection
from moe2.coordinator.database.shared_trust import KeyTable, SharedRegister
from moe2.coordinator.fleet.register import EnrolledAgent, EnrolmentToken, Presented, Register, add_token, admit
from moe2.coordinator.fleet.register_file import RegisterFile
from moe2.coordinator.gate.feedback import Feedback
from moe2.coordinator.gate.feedback_file import FEEDBACK_FILE, FeedbackFile
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, KeyRecord, Refusal, mint
from moe2.coordinator.keys.store import KeyFile, KeyRing
from moe2.coordinator.ledger.accounts import Accounts
from moe2.coordinator.ledger.store import Ledger
from moe2.coordinator.provisioning.price_book import Averages, PriceBook
from moe2.coordinator.provisioning.steering import Wishes
from tests.coordinator.ledger.entries import request_entry
from tests.fakes.postgres import needs_postgres

pytestmark = needs_postgres
POLL_S = 0.005
Open = Callable[[str], Session]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(POLL_S)


class Said:
    """What a coordinator hears of the others."""

    def __init__(self) -> None:
        self.scores: list[Feedback] = []
        self.wishes: list[Wishes] = []
        self.n_changes = 0

    def changed(self) -> None:
        self.n_changes += 1


@contextmanager
def pair(url: str, tmp_path: Path, name: str, *, scores: tuple[Feedback, ...] = ()) -> Iterator[tuple[Pair, Said]]:
    """A coordinator's part in the group, without its shipper, whose ledger nobody has opened."""
    said = Said()
    one = Pair(
        DatabaseSection(url=url, name=name),
        url,
        tmp_path / f"{name}.sqlite",
        scores=scores,
        on_scores=said.scores.extend,
        on_wishes=said.wishes.append,
        on_change=said.changed,
        accounts=Accounts(),
        prices=PriceBook(Averages()),
        on_lease=lambda: None,
    )
    one._loop = asyncio.get_running_loop()
    one.membership.open()
    one.membership.start()
    try:
        yield one, said
    finally:
        one.membership.stop(10)
        one.register.close()
        one.lender._session.close()


def made(name: str = "app", *, nth: int = 1) -> tuple[KeyRecord, str]:
    return mint(KeyOptions(name=name), entropy=bytes([nth]) * ENTROPY_BYTES, now_unix_s=1.8e9)


def score(request_id: str, value: float = 1.0) -> Feedback:
    return Feedback(
        request_id=request_id, expert="id/tiny", model="tiny", score=value, prompt_sha256="0" * 64, at_unix_s=1.0
    )


async def test_a_key_that_is_made_and_revoked_counts_on_every_coordinator(
    url: str, opened: Open, tmp_path: Path
) -> None:
    """A key is accepted by both coordinators once it is made, and by none once it is revoked."""
    table = KeyTable(opened("cli"))
    with pair(url, tmp_path, "a") as (one, _), pair(url, tmp_path, "b") as (two, _):
        rings = [KeyRing(one.keys, clock=lambda: 1.8e9), KeyRing(two.keys, clock=lambda: 1.8e9)]
        record, key = made()
        with table.changing() as keys:
            table.write(keys.with_key(record))
        await until(lambda: all(ring.check(key) == record for ring in rings))
        with table.changing() as keys:
            table.write(keys.with_revoked(record.id, 1.8e9))
        await until(lambda: all(ring.check(key) is Refusal.REVOKED for ring in rings))


async def test_keys_are_refused_once_the_copy_is_too_old(
    url: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that has not been confirmed for five minutes accepts no key, and says why."""
    table = KeyTable(opened("cli"))
    record, key = made()
    with table.changing() as keys:
        table.write(keys.with_key(record))
    with pair(url, tmp_path, "a") as (one, _):
        ring = KeyRing(one.keys, clock=lambda: 1.8e9)
        assert ring.check(key) == record
        one.membership.stop(10)
        monkeypatch.setattr(membership_module, "MAX_COPY_AGE_S", 0.0)
        assert ring.check(key) is Refusal.COPY_TOO_OLD
        assert not ring.is_active(record.id)


async def test_a_record_of_a_newer_release_is_refused_and_the_former_copy_stays(
    url: str, opened: Open, tmp_path: Path, session: Session
) -> None:
    """A key's record that this release does not understand is told as the database's fault; other keys stay good."""
    table = KeyTable(opened("cli"))
    record, key = made()
    with table.changing() as keys:
        table.write(keys.with_key(record))
    with pair(url, tmp_path, "a") as (one, _):
        ring = KeyRing(one.keys, clock=lambda: 1.8e9)
        with session.transaction() as cursor:
            cursor.execute("INSERT INTO keys (id, record) VALUES ('x', '{\"colour\": 1}')")
        await until(lambda: [warning.code for warning in one.warnings()] == ["database_refused"])
        assert ring.check(key) == record


async def test_agents_that_enrol_at_once_use_a_token_no_more_often_than_it_allows(url: str, opened: Open) -> None:
    """Of twelve agents that show a token for four uses to two coordinators, exactly four are enrolled."""
    registers = [SharedRegister(opened(name)) for name in "ab"]
    token = EnrolmentToken(name="four", sha256=digest("secret"), created_unix_s=1.8e9, most_uses=4)
    registers[0].change(lambda register: (None, add_token(register, token)))

    def enrol(number: int) -> bool:
        shown = Presented("secret", f"agent-{number:032x}", "host", "c" * 43 + str(number))

        def change(register: Register) -> tuple[Any, Register]:
            return admit(register, shown, static_token=None, now_unix_s=1.8e9)

        try:
            registers[number % 2].change(change)
        except Exception:
            return False
        return True

    done = await asyncio.gather(*(asyncio.to_thread(enrol, number) for number in range(12)))
    for register in registers:
        register.refresh()
    assert sum(done) == 4
    assert registers[0].current() == registers[1].current()
    assert [one.n_used for one in registers[0].current().tokens] == [4]


def test_what_a_decision_rests_on_is_in_the_copy_after_it(opened: Open) -> None:
    """An agent that the other coordinator has just enrolled is known here once it was let in, without a change."""
    agent = EnrolledAgent(agent_id="a1", agent_name="host", sha256="0" * 64, token="t", enrolled_unix_s=1.0)
    one, two = SharedRegister(opened("a")), SharedRegister(opened("b"))
    two.refresh()
    one.change(lambda _: (None, Register(agents=(agent,))))
    two.change(lambda register: (None, register))
    assert two.current().agents == (agent,)


async def test_an_agent_that_is_revoked_is_told_to_every_coordinator(url: str, opened: Open, tmp_path: Path) -> None:
    """A revocation reaches the other coordinator's copy and has it look at its connections."""
    agent = EnrolledAgent(agent_id="a1", agent_name="host", sha256="0" * 64, token="t", enrolled_unix_s=1.0)
    register = SharedRegister(opened("cli"))
    with pair(url, tmp_path, "a") as (one, said):
        register.change(lambda before: (None, Register(tokens=before.tokens, agents=(agent,))))
        await until(lambda: one.register.current().agents == (agent,))
        register.change(lambda before: (None, Register(tokens=before.tokens, agents=())))
        await until(lambda: one.register.current().agents == ())
        await until(lambda: said.n_changes >= 2)


@pytest.mark.slow
async def test_a_score_counts_once_on_every_coordinator(url: str, tmp_path: Path) -> None:
    """A score reaches the other coordinator once, also one that was kept before the start; nobody hears its own."""
    with pair(url, tmp_path, "a", scores=(score("old"),)) as (one, own), pair(url, tmp_path, "b") as (_, other):
        one.bulletin.score(score("new", 0.25))
        await until(lambda: {one.request_id for one in other.scores} == {"old", "new"})
        assert own.scores == []
    with pair(url, tmp_path, "b") as (_, again):
        await until(lambda: len(again.scores) == 2)


@pytest.mark.slow
async def test_an_operators_wish_reaches_the_other_coordinator(url: str, tmp_path: Path) -> None:
    """What is pinned at one coordinator is pinned at the other; the later wish replaces the earlier one."""
    with pair(url, tmp_path, "a") as (one, _), pair(url, tmp_path, "b") as (_, other):
        one.bulletin.wish(Wishes(pinned=("h1",)))
        await until(lambda: other.wishes[-1:] == [Wishes(pinned=("h1",))])
        one.bulletin.wish(Wishes(kept_asleep=("h1",)))
        await until(lambda: other.wishes[-1:] == [Wishes(kept_asleep=("h1",))])


@pytest.mark.slow
async def test_different_gates_are_told(url: str, tmp_path: Path) -> None:
    """Two coordinators with different gates warn of each other; with the same one they do not."""
    with pair(url, tmp_path, "a") as (one, _), pair(url, tmp_path, "b") as (two, _):
        one.membership.gate_sha256 = "1" * 64
        await until(lambda: "gate_differs" in [warning.code for warning in two.warnings()])
        two.membership.gate_sha256 = "1" * 64
        await until(lambda: two.warnings() == () and one.warnings() == ())


async def test_the_files_of_one_coordinator_are_brought_in_once(url: str, session: Session, tmp_path: Path) -> None:
    """Keys, agents, scores and requests of the files are in the database, and a second import adds nothing."""
    record, _ = made()
    file = KeyFile(tmp_path)
    with file.changing() as keys:
        file.write(keys.with_key(record))
    agent = EnrolledAgent(agent_id="a1", agent_name="host", sha256="0" * 64, token="t", enrolled_unix_s=1.0)
    RegisterFile(tmp_path).change(lambda _: (None, Register(agents=(agent,))))
    FeedbackFile(tmp_path / FEEDBACK_FILE).append(score("req-1"))
    ledger = tmp_path / "ledger.sqlite"
    async with Ledger(ledger, retention_days=36_500).running() as _:
        pass
    kept = Ledger(ledger, retention_days=36_500)
    async with kept.running():
        await asyncio.gather(*(kept.record(request_entry(f"req-{number}")) for number in range(3)))

    def run() -> tuple[int, ...]:
        found = import_files(session, "a", tmp_path, ledger, tmp_path / FEEDBACK_FILE)
        return found.keys, found.agents, found.tokens, found.scores, found.requests, found.standing

    assert await asyncio.to_thread(run) == (1, 1, 0, 1, 3, 0)
    assert await asyncio.to_thread(run) == (0, 0, 0, 0, 0, 0)
    assert KeyTable(session).read().keys == (record,)


async def test_a_key_that_was_revoked_in_the_database_stays_so_after_an_import(
    url: str, session: Session, tmp_path: Path
) -> None:
    """The import of an old key file does not bring a revoked key back to life."""
    record, _ = made()
    file = KeyFile(tmp_path)
    with file.changing() as keys:
        file.write(keys.with_key(record))
    import_files(session, "a", tmp_path, tmp_path / "none.sqlite", tmp_path / FEEDBACK_FILE)
    table = KeyTable(session)
    with table.changing() as keys:
        table.write(keys.with_revoked(record.id, 5.0))
    import_files(session, "a", tmp_path, tmp_path / "none.sqlite", tmp_path / FEEDBACK_FILE)
    assert table.read().keys[0].revoked_at_unix_s == 5.0


def test_keys_cannot_be_changed_without_the_database() -> None:
    """A change while the database is away fails with what to do, and changes nothing."""
    table = KeyTable(Session("postgresql:///x?host=/nowhere", name="cli"))
    with pytest.raises(DatabaseError, match="cannot be reached"), table.changing():
        pass
