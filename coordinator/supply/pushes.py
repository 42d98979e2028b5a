"""Models on their way from the coordinator to hosts: checked beforehand, several hosts at a time, resumed."""

from __future__ import annotations

import asyncio
import re
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import time

import msgspec
import structlog

from moe2.common.checksums import Checksums, checksums_of
from moe2.common.errors import Moe2Error
from moe2.common.gguf import check_whole, read_header
from moe2.common.link.messages import CommandAnswer, CommandOutcome, ToAgent
from moe2.common.link.supply import FetchModel, FilePart, LendFile, Ticket, TicketWanted
from moe2.common.status import AgentRow, PushRow
from moe2.common.terminal.figures import size
from moe2.common.tickets import TICKET_S, Admission, TicketFault, Tickets
from moe2.coordinator.supply.hosts import Giver, HostError, check_takes_orders, giver_for, meant

log = structlog.get_logger()

MAX_KEPT = 500
HEADROOM_BYTES = 1 << 28
LOOK_EVERY_S = 1.0
LEND_ANSWER_S = 5.0
"""A neighbour that has not said by then whether it gives a file is not asked again for this host."""
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NAME = re.compile(r"[A-Za-z0-9][^/\\\x00-\x1f\x7f]{0,190}\.gguf")
_RUNNING = ("waiting", "sending")
_LEND = "lend-"
"""Begins the ids of orders to neighbours."""


class PushError(Moe2Error):
    """A model that cannot be sent."""


class PushWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's word: send this file, with its further parts, to these hosts."""

    path: str
    hosts: tuple[str, ...] = ()
    matching: str | None = None


@dataclass(frozen=True)
class Parcel:
    """A model as it is sent. paths: of its parts, in order."""

    paths: tuple[Path, ...]
    parts: tuple[FilePart, ...]
    sha256: str
    architecture: str
    licence: str | None

    @property
    def size_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.size_bytes for part in self.parts)


@dataclass
class _Lend:
    """A neighbour that was asked to give a part. until_s: when it must have agreed; None once it has."""

    command_id: str
    giver: Giver
    part: int
    secret: str
    until_s: float | None


@dataclass
class _Push:
    """One host's fetch. done: bytes by part, as far as they were sent. ready: it wants a ticket for this part.

    is_out: it has a place among those that are sent to. until_s: when it loses that place if it has not come with its
    ticket by then; None once it has. lend: the neighbour that gives to it in place of the coordinator. alone: it wants
    to be sent to by the coordinator alone. shunned: neighbours that did not give.
    """

    row: PushRow
    parcel: Parcel
    order: FetchModel
    done: dict[int, int]
    ready: int | None = None
    is_out: bool = False
    until_s: float | None = None
    """It has a ticket, or a connection."""
    is_told: bool = True
    """The agent that is connected now has the order."""
    lend: _Lend | None = None
    alone: bool = False
    shunned: set[str] = field(default_factory=set)


class Pushes:
    """All pushes. rows: the fleet as it is. send: to an agent; False if it is not connected.

    port: of the listener for files; None where there is none. tls: whether it speaks TLS.
    """

    def __init__(
        self,
        *,
        rows: Callable[[], Sequence[AgentRow]],
        send: Callable[[str, ToAgent], bool],
        max_hosts: int,
        tls: bool,
        folder: Path | None,
    ) -> None:
        self._rows = rows
        self._send = send
        self._max_hosts = max_hosts
        self._tls = tls
        self._folder = folder
        self.port: int | None = None
        self._pushes: dict[str, _Push] = {}
        self._tickets = Tickets()
        self._known_sums: dict[tuple[tuple[Path, int, int], ...], Checksums] = {}

    # --- An operator's word -------------------------------------------------------------------------------------------

    async def want(self, wanted: PushWanted, *, is_local: bool) -> tuple[PushRow, ...]:
        """Begins to send a model. Raises `Moe2Error` before a byte travels.

        is_local: the word came over the local socket, and may name any path; else a file of the folder.
        """
        if self.port is None:
            raise PushError("There is no listener for files.", remedy="Set push.port, and restart the coordinator.")
        path = self._path(wanted.path, is_local=is_local)
        hosts = meant(self._rows(), wanted.hosts, wanted.matching)
        parcel = await asyncio.to_thread(self._parcel, path)
        for host in hosts:
            _check(host, parcel)
        running = {(one.row.agent_id, one.parcel.sha256): one for one in self._pushes.values() if _runs(one)}
        found = []
        for host in hosts:
            known = running.get((host.agent_id, parcel.sha256))
            found.append(known.row if known else self._begin(host, parcel))
        return tuple(found)

    def _path(self, text: str, *, is_local: bool) -> Path:
        if is_local:
            path = Path(text)
            if not path.is_absolute() or "\0" in text:
                raise PushError(
                    f"{text!r} is not an absolute path.", remedy="Name the file by its path from the root on."
                )
            return path
        if self._folder is None:
            raise PushError(
                "No files can be sent over the API: push.folder is not set.",
                remedy="Set push.folder, or use the coordinator's host.",
            )
        if not _NAME.fullmatch(text):
            raise PushError(f"{text!r} is not the name of a file.", remedy=f"Name a .gguf file in {self._folder}.")
        return self._folder / text

    def _parcel(self, path: Path) -> Parcel:
        """Reads what is to be sent. Blocks."""
        paths = _parts_of(path)
        if not _NAME.fullmatch(path.name):
            raise PushError(f"{path.name!r} cannot be a model's file on a host.", remedy="Its name must end in .gguf.")
        if paths[0] != path:
            raise PushError(f"{path} is a later part of a model.", remedy=f"Name {paths[0].name}.")
        try:
            header = read_header(path)
            for one in paths:
                check_whole(one)
            sizes = [one.stat().st_size for one in paths]
            sums = self._sums(paths)
        except OSError as error:
            raise PushError(
                f"{error.filename or path} cannot be read: {error.strerror}.",
                remedy="Check the path, and that the coordinator's user may read it.",
            ) from error
        if header.architecture is None:
            raise PushError(f"{path} does not say what architecture it has.", remedy="Choose a model in GGUF format.")
        parts = tuple(
            FilePart(name=one.name, size_bytes=n_bytes, sha256=sha256)
            for one, n_bytes, sha256 in zip(paths, sizes, sums.parts, strict=True)
        )
        return Parcel(paths, parts, sums.whole, header.architecture, header.licence)

    def _sums(self, paths: Sequence[Path]) -> Checksums:
        facts = [path.stat() for path in paths]
        key = tuple((path, one.st_size, one.st_ctime_ns) for path, one in zip(paths, facts, strict=True))
        if key not in self._known_sums:
            self._known_sums[key] = checksums_of(paths)
        return self._known_sums[key]

    def _begin(self, host: AgentRow, parcel: Parcel) -> PushRow:
        order = FetchModel(
            command_id=f"push-{uuid.uuid4().hex}",
            parts=parcel.parts,
            sha256=parcel.sha256,
            origin=f"coordinator:{parcel.paths[0]}",
            architecture=parcel.architecture,
            licence=parcel.licence,
        )
        row = PushRow(
            command_id=order.command_id,
            file=parcel.parts[0].name,
            sha256=parcel.sha256,
            agent_id=host.agent_id,
            host=host.agent_name,
            state="waiting",
            done_bytes=0,
            size_bytes=parcel.size_bytes,
            given_unix_s=time(),
        )
        push = _Push(row, parcel, order, {})
        push.is_told = self._send(host.agent_id, order)
        self._pushes[order.command_id] = push
        ended = [key for key, one in self._pushes.items() if not _runs(one)]
        for key in ended[: max(0, len(self._pushes) - MAX_KEPT)]:
            del self._pushes[key]
        log.info("push_began", file=row.file, agent_id=host.agent_id, size_bytes=row.size_bytes)
        return row

    # --- What agents say ----------------------------------------------------------------------------------------------

    def ticket_wanted(self, agent_id: str, wanted: TicketWanted) -> None:
        """An agent is ready to fetch a part."""
        push = self._pushes.get(wanted.command_id)
        if push is None or push.row.agent_id != agent_id or not _runs(push) or wanted.part >= len(push.parcel.parts):
            return
        push.ready, push.is_out, push.is_told, push.lend = wanted.part, False, True, None
        push.alone = wanted.alone
        push.row = msgspec.structs.replace(push.row, state="waiting")
        self._hand_out()

    def answered(self, agent_id: str, answer: CommandAnswer) -> bool:
        """Takes an agent's answer; False if it is about nothing of ours."""
        if answer.command_id.startswith(_LEND):
            self._lend_answered(agent_id, answer)
            return True
        push = self._pushes.get(answer.command_id)
        if push is None or push.row.agent_id != agent_id:
            return False
        states = {CommandOutcome.DONE: "done", CommandOutcome.REFUSED: "refused", CommandOutcome.FAILED: "failed"}
        state = states[answer.outcome]
        done = push.row.size_bytes if state == "done" else push.row.done_bytes
        push.row = msgspec.structs.replace(push.row, state=state, message=answer.message, done_bytes=done)
        self._tickets.withdraw(agent_id, answer.command_id)
        push.ready, push.is_out, push.lend = None, False, None
        self._hand_out()
        return True

    def _lend_answered(self, agent_id: str, answer: CommandAnswer) -> None:
        """A neighbour says whether it gives a part: who waits for it gets its ticket, or another source."""
        for push in self._pushes.values():
            lend = push.lend
            if lend is None or lend.command_id != answer.command_id or lend.giver.agent_id != agent_id:
                continue
            if lend.until_s is None:
                return
            if answer.outcome is not CommandOutcome.DONE:
                log.info("neighbour_refused", file=push.row.file, giver=lend.giver.name, reason=answer.message)
                self._shun(push, lend)
                self._hand_out()
                return
            lend.until_s = None
            giver = lend.giver
            ticket = Ticket(
                command_id=push.row.command_id,
                part=lend.part,
                secret=lend.secret,
                port=giver.port,
                tls=giver.fingerprint is not None,
                address=giver.address,
                source=giver.name,
                fingerprint=giver.fingerprint,
            )
            if self._send(push.row.agent_id, ticket):
                push.row = msgspec.structs.replace(push.row, state="sending", source=giver.name)
            return

    def _shun(self, push: _Push, lend: _Lend) -> None:
        """A neighbour gives nothing to this host: it wants its part from somebody else."""
        push.shunned.add(lend.giver.agent_id)
        push.lend, push.ready = None, lend.part

    def agent_lost(self, agent_id: str) -> None:
        """An agent's connection has ended: its order is told again when it is back."""
        for push in self._pushes.values():
            if push.lend is not None and push.lend.giver.agent_id == agent_id and push.lend.until_s is not None:
                self._shun(push, push.lend)
            if push.row.agent_id == agent_id and _runs(push):
                push.is_told, push.is_out, push.ready, push.lend = False, False, None, None
                push.row = msgspec.structs.replace(push.row, state="waiting")
                self._tickets.withdraw(agent_id, push.row.command_id)
        self._hand_out()

    async def run(self) -> None:
        """Tells agents that came back what they were fetching, and gives unused places to others, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._hand_out()
            self._follow_lends()
            untold = [push for push in self._pushes.values() if _runs(push) and not push.is_told]
            connected = {row.agent_id for row in self._rows() if row.connected and row.models} if untold else set()
            for push in untold:
                if push.row.agent_id in connected:
                    push.is_told = self._send(push.row.agent_id, push.order)

    def _follow_lends(self) -> None:
        """What neighbours give does not pass here: how far it is, the hosts report."""
        given = [push for push in self._pushes.values() if push.lend is not None]
        stores = {row.agent_id: row.models for row in self._rows()} if given else {}
        for push in given:
            store = stores.get(push.row.agent_id)
            done = next((one.done_bytes for one in store.fetching if one.sha256 == push.row.sha256), 0) if store else 0
            if done > push.row.done_bytes:
                push.row = msgspec.structs.replace(push.row, done_bytes=min(done, push.row.size_bytes))

    # --- What the listener does ---------------------------------------------------------------------------------------

    def admit(self, secret: str, agent_id: str, now_s: float) -> tuple[_Push, int] | TicketFault:
        """(the push, its part) that a ticket is for."""
        found = self._tickets.redeem(secret, agent_id, now_s)
        if isinstance(found, TicketFault):
            return found
        return self._admitted(found)

    def _admitted(self, admission: Admission) -> tuple[_Push, int] | TicketFault:
        push = self._pushes.get(admission.command_id)
        if push is None or not _runs(push):
            return TicketFault.UNKNOWN
        push.until_s = None
        push.row = msgspec.structs.replace(push.row, state="sending", source="coordinator")
        return push, admission.part

    def sent(self, push: _Push, part: int, until_bytes: int) -> None:
        """The first `until_bytes` bytes of a part have been sent."""
        push.done[part] = until_bytes
        push.row = msgspec.structs.replace(
            push.row, done_bytes=min(push.row.size_bytes, max(push.row.done_bytes, sum(push.done.values())))
        )

    def hung_up(self, push: _Push) -> None:
        """A connection has ended, whether all of it went out or not: the agent asks again if it lacks something."""
        push.is_out = False
        if _runs(push):
            push.row = msgspec.structs.replace(push.row, state="waiting")
        self._hand_out()

    def rows(self) -> tuple[PushRow, ...]:
        """The pushes of late, the newest last."""
        return tuple(push.row for push in self._pushes.values())

    def _hand_out(self) -> None:
        """Gives tickets to those who wait, as far as there is room. Who has not come in time loses its place."""
        now_s = asyncio.get_running_loop().time()
        for push in self._pushes.values():
            if push.is_out and push.until_s is not None and now_s >= push.until_s:
                push.is_out = False
                log.warning("ticket_not_used", file=push.row.file, agent_id=push.row.agent_id)
            if push.lend is not None and push.lend.until_s is not None and now_s >= push.lend.until_s:
                log.warning("neighbour_silent", file=push.row.file, giver=push.lend.giver.name)
                self._shun(push, push.lend)
        free = self._max_hosts - sum(push.is_out for push in self._pushes.values())
        waiting = [push for push in self._pushes.values() if push.ready is not None and not push.is_out]
        rows = self._rows() if any(not push.alone for push in waiting) else ()
        for push in waiting:
            if not push.alone and self._asked_neighbour(push, rows, now_s):
                continue
            if free > 0 and self._sent_ticket(push, now_s):
                free -= 1

    def _asked_neighbour(self, push: _Push, rows: Sequence[AgentRow], now_s: float) -> bool:
        """Asks a neighbour to give what is wanted; False where there is none to ask."""
        busy = [other.lend.giver.agent_id for other in self._pushes.values() if other.lend is not None]
        giver = giver_for(rows, push.row.agent_id, push.parcel.sha256, busy=busy, shunned=push.shunned)
        if giver is None or push.ready is None:
            return False
        lend = _Lend(f"{_LEND}{uuid.uuid4().hex}", giver, push.ready, secrets.token_urlsafe(32), now_s + LEND_ANSWER_S)
        order = LendFile(
            command_id=lend.command_id,
            sha256=push.parcel.sha256,
            part=lend.part,
            size_bytes=push.parcel.parts[lend.part].size_bytes,
            secret=lend.secret,
        )
        if not self._send(giver.agent_id, order):
            return False
        push.lend, push.ready = lend, None
        return True

    def _sent_ticket(self, push: _Push, now_s: float) -> bool:
        """Gives a host a place and its ticket; False where that cannot be."""
        if push.ready is None or self.port is None:
            return False
        secret = secrets.token_urlsafe(32)
        self._tickets.issue(secret, push.row.agent_id, push.row.command_id, push.ready, now_s)
        ticket = Ticket(command_id=push.row.command_id, part=push.ready, secret=secret, port=self.port, tls=self._tls)
        if not self._send(push.row.agent_id, ticket):
            return False
        push.is_out, push.ready, push.until_s = True, None, now_s + TICKET_S
        return True


def _runs(push: _Push) -> bool:
    return push.row.state in _RUNNING


def _check(host: AgentRow, parcel: Parcel) -> None:
    """Raises `HostError` where a host would not take the model, as far as its report tells."""
    check_takes_orders(host)
    store = host.models
    if store is None:
        return
    name = parcel.parts[0].name
    there = next((file for file in store.files if file.name == name), None)
    if there is not None and there.sha256 != parcel.sha256:
        raise HostError(
            f"{host.agent_name} has another file called {name}.",
            remedy="Send it under another name, or remove that one there: `moe2-agent remove`.",
        )
    if there is not None:
        return
    if store.free_bytes is not None and parcel.size_bytes + HEADROOM_BYTES > store.free_bytes:
        raise HostError(
            f"{host.agent_name} has {size(store.free_bytes)} of disk free; {name} needs {size(parcel.size_bytes)} and "
            f"{size(HEADROOM_BYTES)} of headroom.",
            remedy="Remove models there: `moe2-agent remove`.",
        )
    held = sum(file.size_bytes for file in store.files)
    if store.max_bytes is not None and held + parcel.size_bytes > store.max_bytes:
        raise HostError(
            f"{host.agent_name} takes at most {size(store.max_bytes)} of models and has {size(held)}; {name} needs "
            f"{size(parcel.size_bytes)}.",
            remedy="Remove models there, or raise models_from.max_bytes in its configuration.",
        )


def _parts_of(path: Path) -> tuple[Path, ...]:
    found = _PART.fullmatch(path.name)
    count = int(found["count"]) if found else 1
    if found is None or not 1 <= int(found["number"]) <= count <= 1024:
        return (path,)
    return tuple(path.with_name(f"{found['name']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
