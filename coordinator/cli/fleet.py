"""The command `moe2-coordinator fleet`: who is awake, and an operator's word on single hosts."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec

from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import CoordinatorStatus, ProvisioningStatus
from moe2.common.terminal.commandline import Command, add_commands, add_socket
from moe2.common.terminal.figures import number, printable
from moe2.common.terminal.output import say, say_json
from moe2.coordinator.cli.asking import asked
from moe2.coordinator.http.paths import WISH_PATH
from moe2.coordinator.paths import DEFAULT_SOCKET_PATH

WH_J = 3600.0
MAX_NAMED = 20
"""Experts that a line names, and lines of a kind."""
_VERBS = {
    "sleep": "Send a host to sleep when its jobs have ended, until `fleet wake`. Its agent must allow it.",
    "wake": "Wake a host, and leave it to the coordinator again.",
    "pin": "Keep a host awake with all its models.",
    "unpin": "Leave a pinned host to the coordinator again.",
}


def add_arguments(command: Command) -> None:
    """Adds every subcommand of `fleet`."""
    commands = add_commands(command)
    show = commands.add_parser("show", help="who is awake, and why", description="Show who is awake, and why.")
    show.add_argument("--json", action="store_true", help="as one JSON document")
    add_socket(show, DEFAULT_SOCKET_PATH)
    show.set_defaults(act=_show)
    for verb, description in _VERBS.items():
        summary = description.partition(".")[0]
        parser = commands.add_parser(
            verb,
            help=summary[0].lower() + summary[1:],
            description=description,
            examples=(f"moe2-coordinator fleet {verb} orin-3",),
        )
        parser.add_argument("host", metavar="HOST", help="its agent's name, or an unambiguous beginning of its id")
        add_socket(parser, DEFAULT_SOCKET_PATH)
        parser.set_defaults(act=_wish, verb=verb)


def _wish(arguments: argparse.Namespace) -> int:
    """Says an operator's word to the running coordinator. Raises `Moe2Error` where that is refused."""
    body = msgspec.json.encode({"verb": arguments.verb, "host": arguments.host})
    content = asked(arguments.socket, WISH_PATH, body)
    say(printable(msgspec.json.decode(content)["done"]))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    content = asked(arguments.socket, STATUS_ROUTE, None)
    status = msgspec.json.decode(content, type=CoordinatorStatus)
    if arguments.json:
        say_json(status.provisioning, indent=2)
        return 0
    lines = told(status)
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, columns, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    say("\n".join(lines))
    return 0


def told(status: CoordinatorStatus) -> list[str]:
    """Returns lines that say who is awake or asleep, and why."""
    names = {row.agent_id: printable(row.agent_name) for row in status.agents}
    asleep = [names[row.agent_id] for row in status.agents if row.asleep]
    # Of a part of the fleet only the hosts that are shown have names here.
    n_asleep = status.counts.asleep if status.counts else len(asleep)
    lines = [f"Asleep: {_listed(asleep, n_asleep) if asleep or not n_asleep else f'{n_asleep} that are not shown'}."]
    provisioning = status.provisioning
    if provisioning is None or provisioning.mode == "off":
        returning = _returning(provisioning) if provisioning else []
        return [*lines, "The slow level is off: [provisioning] mode.", *returning]
    acts = provisioning.mode == "act"
    lines.append(
        "Mode act: the coordinator wakes hosts and sends them to sleep."
        if acts
        else "Mode observe: this is what it would do; it touches nothing."
    )
    lines += _returning(provisioning)
    if provisioning.correction is not None:
        lines.append(f"The limits contradict each other. {printable(provisioning.correction)}")
    elif provisioning.status is None:
        lines.append("Nothing has been decided yet: no expert is known, or the first minute has not passed.")
    else:
        lines += _decided(provisioning, names)
    lines += _left(provisioning, names)
    for change in provisioning.changes[:MAX_NAMED]:
        what = f"{change.change} {_expert(change.expert, names) if change.expert else printable(change.host)}"
        lines.append(f"{'It does' if acts else 'It would'}: {what}, because {printable(change.reason)}.")
    if len(provisioning.changes) > MAX_NAMED:
        lines.append(f"And {len(provisioning.changes) - MAX_NAMED} more changes; --json has them all.")
    lines += savings(provisioning, names)
    for said, hosts in (("Pinned", provisioning.pinned), ("Sent to sleep", provisioning.kept_asleep)):
        if hosts:
            lines.append(f"{said} by an operator: {_listed(list(map(printable, hosts)))}.")
    return lines


def _returning(provisioning: ProvisioningStatus) -> list[str]:
    """What mode act had put to sleep and what to do to leave it so, in a line; none where everybody is back."""
    if not provisioning.returning:
        return []
    who = _listed(list(map(printable, provisioning.returning)))
    return [f"Being brought back, as mode act is over: {who}. `moe2-coordinator fleet sleep HOST` leaves one asleep."]


def savings(provisioning: ProvisioningStatus, names: dict[str, str]) -> list[str]:
    """What mode observe would have saved today, in a line; none where that is nothing."""
    if not provisioning.would_sleep or provisioning.waited_j is None or provisioning.saved_j is None:
        return []
    who = _several(provisioning.would_sleep, names)
    return [
        f"Today {who} waited {number(provisioning.waited_j / WH_J)} Wh; {provisioning.returns} returns from sleep "
        f"would have replaced that, which saves {number(provisioning.saved_j / WH_J)} Wh."
    ]


def _decided(provisioning: ProvisioningStatus, names: dict[str, str]) -> list[str]:
    awake = _several(provisioning.awake, names, provisioning.n_awake)
    lines = [f"Wanted in memory for {number(provisioning.requests_per_hour or 0.0)} requests an hour: {awake}."]
    if provisioning.standing_w is not None:
        proof = (
            ""
            if provisioning.least_w is None
            else f"; no set of that value draws less than {provisioning.least_w:.1f} W"
        )
        lines.append(f"The fleet then waits at {provisioning.standing_w:.1f} W{proof} ({provisioning.status}).")
    if provisioning.loss is not None and provisioning.late is not None:
        lines.append(
            f"In this hour that gives up {100 * provisioning.loss:.2f} points of score, and "
            f"{100 * provisioning.late:.1f} % of first tokens are late."
        )
    return lines


def _left(provisioning: ProvisioningStatus, names: dict[str, str]) -> list[str]:
    """Who is left as it is, and why: one line for each expert where they are few, else one for each reason."""
    if len(provisioning.stays) <= MAX_NAMED and not provisioning.n_stays:
        return [f"{_expert(key, names)} is left as it is: {printable(why)}." for key, why in provisioning.stays.items()]
    if provisioning.n_stays and provisioning.n_stays > len(provisioning.stays):
        return [f"{provisioning.n_stays} experts are left as they are; `moe2-coordinator fleet show` says why."]
    reasons = Counter(provisioning.stays.values())
    return [
        f"{n} {'expert is' if n == 1 else 'experts are'} left as they are: {printable(why)}."
        for why, n in reasons.most_common(MAX_NAMED)
    ]


def _several(keys: Sequence[str], names: dict[str, str], n_keys: int | None = None) -> str:
    """The experts by name; of many the first, and how many more there are."""
    return _listed([_expert(key, names) for key in keys[:MAX_NAMED]], n_keys or len(keys))


def _listed(names: Sequence[str], n_all: int | None = None) -> str:
    """The first names, and how many more there are. n_all: how many there are where `names` has not all of them."""
    named = names[:MAX_NAMED]
    n_more = (len(names) if n_all is None else n_all) - len(named)
    return (", ".join(named) or "nobody") + (f" and {n_more} more" if n_more > 0 else "")


def _expert(key: str, names: dict[str, str]) -> str:
    agent_id, _, model = key.partition("/")
    return f"{printable(model)} on {names.get(agent_id, printable(agent_id))}"
