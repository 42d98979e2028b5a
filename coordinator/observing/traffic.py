"""Requests as the slow level counts them: those that have just ended, and those in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from moe2.common.errors import Moe2Error
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.ledger.report import Lengths, Span, lengths
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.provisioning.traffic import Asked
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt

SHIPPED_WITHIN_S = 900.0
"""Requests of other coordinators that came longer ago are no news: they would count as coming now."""

log = structlog.get_logger()


def asked_of(life: Lifecycle, receipt: Receipt, now_unix_s: float) -> Asked:
    """Returns what traffic counts of a request that has just ended."""
    return Asked(
        now_unix_s,
        (receipt.decision.category if receipt.decision else None) or "",
        _one_model(life.request.model),
        receipt.tokens.prompt,
        receipt.tokens.decoded,
    )


class AskedEverywhere:
    """What this coordinator has answered by its ledger, and what the others of its fleet have shipped. Event loop.

    ledger: its file. elsewhere: asks for what others have answered since a time; None where there are none. Trouble is
    logged: who decides goes on with what is known.
    """

    def __init__(self, ledger: Path, elsewhere: Callable[[float], Awaitable[Sequence[Lengths]]] | None) -> None:
        self._ledger, self._elsewhere = ledger, elsewhere
        self._told: frozenset[Asked] = frozenset()

    async def earlier(self, since_unix_s: float) -> list[Asked]:
        """Returns all requests since a time, the oldest first."""
        try:
            own = await asyncio.to_thread(_asked_since, self._ledger, since_unix_s)
        except Moe2Error as error:
            log.warning("traffic_not_read", reason=error.message)
            own = []
        others = await self._of_others(since_unix_s)
        self._told = frozenset(others)
        return sorted((*own, *others), key=lambda one: one.at_unix_s)

    async def news(self, now_unix_s: float) -> list[Asked]:
        """Returns others' requests of the last quarter of an hour that were not returned before, the oldest first."""
        found = await self._of_others(now_unix_s - SHIPPED_WITHIN_S)
        told, self._told = self._told, frozenset(found)
        return [one for one in found if one not in told]

    async def _of_others(self, since_unix_s: float) -> list[Asked]:
        if self._elsewhere is None:
            return []
        try:
            return [_asked(one) for one in await self._elsewhere(since_unix_s)]
        except Moe2Error as error:
            log.warning("traffic_not_read", reason=error.message)
            return []


def _asked_since(path: Path, since_unix_s: float) -> list[Asked]:
    with reading(path) as connection:
        return [_asked(one) for one in lengths(connection, Span(since_unix_s))]


def _asked(one: Lengths) -> Asked:
    at_unix_s, category, model, prompt_tokens, answer_tokens = one
    return Asked(at_unix_s, category, _one_model(model), prompt_tokens, answer_tokens)


def _one_model(model: str) -> str | None:
    """The model that a client asked for; None where it left the choice to moe2."""
    return None if model in ANY_MODEL else model
