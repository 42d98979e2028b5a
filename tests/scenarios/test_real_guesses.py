"""Guessed tokens in a whole fleet, as clients and operators see them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.engine.child import EAGER
from tests.fakes.fleet import fleet
from tests.models import served, smollm2_path
from tests.scenarios.clients import client_of

pytestmark = pytest.mark.slow

_COLOURS = ("red", "blue", "green")
_LINES = "".join(f"{at}. The {colour} lamp costs {at * 7} coins.\n" for at, colour in enumerate(_COLOURS, 1))
COPY = f"A list:\n{_LINES * 2}The list once more:\n1. The red lamp"


async def test_guesses_are_on_the_receipt_and_change_no_answer(tmp_path: Path) -> None:
    """Of two experts with one model, the one that guesses says how many were right; their greedy answers are equal.

    Eagerly: on a busy host the engine rightly guesses nothing.
    """
    models = [served(smollm2_path(), name=name, speculation=name == "guesses") for name in ("guesses", "plain")]
    async with (
        fleet(tmp_path, engine_argv=(sys.executable, "-m", EAGER), models=models) as running,
        client_of(running) as client,
    ):
        texts: dict[str, str] = {}
        tokens: dict[str, Any] = {}
        for name in ("guesses", "plain"):
            answer: Any = await client.completions.create(model=name, prompt=COPY, max_tokens=40, temperature=0)
            texts[name], tokens[name] = answer.choices[0].text, answer.moe2["tokens"]
        assert texts["guesses"] == texts["plain"]
        assert tokens["guesses"]["decoded"] == tokens["plain"]["decoded"] == 40
        assert 0 < tokens["guesses"]["accepted"] <= tokens["guesses"]["drafted"]
        assert tokens["plain"]["drafted"] is None
