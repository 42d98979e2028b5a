"""Requests as the slow level counts them: those that have just ended, and those in the ledger."""

from __future__ import annotations

from pathlib import Path

from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.ledger.report import Span, lengths
from moe2.coordinator.ledger.schema import reading
from moe2.coordinator.provisioning.traffic import Asked
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt


def asked_of(life: Lifecycle, receipt: Receipt, now_unix_s: float) -> Asked:
    """Returns what traffic counts of a request that has just ended."""
    return Asked(
        now_unix_s,
        (receipt.decision.category if receipt.decision else None) or "",
        _one_model(life.request.model),
        receipt.tokens.prompt,
        receipt.tokens.decoded,
    )


def asked_since(path: Path, since_unix_s: float) -> list[Asked]:
    """Returns the answered requests in the ledger since a time. Blocks. Raises `LedgerError`."""
    with reading(path) as connection:
        return [
            Asked(at_unix_s, category, _one_model(model), prompt_tokens, answer_tokens)
            for at_unix_s, category, model, prompt_tokens, answer_tokens in lengths(connection, Span(since_unix_s))
        ]


def _one_model(model: str) -> str | None:
    """The model that a client asked for; None where it left the choice to moe2."""
    return None if model in ANY_MODEL else model
