"""The command `moe2-coordinator agents`: which agents may connect.

It works on the register's file, whether the coordinator runs or not.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from time import time

import msgspec

from moe2.common.clock import require_right_clock
from moe2.common.link.enrolment import Refusal, digest
from moe2.common.terminal.commandline import Command, Commands, add_commands, add_config
from moe2.common.terminal.figures import printable
from moe2.common.terminal.output import say, tell
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shared_trust import SharedRegister
from moe2.coordinator.fleet.register import (
    STATIC_TOKEN,
    EnrolledAgent,
    EnrolmentToken,
    Register,
    add_token,
    forget_agent,
    revoke_agent,
    revoke_token,
)
from moe2.coordinator.fleet.register_file import RegisterFile, RegisterStore
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH
from moe2.coordinator.settings import CoordinatorSettings, settings_of

TOKEN_PREFIX = "moe2-enrol-"  # noqa: S105 - so that scanners for leaked secrets can know it
TOKEN_BYTES = 32
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_USES = re.compile(r"[1-9][0-9]{0,8}")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Act = Callable[[argparse.Namespace, RegisterStore], int]


def add_arguments(command: Command) -> None:
    """Adds every subcommand of `agents`."""
    commands = add_commands(command)

    def leaf(group: Commands[Command], name: str, act: Act, description: str, *examples: str) -> Command:
        summary = description.partition(".")[0]
        parser = group.add_parser(
            name, help=summary[0].lower() + summary[1:], description=description, examples=examples
        )
        add_config(parser, DEFAULT_CONFIG_PATH)
        parser.set_defaults(act=lambda arguments: act(arguments, _register(settings_of(arguments.config))))
        return parser

    tokens = add_commands(
        commands.add_parser(
            "enrol-token",
            help="make, list and revoke enrolment tokens",
            description="Make, list and revoke enrolment tokens.",
        )
    )
    create = leaf(
        tokens,
        "create",
        _create_token,
        "Make a token that agents can enrol with, and print it. It is shown this once: only its hash is kept.",
        "# for twelve agents, within a day",
        "moe2-coordinator agents enrol-token create workshop --expires 24h --uses 12",
    )
    create.add_argument("name", metavar="NAME", type=_token_name, help="the name under which it is listed")
    create.add_argument(
        "--expires", metavar="DURATION", type=_duration_s, help="such as 30m, 24h or 7d; never if not given"
    )
    create.add_argument("--uses", metavar="N", type=_uses, help="agents that it may enrol; any number if not given")
    listed = leaf(tokens, "list", _list_tokens, "List the enrolment tokens, what each may still do. Shows no secrets.")
    listed.add_argument("--json", action="store_true", help="as one JSON list")
    revoked = leaf(
        tokens, "revoke", _revoke_token, "Let a token enrol no more agents. Those it has enrolled stay enrolled."
    )
    revoked.add_argument("name", metavar="NAME")

    agents = leaf(commands, "list", _list_agents, "List the enrolled agents. `status` tells which are connected.")
    agents.add_argument("--json", action="store_true", help="as one JSON list")
    barred = leaf(
        commands,
        "revoke",
        _revoke_agent,
        "Bar an agent. It is disconnected within seconds, and its credential is refused from then on.",
        "# a board was lost",
        "moe2-coordinator agents revoke jetson-07",
    )
    removed = leaf(
        commands,
        "forget",
        _forget_agent,
        "Remove an agent, revoked or not. It is disconnected, and has to enrol anew with a token.",
    )
    for parser in (barred, removed):
        parser.add_argument("agent", metavar="AGENT", help="its id, an unambiguous beginning of it, or its name")


# --- Acts -------------------------------------------------------------------------------------------------------------


def _create_token(arguments: argparse.Namespace, file: RegisterStore) -> int:
    secret, now_unix_s = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES), time()
    if arguments.expires is not None:
        require_right_clock(now_unix_s)
    token = EnrolmentToken(
        name=arguments.name,
        sha256=digest(secret),
        created_unix_s=now_unix_s,
        expires_unix_s=None if arguments.expires is None else now_unix_s + arguments.expires,
        most_uses=arguments.uses,
    )
    file.change(lambda register: (None, add_token(register, token)))
    # The token alone goes to the output, so that it can be sent straight into a file.
    say(secret)
    tell(f"Token {token.name}: {_validity(token, now_unix_s)}. Put it into an agent's token_file.")
    return 0


def _list_tokens(arguments: argparse.Namespace, file: RegisterStore) -> int:
    now_unix_s, register = time(), file.current()
    if arguments.json:
        say(json.dumps([_without_digest(token) for token in register.tokens], indent=2))
        return 0
    _print_table(
        ("NAME", "STATE", "ENROLLED", "CREATED"),
        [
            (token.name, _validity(token, now_unix_s), str(token.n_used), _when(token.created_unix_s))
            for token in register.tokens
        ],
        otherwise="There are no enrolment tokens. `agents enrol-token create NAME` makes one.",
    )
    return 0


def _revoke_token(arguments: argparse.Namespace, file: RegisterStore) -> int:
    token = file.change(lambda register: revoke_token(register, arguments.name, time()))
    say(f"Token {token.name} enrols no more agents. The {token.n_used} it has enrolled stay enrolled.")
    return 0


def _list_agents(arguments: argparse.Namespace, file: RegisterStore) -> int:
    register = file.current()
    if arguments.json:
        say(json.dumps([_without_digest(agent) for agent in register.agents], indent=2))
        return 0
    _print_table(
        ("AGENT", "NAME", "STATE", "ENROLLED", "WITH"),
        [
            (
                agent.agent_id,
                printable(agent.agent_name),
                "enrolled" if agent.revoked_unix_s is None else f"revoked {_when(agent.revoked_unix_s)}",
                _when(agent.enrolled_unix_s),
                agent.token,
            )
            for agent in register.agents
        ],
        otherwise="No agent is enrolled.",
    )
    return 0


def _revoke_agent(arguments: argparse.Namespace, file: RegisterStore) -> int:
    agent, register = file.change(lambda before: _with_register(revoke_agent(before, arguments.agent, time())))
    say(f"{printable(agent.agent_name)} ({agent.agent_id}) is revoked.")
    token = next((token for token in register.tokens if token.name == agent.token), None)
    if agent.token == STATIC_TOKEN or (token is not None and token.refusal(time()) is None):
        say(
            f"It was enrolled with {agent.token}, which is still good: whoever has read that token can enrol under "
            "another id. If its host is no longer trusted, "
            + ("replace that token." if token is None else f"`agents enrol-token revoke {token.name}`.")
        )
    return 0


def _forget_agent(arguments: argparse.Namespace, file: RegisterStore) -> int:
    agent = file.change(lambda register: forget_agent(register, arguments.agent))
    say(f"{printable(agent.agent_name)} ({agent.agent_id}) is forgotten. With a token it can enrol anew.")
    return 0


def _with_register(changed: tuple[EnrolledAgent, Register]) -> tuple[tuple[EnrolledAgent, Register], Register]:
    return changed, changed[1]


# --- Words ------------------------------------------------------------------------------------------------------------


def _validity(token: EnrolmentToken, now_unix_s: float) -> str:
    match token.refusal(now_unix_s):
        case Refusal.TOKEN_REVOKED:
            return "revoked"
        case Refusal.TOKEN_EXPIRED:
            return "expired"
        case Refusal.TOKEN_UNDECIDED:
            return "undecided: this host's clock is wrong"
        case Refusal.TOKEN_USED_UP:
            return "used up"
    until = "" if token.expires_unix_s is None else f" until {_when(token.expires_unix_s)}"
    uses = "" if token.most_uses is None else f", {token.most_uses - token.n_used} of {token.most_uses} uses left"
    return f"good{until}{uses}"


def _without_digest(value: EnrolmentToken | EnrolledAgent) -> dict[str, object]:
    """Returns a record's fields without the digest of its secret, which nobody needs."""
    content = {name: getattr(value, name) for name in value.__struct_fields__}
    del content["sha256"]
    built: dict[str, object] = msgspec.to_builtins(content)
    return built


def _when(at_unix_s: float) -> str:
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _print_table(titles: tuple[str, ...], rows: list[tuple[str, ...]], *, otherwise: str) -> None:
    if not rows:
        say(otherwise)
        return
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    for row in (titles, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _token_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"the name needs 1 to 64 letters, digits or the characters . _ -, got {text!r}"
        )
    return text


def _duration_s(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"a number and one of s, m, h, d, such as 24h; got {text!r}")
    return float(int(found[1]) * _UNIT_S[found[2]])


def _uses(text: str) -> int:
    if not _USES.fullmatch(text):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, got {text!r}")
    return int(text)


def _register(settings: CoordinatorSettings) -> RegisterStore:
    """Returns where the register of agents is: in the database that coordinators share, or in this one's file."""
    if settings.database.url is not None:
        register = SharedRegister(Session(settings.database.url, name="moe2-coordinator agents"))
        register.refresh()
        return register
    return RegisterFile(settings.coordinator.state_dir)
