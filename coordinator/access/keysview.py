"""API keys as people and programs see them. PURE. Neither secrets nor their digests are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moe2.common import figures, statusparts
from moe2.common.figures import fact_line, known, printable
from moe2.coordinator.access.keys import KeyRecord, KeyState

_NO_LIMIT = "no limit"
_STYLES = {KeyState.ACTIVE: "green", KeyState.EXPIRED: "yellow", KeyState.REVOKED: "red", KeyState.UNDECIDED: "red"}
_LIMITS = ("Requests/min", "J/day", "Tokens/day")
_BUDGETS = {
    "energy_budget_j": "{} J",
    "latency_budget_s": "{} s",
    "ttft_budget_s": "first token {} s",
    "tpot_budget_s": "per token {} s",
    "max_experts": "{} experts",
}


def document(key: KeyRecord, now_unix_s: float) -> dict[str, Any]:
    """Every field but the digest, unknown ones as null."""
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
        "budgets": key.budgets.model_dump(mode="json", exclude_none=True),
    }


def picture(keys: Sequence[KeyRecord], now_unix_s: float) -> RenderableType:
    """The keys for a terminal, in the order in which they were made."""
    if not keys:
        return Text("There are no keys yet. Make one: moe2-coordinator keys create NAME", style="dim")
    table: Table = statusparts.figures_table("Key", "State", "May", *_LIMITS, "Default budgets", right=_LIMITS)
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
    """The keys for a pipe, one per line."""
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
    """As it was set: 60, not 60.0."""
    return str(int(value)) if value == int(value) else figures.number(value)


def _budgets(key: KeyRecord) -> str:
    limits = key.budgets.model_dump(exclude_none=True, mode="json")
    parts = [form.format(_figure(limits[name])) for name, form in _BUDGETS.items() if name in limits]
    return " · ".join([*parts, limits["quantile"]] if "quantile" in limits else parts) or figures.UNKNOWN
