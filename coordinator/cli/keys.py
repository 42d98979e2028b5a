"""The command `moe2-coordinator keys`: makes, lists and revokes API keys.

The running coordinator notices changes by itself. A secret is shown once, when its key is made, and its digest never.
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moe2.common.clock import require_right_clock
from moe2.common.errors import Moe2Error
from moe2.common.terminal import figures
from moe2.common.terminal import parts as terminal_parts
from moe2.common.terminal.commandline import Command, Commands, add_commands, add_config
from moe2.common.terminal.figures import fact_line, known, printable
from moe2.common.terminal.output import say, say_json, tell
from moe2.common.terminal.screen import table_console
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shared_trust import KeyTable
from moe2.coordinator.keys.keys import ENTROPY_BYTES, KeyOptions, KeyRecord, KeySet, KeyState, Scope, mint
from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH
from moe2.coordinator.settings import CoordinatorSettings, settings_of

_NO_LIMIT = "no limit"
_STYLES = {KeyState.ACTIVE: "green", KeyState.EXPIRED: "yellow", KeyState.REVOKED: "red", KeyState.UNDECIDED: "red"}
_LIMITS = ("Requests/min", "J/day", "Tokens/day")
_SHOWN_BUDGETS = {
    "energy_budget_j": "{} J",
    "latency_budget_s": "{} s",
    "ttft_budget_s": "first token {} s",
    "tpot_budget_s": "per token {} s",
    "max_experts": "{} experts",
}
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# Options of `create` and the budgets that they set.
_BUDGETS = ("energy_budget_j", "latency_budget_s", "ttft_budget_s", "tpot_budget_s", "quantile", "max_experts")


def add_arguments(command: Command) -> None:
    """Adds the subcommands `create`, `list` and `revoke` and their options."""
    commands = add_commands(command)
    _add_create(commands)

    listing = commands.add_parser(
        "list",
        help="show all keys, without their secrets, which are not kept anywhere",
        description="Show all keys and what each may do. Their secrets are not kept anywhere.",
    )
    listing.add_argument("--json", action="store_true", help="as one JSON document")
    add_config(listing, DEFAULT_CONFIG_PATH)
    listing.set_defaults(act=_list)

    revoke = commands.add_parser(
        "revoke", help="end a key, for good and at once", description="End a key, for good and at once."
    )
    revoke.add_argument("id", help="the key's id, as `keys list` shows it")
    add_config(revoke, DEFAULT_CONFIG_PATH)
    revoke.set_defaults(act=_revoke)


def _add_create(commands: Commands[Command]) -> None:
    create = commands.add_parser(
        "create",
        help="make a key",
        description="Make an API key. It is written to stdout, this once: only its digest is kept.",
    )
    create.add_argument("name", metavar="NAME", help="a name for the key, such as the app's")
    create.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="infer: send prompts, ask for plans, give feedback; observe: the fleet, the metrics and the page's feed. "
        "May be given twice. Default: infer",
    )
    create.add_argument("--expires", type=_span_s, metavar="SPAN", help="such as 90m, 12h, 30d or 8w; default: never")
    create.add_argument("--rpm", type=float, metavar="N", help="largest number of requests per minute")
    create.add_argument(
        "--energy-per-day", type=float, metavar="J", help="largest number of joules per day (UTC), paced over the day"
    )
    create.add_argument("--tokens-per-day", type=int, metavar="N", help="largest number of tokens per day (UTC)")
    create.add_argument("--average-energy", type=float, metavar="J", help="joules that an answer may take on average")
    budgets = create.add_argument_group("budgets of requests that set none of their own")
    budgets.add_argument("--energy-budget", type=float, metavar="J", dest="energy_budget_j", help="joules of a request")
    budgets.add_argument(
        "--latency-budget", type=float, metavar="S", dest="latency_budget_s", help="seconds until the last token"
    )
    budgets.add_argument(
        "--ttft-budget", type=float, metavar="S", dest="ttft_budget_s", help="seconds until the first token"
    )
    budgets.add_argument(
        "--tpot-budget", type=float, metavar="S", dest="tpot_budget_s", help="seconds for each further token"
    )
    budgets.add_argument("--quantile", choices=("p50", "p95"), help="which prediction the budgets hold for")
    budgets.add_argument("--max-experts", type=int, metavar="N", help="largest number of candidates kept")
    create.add_argument("--json", action="store_true", help="the key and its record as one JSON document")
    add_config(create, DEFAULT_CONFIG_PATH)
    create.set_defaults(act=_create)


def _create(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments.config)
    now_unix_s = time.time()
    options = _options(arguments, now_unix_s)
    file = _table(settings)
    with file.changing() as keys:
        _check_name(options.name, keys, now_unix_s)
        record, key = mint(options, entropy=secrets.token_bytes(ENTROPY_BYTES), now_unix_s=now_unix_s)
        file.write(keys.with_key(record))
    if arguments.json:
        document = {"key": key, **shown_record(record, now_unix_s)}
        say_json(document)
    else:
        # The key alone on stdout, so that a script can take it from there.
        say(key)
        sys.stdout.flush()
    tell(f"Made the key {record.id} for {record.name}. It is not shown again: keep it where secrets are.")
    if settings.api.keys == "off":
        tell('Keys are not asked for yet: set keys = "required" in [api] and restart the coordinator.')
    return 0


def _list(arguments: argparse.Namespace) -> int:
    keys, now_unix_s = _table(settings_of(arguments.config)).read().keys, time.time()
    console = table_console()
    if arguments.json:
        say_json([shown_record(key, now_unix_s) for key in keys], file=console.file)
    elif console.is_terminal and not console.is_dumb_terminal:
        console.print(picture(keys, now_unix_s))
    else:
        for line in lines(keys, now_unix_s):
            say(line, file=console.file)
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    file = _table(settings_of(arguments.config))
    now_unix_s = time.time()
    with file.changing() as keys:
        record = _find(arguments.id, keys)
        if record.state(now_unix_s) is KeyState.REVOKED:
            tell(f"The key {record.id} for {record.name} was revoked before.")
            return 0
        file.write(keys.with_revoked(record.id, now_unix_s))
    tell(f"Revoked the key {record.id} for {record.name}.")
    return 0


def _options(arguments: argparse.Namespace, now_unix_s: float) -> KeyOptions:
    if arguments.expires is not None:
        require_right_clock(now_unix_s)
    fields: dict[str, Any] = {
        "name": arguments.name,
        "scopes": tuple(dict.fromkeys(arguments.scope or [Scope.INFER])),
        "expires_at_unix_s": None if arguments.expires is None else now_unix_s + arguments.expires,
        "requests_per_minute": arguments.rpm,
        "daily_energy_j": arguments.energy_per_day,
        "daily_tokens": arguments.tokens_per_day,
        "average_energy_j": arguments.average_energy,
        "budgets": {name: getattr(arguments, name) for name in _BUDGETS},
    }
    try:
        return KeyOptions.model_validate(fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise Moe2Error(f"No key was made: {'; '.join(faults)}.") from None


def _check_name(name: str, keys: KeySet, now_unix_s: float) -> None:
    """Raises Moe2Error if an active key has the name already: the two could not be told apart by it."""
    for key in keys.keys:
        if key.name == name and key.state(now_unix_s) is KeyState.ACTIVE:
            raise Moe2Error(
                f"{name!r} has an active key already: {key.id}.",
                remedy=f"Choose another name, or end that one first: `moe2-coordinator keys revoke {key.id}`.",
            )


def _find(key_id: str, keys: KeySet) -> KeyRecord:
    record = keys.by_id().get(key_id)
    if record is None:
        # Not repeated: it may be a whole key, pasted by mistake, and what is on stderr ends in logs.
        raise Moe2Error("There is no key of this id.", remedy="`moe2-coordinator keys list` shows the ids.")
    return record


def _span_s(text: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; write 90m, 12h, 30d or 8w")
    return float(int(match[1]) * _SECONDS[match[2]])


def _table(settings: CoordinatorSettings) -> KeyFile | KeyTable:
    """Returns where the keys are: in the database that coordinators share, or in this coordinator's file."""
    if settings.database.url is not None:
        return KeyTable(Session(settings.database.url, name="moe2-coordinator keys"))
    return KeyFile(settings.coordinator.state_dir)


def shown_record(key: KeyRecord, now_unix_s: float) -> dict[str, Any]:
    """Returns every field of a key's record but the digest, for JSON; unknown ones are null."""
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(now_unix_s).value,
        "scopes": sorted(key.scopes),
        "created_at_unix_s": key.created_at_unix_s,
        "expires_at_unix_s": key.expires_at_unix_s,
        "revoked_at_unix_s": key.revoked_at_unix_s,
        "requests_per_minute": key.requests_per_minute,
        "daily_energy_j": key.daily_energy_j,
        "daily_tokens": key.daily_tokens,
        "average_energy_j": key.average_energy_j,
        "budgets": key.budgets.model_dump(mode="json", exclude_none=True),
    }


def picture(keys: Sequence[KeyRecord], now_unix_s: float) -> RenderableType:
    """Draws the keys as a table for a terminal, in the order in which they were made."""
    if not keys:
        return Text("There are no keys yet. Make one: moe2-coordinator keys create NAME", style="dim")
    table: Table = terminal_parts.figures_table("Key", "State", "May", *_LIMITS, "Default budgets", right=_LIMITS)
    for key in keys:
        state = key.state(now_unix_s)
        name = Text(printable(key.name), style="bold" if state is KeyState.ACTIVE else "dim")
        name.append(f"\n{key.id}", style="not bold dim")
        table.add_row(
            name,
            _state_cell(key, state, now_unix_s),
            Text(", ".join(sorted(key.scopes))),
            _limit(key.requests_per_minute),
            _limit(key.daily_energy_j),
            _limit(key.daily_tokens),
            Text(_budgets(key)),
        )
    return table


def lines(keys: Sequence[KeyRecord], now_unix_s: float) -> list[str]:
    """Writes the keys for a pipe, one per line."""
    return [
        fact_line(
            "key",
            id=key.id,
            name=key.name,
            state=key.state(now_unix_s).value,
            scopes=",".join(sorted(key.scopes)),
            created=figures.moment(key.created_at_unix_s),
            expires=known(key.expires_at_unix_s, figures.moment, otherwise="never"),
            revoked=known(key.revoked_at_unix_s, figures.moment),
            requests_per_minute=known(key.requests_per_minute, _figure),
            daily_energy_j=known(key.daily_energy_j, _figure),
            daily_tokens=key.daily_tokens,
            average_energy_j=known(key.average_energy_j, _figure),
            **key.budgets.model_dump(mode="json", exclude_none=True),
        )
        for key in keys
    ]


def _state_cell(key: KeyRecord, state: KeyState, now_unix_s: float) -> Text:
    cell = Text(f"●\u00a0{state.value}", style=_STYLES[state])
    match state:
        case KeyState.ACTIVE:
            until = known(key.expires_at_unix_s, lambda at: f"for {figures.duration(at - now_unix_s)}", otherwise="")
        case KeyState.EXPIRED | KeyState.UNDECIDED:
            until = known(key.expires_at_unix_s, figures.moment)
        case KeyState.REVOKED:
            until = known(key.revoked_at_unix_s, figures.moment)
    if until:
        cell.append("\n" + until.replace(" ", "\u00a0"), style="not bold dim")
    return cell


def _limit(value: float | None) -> Text:
    return Text(_NO_LIMIT, style="dim") if value is None else Text(_figure(value))


def _figure(value: float) -> str:
    """Formats a limit as it was set: 60, not 60.0."""
    return str(int(value)) if value == int(value) else figures.number(value)


def _budgets(key: KeyRecord) -> str:
    limits = key.budgets.model_dump(exclude_none=True, mode="json")
    parts = [form.format(_figure(limits[name])) for name, form in _SHOWN_BUDGETS.items() if name in limits]
    if key.average_energy_j is not None:
        parts.append(f"{_figure(key.average_energy_j)} J on average")
    return " · ".join([*parts, limits["quantile"]] if "quantile" in limits else parts) or figures.UNKNOWN
