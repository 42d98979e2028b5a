"""The command `moe2-coordinator models`: which host has and serves what, and changing that."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import AgentRow, CoordinatorStatus, ModelOrderRow, PullRow, PushRow
from moe2.common.terminal.commandline import Command, Commands, add_commands, add_socket
from moe2.common.terminal.figures import known, printable, size
from moe2.common.terminal.output import say, say_json, tell, transfer_bars
from moe2.coordinator.cli.asking import ANSWER_S, asked
from moe2.coordinator.http.paths import ORDERS_PATH, PULLS_PATH, PUSHES_PATH
from moe2.coordinator.paths import DEFAULT_SOCKET_PATH

POLL_S = 0.5
HASHING_S = 3600.0
COORDINATOR = "coordinator"
_ENDED = ("done", "refused", "failed")
_VERBS = {
    "add": "Serve a further model on hosts, from a file that they have. Done when it is loaded.",
    "set": "Serve a model from another file, or with other settings. The new one is loaded before the old one ends,"
    " where memory has room for both; requests wait or go elsewhere.",
    "remove": "Stop serving a model on hosts. Requests that run are answered first; the file stays.",
}
Answer = dict[str, tuple[ModelOrderRow, ...]]


@contextmanager
def _goes_on() -> Iterator[None]:
    """Says that what was begun goes on where somebody no longer waits for it."""
    try:
        yield
    except KeyboardInterrupt:
        tell("It goes on without this command; `moe2-coordinator models show` tells how far it is.")
        raise


def add_arguments(command: Command) -> None:
    """Adds every subcommand of `models`."""
    commands = add_commands(command)
    show = commands.add_parser(
        "show",
        help="which host has, serves and fetches what",
        description="Show which host has which files, what it serves of them, and what it has room for.",
    )
    show.add_argument("--json", action="store_true", help="as one JSON document")
    add_socket(show, DEFAULT_SOCKET_PATH)
    show.set_defaults(act=_show)
    _add_push(commands)
    _add_pull(commands)
    _add_delete(commands)
    for verb, description in _VERBS.items():
        summary = description.partition(".")[0]
        parser = commands.add_parser(
            verb,
            help=summary[0].lower() + summary[1:],
            description=description,
            exits={0: "done on every host", 1: "refused, or not done on every host; the reason is told"},
            examples=(f"moe2-coordinator models {verb} qwen2.5-3b orin-1 orin-2",),
        )
        parser.add_argument("name", metavar="NAME", help="what clients ask for")
        add_hosts(parser)
        if verb != "remove":
            _add_settings(parser)
        _add_wait(parser, "return when the orders are given", act=_order, verb=verb)


def _add_wait(parser: argparse.ArgumentParser, no_wait: str, **defaults: Any) -> None:
    """The options with which all that changes hosts ends. defaults: what the command does, as of `set_defaults`."""
    parser.add_argument("--no-wait", action="store_true", help=no_wait)
    add_socket(parser, DEFAULT_SOCKET_PATH)
    parser.set_defaults(**defaults)


def _add_push(commands: Commands[Command]) -> None:
    push = commands.add_parser(
        "push",
        help="send a model's file to hosts",
        description="Send a model's file, with its further parts, to hosts that take it, several at a time. What was "
        "cut off goes on where it was, also when a host was away; every file is compared with its checksum.",
        exits={0: "it is on every host", 1: "refused, or not on every host; the reason is told"},
        examples=(
            "moe2-coordinator models push /srv/models/Qwen2.5-3B-Instruct-Q4_K_M.gguf --all-matching 'board=orin'",
        ),
    )
    push.add_argument("file", metavar="FILE", type=Path, help="on the coordinator's host; its user must read it")
    add_hosts(push)
    _add_wait(push, "return when it has begun", act=_push)


def _add_pull(commands: Commands[Command]) -> None:
    pull = commands.add_parser(
        "pull",
        help="have hosts pull a model from the hub or an address",
        description="Have hosts pull a model themselves, as `moe2-agent pull` does, from where pull_from in "
        "[models_from] of their configuration allows. What was cut off goes on, also when a host was away; "
        "every file is compared with its checksum.",
        exits={0: "it is on every host", 1: "refused, or not on every host; the reason is told"},
        examples=(
            "moe2-coordinator models pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf o1",
            "moe2-coordinator models pull https://models.example/small.gguf#sha256=… --all-matching 'board=orin'",
        ),
    )
    pull.add_argument(
        "source", metavar="SOURCE", help="hf:ORG/REPO/FILE.gguf[@REVISION], or https://…/FILE.gguf#sha256=…"
    )
    add_hosts(pull)
    _add_wait(pull, "return when the hosts are told", act=_pull)


def _add_delete(commands: Commands[Command]) -> None:
    delete = commands.add_parser(
        "delete",
        help="delete a model's file on hosts",
        description="Delete a file of hosts' folders of models, or what has come of one that is not whole. What is "
        "served or named in [[models]] of a host stays, and so does all where its configuration does not say "
        "delete = true.",
        exits={0: "done on every host", 1: "refused, or not done on every host; the reason is told"},
        examples=("moe2-coordinator models delete SmolLM2-135M-Instruct-Q4_K_M.gguf orin-1 orin-2",),
    )
    delete.add_argument("name", metavar="FILE", help="in the hosts' folders, or the beginning of its checksum")
    add_hosts(delete)
    _add_wait(delete, "return when the orders are given", act=_order, verb="delete")


def _pull(arguments: argparse.Namespace) -> int:
    """Has hosts pull a model and shows their progress. Raises `Moe2Error` where it is refused before a byte travels."""
    word = {"source": arguments.source, "hosts": arguments.hosts, "matching": arguments.all_matching}
    begun = _pulls(arguments.socket, msgspec.json.encode(word))
    return 0 if arguments.no_wait else pull_to_its_end(arguments.socket, begun)


@_goes_on()
def pull_to_its_end(socket: Path, begun: Sequence[PullRow]) -> int:
    """Shows the progress of pulls until all have ended; returns the exit code."""
    ids = {row.command_id for row in begun}
    with transfer_bars() as bars:
        tasks = {row.command_id: bars.add_task(printable(row.host), total=None) for row in begun}
        while True:
            rows = [row for row in _pulls(socket, None) if row.command_id in ids]
            for row in rows:
                bars.update(tasks[row.command_id], completed=row.done_bytes or 0, total=row.size_bytes)
            if len(rows) < len(ids) or all(row.state in _ENDED for row in rows):
                break
            time.sleep(POLL_S)
    for row in rows:
        why = f"{row.state}. {printable(row.message or '')}".rstrip()
        told = f"has {printable(row.file)} from {printable(row.source)}."
        say(f"{printable(row.host)} {told}" if row.state == "done" else f"{printable(row.host)}: {why}")
    return 0 if len(rows) == len(ids) and all(row.state == "done" for row in rows) else 1


def _pulls(socket: Path, body: bytes | None) -> Sequence[PullRow]:
    return msgspec.json.decode(asked(socket, PULLS_PATH, body), type=dict[str, tuple[PullRow, ...]])["pulls"]


def _push(arguments: argparse.Namespace) -> int:
    """Has a file sent and shows its progress. Raises `Moe2Error` where it is refused before a byte travels."""
    word = {
        "path": str(arguments.file.absolute()),
        "hosts": arguments.hosts,
        "matching": arguments.all_matching,
    }
    # Its checksum is computed first, which takes a while for a large file on a small host.
    begun = _pushes(arguments.socket, msgspec.json.encode(word), timeout_s=HASHING_S)
    if arguments.no_wait:
        return 0
    return push_to_its_end(arguments.socket, begun)


@_goes_on()
def push_to_its_end(socket: Path, begun: Sequence[PushRow]) -> int:
    """Shows the progress of pushes until all have ended; returns the exit code."""
    ids = {row.command_id for row in begun}
    with transfer_bars() as bars:
        tasks = {row.command_id: bars.add_task(printable(row.host), total=row.size_bytes) for row in begun}
        while True:
            rows = [row for row in _pushes(socket, None) if row.command_id in ids]
            for row in rows:
                told = printable(row.host) + _giver(row)
                bars.update(tasks[row.command_id], completed=row.done_bytes, description=told)
            if len(rows) < len(ids) or all(row.state in _ENDED for row in rows):
                break
            time.sleep(POLL_S)
    for row in rows:
        told = f"{printable(row.host)} has {printable(row.file)}{_giver(row)}, sha256 {row.sha256[:12]}."
        why = f"{printable(row.host)}: {row.state}. {printable(row.message or '')}".rstrip()
        say(told if row.state == "done" else why)
    return 0 if len(rows) == len(ids) and all(row.state == "done" for row in rows) else 1


def _giver(row: PushRow) -> str:
    """Who gives a file, where that is a neighbour."""
    return "" if row.source == COORDINATOR else f" from {printable(row.source)}"


def _pushes(socket: Path, body: bytes | None, *, timeout_s: float = ANSWER_S) -> Sequence[PushRow]:
    content = asked(socket, PUSHES_PATH, body, timeout_s=timeout_s)
    return msgspec.json.decode(content, type=dict[str, tuple[PushRow, ...]])["pushes"]


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Hosts by name, or by what they have in common."""
    parser.add_argument("hosts", metavar="HOST", nargs="*", help="agents' names, or beginnings of their ids")
    parser.add_argument("--all-matching", metavar="CONDITION", help="such as 'board=orin' or 'system=linux,name=edge'")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", help="in the host's folder of models, or the beginning of its checksum; NAME.gguf")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="KV cache in tokens, shared by all slots")
    parser.add_argument("--slots", type=int, metavar="N", help="requests decoded at once")
    parser.add_argument("--cache-type", choices=("f16", "q8_0", "q4_0"), help="how keys and values are stored")
    parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers on the GPU; -1 for all")


def _order(arguments: argparse.Namespace) -> int:
    """Gives the orders and waits for their ends. Raises `Moe2Error` where they are refused before they are sent."""
    wanted = {
        "verb": arguments.verb,
        "name": arguments.name,
        "hosts": arguments.hosts,
        "matching": arguments.all_matching,
    }
    if arguments.verb in ("add", "set"):
        wanted |= {
            "file": arguments.file,
            "context_tokens": arguments.context,
            "slots": arguments.slots,
            "cache_type": arguments.cache_type,
            "gpu_layers": arguments.gpu_layers,
        }
    given = _rows(arguments.socket, msgspec.json.encode(wanted))
    if arguments.no_wait:
        return 0
    return orders_to_their_ends(arguments.socket, given)


@_goes_on()
def orders_to_their_ends(socket: Path, given: Sequence[ModelOrderRow]) -> int:
    """Tells what becomes of orders until all have ended; returns the exit code."""
    ids = {order.command_id for order in given}
    told: set[str] = set()
    while True:
        rows = [order for order in _rows(socket, None) if order.command_id in ids]
        for row in rows:
            if row.state != "running" and row.command_id not in told:
                told.add(row.command_id)
                say(line(row))
                sys.stdout.flush()
        if len(told) == len(ids) or len(rows) < len(ids):
            return 0 if all(row.state == "done" for row in rows) and len(rows) == len(ids) else 1
        time.sleep(POLL_S)


def line(row: ModelOrderRow) -> str:
    """What became of an order, in a line."""
    verb = {"add": "serves", "set": "serves", "remove": "no longer serves", "delete": "no longer has"}.get(
        row.verb, row.verb
    )
    if row.state == "done":
        return f"{printable(row.host)} {verb} {printable(row.model)}."
    why = printable(row.message or "")
    return f"{printable(row.host)}: {row.verb} {printable(row.model)} {row.state}. {why}".rstrip()


def _show(arguments: argparse.Namespace) -> int:
    status = msgspec.json.decode(asked(arguments.socket, STATUS_ROUTE, None), type=CoordinatorStatus)
    if arguments.json:
        shown = {row.agent_name: row.models for row in status.agents}
        say_json(shown, indent=2)
        return 0
    for row in status.agents:
        for text in told(row):
            say(text)
    return 0


def told(row: AgentRow) -> Iterator[str]:
    """Yields lines about the models that a host has in its folder and serves."""
    store = row.models
    if store is None:
        yield f"{printable(row.agent_name)}: its agent's release is too old to tell."
        return
    takes = "takes models from here" if store.takes_orders else "takes no models from here (models_from.coordinator)"
    yield (
        f"{printable(row.agent_name)}: {takes}; free: {known(store.free_bytes, size)} of disk, "
        f"{known(store.memory_free_bytes, size)} of memory."
    )
    may = [f"pulls from {', '.join(map(printable, store.pull_from))}"] if store.pull_from else []
    if may or store.deletes:
        yield f"  when told to, {' and '.join([*may, *(['deletes files'] if store.deletes else [])])}"
    for expert in row.experts:
        yield f"  serves {printable(expert.model)} ({expert.state}), {(expert.file_sha256 or 'unknown')[:12]}"
    for file in store.files:
        users = f", served as {', '.join(map(printable, file.served_as))}" if file.served_as else ""
        yield f"  has {printable(file.name)}: {size(file.size_bytes)}, {file.sha256[:12]}{users}"
    for one in store.fetching:
        share = 100 * one.done_bytes / one.size_bytes if one.size_bytes else 0.0
        yield f"  fetches {printable(one.file)} from {printable(one.source)}: {share:.0f} % of {size(one.size_bytes)}"
    for pull in store.pulling:
        far = f"{size(pull.done_bytes)} of {known(pull.size_bytes, size)}"
        yield f"  pulls {printable(pull.file)} from {printable(pull.source)}: {far}"


def _rows(socket: Path, body: bytes | None) -> Sequence[ModelOrderRow]:
    answer = msgspec.json.decode(asked(socket, ORDERS_PATH, body), type=Answer)
    return answer["orders"]
