"""Reads which hosts a request wants to see, from the parameters of its URL. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS
from moe2.coordinator.http.body.decode import whole_number
from moe2.coordinator.http.errors import invalid, quoted
from moe2.coordinator.observing.fleet_view import AgentState, FleetQuery

MAX_HOSTS = 10_000
"""The largest `limit`, and the largest `offset`."""
NAMES = ("limit", "offset", "q", "state", "model")


def fleet_query(parameters: Mapping[str, str], *, limit: int | None = None) -> FleetQuery:
    """Returns the hosts that are asked for; `limit` holds where the request says nothing.

    Raises `ApiError` for a parameter with a value that means nothing; others are none of its business.
    """
    state = parameters.get("state") or None
    if state is not None and state not in tuple(AgentState):
        raise invalid(f"'state' must be one of {', '.join(AgentState)}, not {quoted(state)}.", param="state")
    for name in ("q", "model"):
        if len(parameters.get(name, "")) > MAX_NAME_CHARACTERS:
            raise invalid(f"'{name}' must not be longer than {MAX_NAME_CHARACTERS} characters.", param=name)
    return FleetQuery(
        limit=_number(parameters, "limit", limit),
        offset=_number(parameters, "offset", 0) or 0,
        text=parameters.get("q", ""),
        state=None if state is None else AgentState(state),
        model=parameters.get("model") or None,
    )


def _number(parameters: Mapping[str, str], name: str, otherwise: int | None) -> int | None:
    text = parameters.get(name)
    if not text:
        return otherwise
    found = whole_number(text, 0, MAX_HOSTS)
    if found is None:
        raise invalid(f"'{name}' must be a whole number of hosts, from 0 to {MAX_HOSTS}.", param=name)
    return found
