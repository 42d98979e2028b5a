"""What every Python driver has in common: where the fleet is, and how results are told. Imports nothing of moe2."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version

URL = os.environ["MOE2_URL"]
"""The coordinator, without a path."""
BASE = f"{URL}/v1"
KEY = "unused"
MODEL = "smollm2"
EMBEDDER = "minilm"
QUESTION = "Name a colour."
MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
"""The arguments of the function that is offered as a tool."""
TOO_LONG = "word " * 6000
"""More tokens than the model's context has."""


def report(package: str, checks: Mapping[str, Callable[[], object]]) -> None:
    """Runs the checks of a client and prints what became of each, as one JSON object on the last line."""
    results: dict[str, str] = {}
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            traceback.print_exc()
            results[name] = f"{type(error).__name__}: {error}"[:500]
        else:
            results[name] = "ok"
    print(json.dumps({"version": version(package), "results": results}))


def need(condition: object, what: object) -> None:
    """Raises where a check has found something else than it should."""
    if not condition:
        raise AssertionError(f"found {what!r}")
