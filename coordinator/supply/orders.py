"""What an operator wants served where: checked against the fleet before anything is sent, then told to the agents."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from moe2.common.errors import Moe2Error
from moe2.common.link.messages import CommandAnswer, CommandOutcome, ToAgent
from moe2.common.link.supply import CacheType, DeleteFile, ModelFile, ServeModel, WithdrawModel
from moe2.common.modelsource import checked_name
from moe2.common.status import AgentRow, ModelOrderRow
from moe2.coordinator.supply.hosts import check_takes_orders, meant

log = structlog.get_logger()

MAX_KEPT_ORDERS = 500
"""Orders that have ended are remembered up to this number in all."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


Order = ServeModel | WithdrawModel | DeleteFile


class SupplyError(Moe2Error):
    """An order that cannot be given."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order of an operator about one model.

    verb: "add", "set" or "remove"; "delete" for a file of hosts' folders, whose name or beginning of a checksum is then
    `name`. Other fields as in `ServeModel`; None leaves what there is, or takes the default.
    """

    verb: str
    name: str
    hosts: tuple[str, ...] = ()
    matching: str | None = None
    file: str | None = None
    context_tokens: int | None = None
    slots: int | None = None
    cache_type: CacheType | None = None
    gpu_layers: int | None = None


class Orders:
    """The orders that agents were given about their models, and what became of each.

    rows: the fleet as it is. send: to an agent; False if it is not connected. aliases: names that stand for models.
    """

    def __init__(
        self,
        *,
        rows: Callable[[], Sequence[AgentRow]],
        send: Callable[[str, ToAgent], bool],
        aliases: Callable[[], Mapping[str, str]],
        clock: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._send = send
        self._aliases = aliases
        self._clock = clock
        self._known: dict[str, ModelOrderRow] = {}

    def want(self, wanted: Wanted) -> tuple[ModelOrderRow, ...]:
        """Gives the orders that an operator's word means. Raises `Moe2Error` before any of them is sent."""
        if wanted.verb != "delete" and not _NAME.fullmatch(wanted.name):
            raise SupplyError(
                f"{wanted.name!r} cannot be a model's name.",
                remedy="It has 1 to 128 letters, digits or . _ : - characters.",
            )
        hosts = meant(self._rows(), wanted.hosts, wanted.matching)
        for host in hosts:
            check_takes_orders(host)
        orders = [
            (host, _deletion(wanted.name, host) if wanted.verb == "delete" else self._order(wanted, host))
            for host in hosts
        ]
        if wanted.verb == "remove":
            self._check_aliases(wanted.name, hosts)
        _check_same_file([order for _, order in orders if isinstance(order, ServeModel)])
        return tuple(self._give(wanted, host, order) for host, order in orders)

    def answered(self, agent_id: str, answer: CommandAnswer) -> bool:
        """Takes an agent's answer; False if it is about nothing of ours."""
        order = self._known.get(answer.command_id)
        if order is None or order.agent_id != agent_id:
            return False
        state = {CommandOutcome.DONE: "done", CommandOutcome.REFUSED: "refused", CommandOutcome.FAILED: "failed"}
        self._note(msgspec.structs.replace(order, state=state[answer.outcome], message=answer.message))
        return True

    def agent_lost(self, agent_id: str) -> None:
        """An agent's connection has ended. One whose link alone broke still answers when it is back."""
        for order in tuple(self._known.values()):
            if order.agent_id == agent_id and order.state == "running":
                text = "The host was lost meanwhile. When it is back, say it again if it is not as you want it."
                self._note(msgspec.structs.replace(order, state="failed", message=text))

    def rows(self) -> tuple[ModelOrderRow, ...]:
        """The orders of late, the newest last."""
        return tuple(self._known.values())

    def _give(self, wanted: Wanted, host: AgentRow, order: Order) -> ModelOrderRow:
        row = ModelOrderRow(
            command_id=order.command_id,
            verb=wanted.verb,
            model=order.name,
            agent_id=host.agent_id,
            host=host.agent_name,
            state="running",
            given_unix_s=self._clock(),
        )
        if not self._send(host.agent_id, order):
            row = msgspec.structs.replace(row, state="failed", message="The host is not connected any more.")
        log.info("model_ordered", verb=wanted.verb, model=order.name, agent_id=host.agent_id)
        self._note(row)
        return row

    def _note(self, row: ModelOrderRow) -> None:
        self._known[row.command_id] = row
        ended = [key for key, one in self._known.items() if one.state != "running"]
        for key in ended[: max(0, len(self._known) - MAX_KEPT_ORDERS)]:
            del self._known[key]

    def _order(self, wanted: Wanted, host: AgentRow) -> ServeModel | WithdrawModel:
        command_id = f"model-{uuid.uuid4().hex}"
        serves = any(expert.model == wanted.name for expert in host.experts)
        if wanted.verb != "add" and not serves:
            raise SupplyError(
                f"{host.agent_name} does not serve {wanted.name!r}.",
                remedy="`moe2-coordinator models show` tells what it serves.",
            )
        if wanted.verb == "remove":
            return WithdrawModel(command_id=command_id, name=wanted.name)
        if wanted.verb not in ("add", "set"):
            raise SupplyError(
                f"There is no order {wanted.verb!r} for models.", remedy="Use add, set, remove or delete."
            )
        if wanted.verb == "add" and serves:
            raise SupplyError(f"{host.agent_name} serves {wanted.name} already.", remedy="Change it with set.")
        file = None
        if wanted.file is not None or wanted.verb == "add":
            file = _file(host, wanted.file or f"{wanted.name}.gguf")
        return ServeModel(
            command_id=command_id,
            name=wanted.name,
            file=file.name if file else None,
            sha256=file.sha256 if file else None,
            context_tokens=wanted.context_tokens,
            slots=wanted.slots,
            cache_type=wanted.cache_type,
            gpu_layers=wanted.gpu_layers,
        )

    def _check_aliases(self, name: str, hosts: Sequence[AgentRow]) -> None:
        """Raises `SupplyError` where an alias would stand for nothing any more."""
        leaving = {host.agent_id for host in hosts}
        stays = any(
            expert.model == name for row in self._rows() if row.agent_id not in leaving for expert in row.experts
        )
        standing = sorted(alias for alias, model in self._aliases().items() if model == name)
        if standing and not stays:
            raise SupplyError(
                f"{name} is what the alias {', '.join(standing)} stands for, and no other host serves it.",
                remedy="Add it to another host first, or change api.aliases.",
            )


def _deletion(name: str, host: AgentRow) -> DeleteFile:
    """The order to delete a file. Raises `Moe2Error` where the host would not, as far as its report tells."""
    store = host.models
    if store is None or store.deletes is None:
        raise SupplyError(
            f"The agent of {host.agent_name} is of a release that cannot delete files by order.",
            remedy="Upgrade it, or use `moe2-agent remove` on that host.",
        )
    if not store.deletes:
        raise SupplyError(
            f"{host.agent_name} does not let the coordinator delete files.",
            remedy="Set delete = true in [models_from] of the agent's configuration there, and restart the agent, or "
            "use `moe2-agent remove` on that host.",
        )
    file = _found(store.files, name)
    if file is not None and file.served_as:
        raise SupplyError(
            f"{file.name} is what {', '.join(file.served_as)} is served from on {host.agent_name}.",
            remedy="Stop serving it first: `moe2-coordinator models remove`.",
        )
    command_id = f"model-{uuid.uuid4().hex}"
    if file is not None:
        return DeleteFile(command_id=command_id, name=file.name, sha256=file.sha256)
    # What has come of a file that is not whole, hosts do not report.
    return DeleteFile(command_id=command_id, name=checked_name(name))


def _found(files: Sequence[ModelFile], name: str) -> ModelFile | None:
    """A file by its name or the beginning of its checksum."""
    by_name = [file for file in files if file.name == name]
    by_sum = [file for file in files if len(name) >= 8 and file.sha256.startswith(name.lower())]
    return next(iter(by_name or by_sum), None)


def _file(host: AgentRow, name: str) -> ModelFile:
    """A file in the host's folder, by its name or the beginning of its checksum. Raises `SupplyError`."""
    files = host.models.files if host.models else ()
    if (found := _found(files, name)) is None:
        there = ", ".join(file.name for file in files) or "none"
        raise SupplyError(
            f"{host.agent_name} has no file {name!r}; it has {there}.",
            remedy="Push it first (`moe2-coordinator models push`), or name another one with --file.",
        )
    return found


def _check_same_file(orders: Sequence[ServeModel]) -> None:
    """Raises `SupplyError` where one name would stand for different files."""
    sums = {order.sha256 for order in orders if order.sha256 is not None}
    if len(sums) > 1:
        raise SupplyError(
            f"{orders[0].file} is not the same file on all of these hosts.",
            remedy="Push one file to all of them, or order them one by one under different names.",
        )
