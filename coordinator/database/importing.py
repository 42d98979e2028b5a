"""Brings what one coordinator has kept in its files into the shared database. Doing it again changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe2.coordinator.database.bulletin import Bulletin
from moe2.coordinator.database.postgresql import Cursor, Session
from moe2.coordinator.database.schema import check_version
from moe2.coordinator.database.shared_trust import KeyTable, SharedRegister
from moe2.coordinator.database.shipper import KEEP_COUNTERS, write_requests
from moe2.coordinator.fleet.register import Register
from moe2.coordinator.fleet.register_file import RegisterFile
from moe2.coordinator.gate.feedback_file import FeedbackFile
from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.ledger.journal import everything
from moe2.coordinator.provisioning.state_files import MemoryFile

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Imported:
    """How much was brought in; what was there already is not counted."""

    keys: int
    agents: int
    tokens: int
    scores: int
    requests: int
    standing: int


def import_files(session: Session, name: str, state_dir: Path, ledger: Path, feedback: Path) -> Imported:
    """Brings in keys, register, scores, wishes and ledger of the coordinator `name`. Raises `Moe2Error`.

    A key or agent that the database knows already stays as it is there: it may have been revoked since.
    """
    with session.transaction() as cursor:
        check_version(cursor)
    keys = _keys(session, KeyFile(state_dir))
    agents, tokens = _register(session, RegisterFile(state_dir))
    scores = _words(session, state_dir, feedback)
    requests, standing = _ledger(session, name, ledger) if ledger.exists() else (0, 0)
    return Imported(keys, agents, tokens, scores, requests, standing)


def _keys(session: Session, file: KeyFile) -> int:
    own, table = file.read(), KeyTable(session)
    with table.changing() as keys:
        known = keys.by_id()
        new = [key for key in own.keys if key.id not in known]
        for key in new:
            keys = keys.with_key(key)
        table.write(keys)
    return len(new)


def _register(session: Session, file: RegisterFile) -> tuple[int, int]:
    own = file.current()

    def add(register: Register) -> tuple[tuple[int, int], Register]:
        agents = {agent.agent_id for agent in register.agents}
        tokens = {token.name for token in register.tokens}
        new_agents = tuple(agent for agent in own.agents if agent.agent_id not in agents)
        new_tokens = tuple(token for token in own.tokens if token.name not in tokens)
        after = Register(tokens=(*register.tokens, *new_tokens), agents=(*register.agents, *new_agents))
        return (len(new_agents), len(new_tokens)), after

    return SharedRegister(session).change(add)


def _words(session: Session, state_dir: Path, feedback: Path) -> int:
    scores = FeedbackFile(feedback).read()
    bulletin = Bulletin(scores, on_scores=lambda _: None, on_wishes=lambda _: None)
    wishes = MemoryFile(state_dir).read().wishes
    with session.transaction() as cursor:
        before = _count(cursor, "feedback")
        if _count(cursor, "wishes") == 0 and (wishes.pinned or wishes.kept_asleep):
            bulletin.wish(wishes)
        bulletin.write(cursor)
        return _count(cursor, "feedback") - before


def _ledger(session: Session, name: str, path: Path) -> tuple[int, int]:
    n_requests = n_standing = 0
    for part in everything(path, ROWS_AT_ONCE):
        with session.transaction() as cursor:
            requests, standing = _count(cursor, "requests"), _count(cursor, "standing")
            write_requests(cursor, name, part.requests, part.attempts)
            # A host's joules are the same for whoever heard of them, so that the larger sum has the other one in it.
            # The counters go along: what is above them is shipped when the coordinator joins.
            cursor.executemany(_ADD_STANDING, part.standing)
            cursor.executemany(KEEP_COUNTERS, part.counters)
            n_requests += _count(cursor, "requests") - requests
            n_standing += _count(cursor, "standing") - standing
    return n_requests, n_standing


def _count(cursor: Cursor, table: str) -> int:
    cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608
    found = cursor.fetchone()
    return int(found[0]) if found else 0


_ADD_STANDING = """
    INSERT INTO standing (agent, hour_unix_s, cause, quality, agent_name, joules) VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (agent, hour_unix_s, cause, quality) DO UPDATE SET joules = greatest(standing.joules, excluded.joules)
"""
