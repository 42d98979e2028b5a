"""Models that hosts are told to pull from elsewhere: checked beforehand, told again to hosts that were away."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time

import msgspec
import structlog
from msgspec.structs import replace

from moe2.common.errors import Moe2Error
from moe2.common.link.messages import CommandAnswer, CommandOutcome, ToAgent
from moe2.common.link.supply import Pulling, PullModel
from moe2.common.modelsource import HubSource, Source, UrlSource, is_allowed, source_of
from moe2.common.status import AgentRow, PullRow
from moe2.coordinator.supply.hosts import HostError, check_takes_orders, meant

log = structlog.get_logger()

MAX_KEPT = 500
MAX_SOURCE_CHARACTERS = 2048
_RUNNING = ("waiting", "pulling")


class PullError(Moe2Error):
    """A model that cannot be pulled by order."""


class PullWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's word: these hosts are to pull this model."""

    source: str
    hosts: tuple[str, ...] = ()
    matching: str | None = None


@dataclass
class _Pull:
    """One host's pull. is_told: the agent that is connected now has the order."""

    row: PullRow
    order: PullModel
    is_told: bool

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.row.state in _RUNNING

    @property
    def lacks_size(self) -> bool:
        """Whether it was done before the host had told how far it was."""
        return self.row.state == "done" and self.row.size_bytes is None


class Pulls:
    """All pulls. rows: the fleet as it is. send: to an agent; False if it is not connected."""

    def __init__(
        self,
        *,
        rows: Callable[[], Sequence[AgentRow]],
        send: Callable[[str, ToAgent], bool],
        clock: Callable[[], float] = time,
    ) -> None:
        self._rows = rows
        self._send = send
        self._clock = clock
        self._pulls: dict[str, _Pull] = {}

    def want(self, wanted: PullWanted) -> tuple[PullRow, ...]:
        """Tells hosts to pull. Raises `Moe2Error` before any of them is told."""
        if len(wanted.source) > MAX_SOURCE_CHARACTERS:
            raise PullError(
                f"The source is too long: it may have {MAX_SOURCE_CHARACTERS} characters.", remedy="Name a shorter one."
            )
        source = source_of(wanted.source)
        if not isinstance(source, HubSource | UrlSource):
            raise PullError(
                "A host can be told to pull from the hub or from an address, not from its own files.",
                remedy="Write hf:ORG/REPO/FILE.gguf or https://…/FILE.gguf#sha256=…, or send a file with push.",
            )
        hosts = meant(self._rows(), wanted.hosts, wanted.matching)
        for host in hosts:
            check_pulls(host, source)
        running = {(one.row.agent_id, one.order.source): one.row for one in self._pulls.values() if one.runs}
        return tuple(running.get((host.agent_id, wanted.source)) or self._begin(host, source, wanted) for host in hosts)

    def _begin(self, host: AgentRow, source: HubSource | UrlSource, wanted: PullWanted) -> PullRow:
        order = PullModel(command_id=f"pull-{uuid.uuid4().hex}", source=wanted.source)
        row = PullRow(
            command_id=order.command_id,
            file=source.name,
            source=str(source),
            agent_id=host.agent_id,
            host=host.agent_name,
            state="waiting",
            given_unix_s=self._clock(),
        )
        pull = self._pulls[order.command_id] = _Pull(row, order, is_told=False)
        self._tell(pull)
        ended = [key for key, one in self._pulls.items() if not one.runs]
        for key in ended[: max(0, len(self._pulls) - MAX_KEPT)]:
            del self._pulls[key]
        log.info("pull_ordered", source=row.source, agent_id=host.agent_id)
        return pull.row

    def _tell(self, pull: _Pull) -> None:
        pull.is_told = self._send(pull.row.agent_id, pull.order)
        if pull.is_told:
            pull.row = replace(pull.row, state="pulling")

    def answered(self, agent_id: str, answer: CommandAnswer) -> bool:
        """Takes an agent's answer; False if it is about nothing of ours."""
        pull = self._pulls.get(answer.command_id)
        if pull is None or pull.row.agent_id != agent_id:
            return False
        if pull.runs:
            states = {CommandOutcome.DONE: "done", CommandOutcome.REFUSED: "refused", CommandOutcome.FAILED: "failed"}
            pull.row = replace(pull.row, state=states[answer.outcome], message=answer.message)
            if answer.outcome is CommandOutcome.DONE:
                pull.row = replace(pull.row, done_bytes=pull.row.size_bytes)
        return True

    def agent_lost(self, agent_id: str) -> None:
        """An agent's connection has ended: its order is told again when it is back, and goes on where it was."""
        for pull in self._pulls.values():
            if pull.row.agent_id == agent_id and pull.runs:
                pull.is_told = False
                pull.row = replace(pull.row, state="waiting")

    def follow(self) -> None:
        """Takes over from the hosts' reports how far they are, and tells those that are back what they were told."""
        followed = [pull for pull in self._pulls.values() if pull.runs or pull.lacks_size]
        stores = {row.agent_id: row.models for row in self._rows() if row.connected} if followed else {}
        for pull in followed:
            store = stores.get(pull.row.agent_id)
            if store is None:
                continue
            if pull.lacks_size:
                for file in store.files:
                    if file.name == pull.row.file:
                        pull.row = replace(pull.row, done_bytes=file.size_bytes, size_bytes=file.size_bytes)
                continue
            if not pull.is_told:
                self._tell(pull)
            for one in store.pulling:
                if one.command_id == pull.row.command_id and one.size_bytes is not None:
                    pull.row = _at(pull.row, one)

    def rows(self) -> tuple[PullRow, ...]:
        """The pulls of late, the newest last."""
        return tuple(pull.row for pull in self._pulls.values())


def _at(row: PullRow, told: Pulling) -> PullRow:
    return replace(row, done_bytes=told.done_bytes, size_bytes=told.size_bytes)


def check_pulls(host: AgentRow, source: Source) -> None:
    """Raises `HostError` where a host would not pull from there, as far as its report tells."""
    check_takes_orders(host)
    store = host.models
    if store is None or store.pull_from is None:
        raise HostError(
            f"The agent of {host.agent_name} is of a release that pulls nothing by order.",
            remedy="Upgrade it: `sudo ./install.sh upgrade` on that host.",
        )
    if not is_allowed(source, store.pull_from):
        allowed = ", ".join(store.pull_from) or "nowhere"
        raise HostError(
            f"{host.agent_name} pulls from {allowed} when it is told to, and not {source}.",
            remedy="Add it to pull_from in [models_from] of the agent's configuration there, and restart the agent.",
        )
    there = next((file for file in store.files if file.name == source.name), None)
    if there is not None and isinstance(source, UrlSource) and there.sha256 != source.sha256:
        raise HostError(
            f"{host.agent_name} has another file called {source.name}.",
            remedy="Delete that one there first: `moe2-coordinator models delete`.",
        )
