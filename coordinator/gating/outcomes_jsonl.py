"""Outcomes from JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from moe2.coordinator.gating.outcomes import OutcomesError


def read_columns(path: Path) -> tuple[dict[str, Sequence[object]], str]:
    """The file's columns and what its rows are called. Blank lines are refused: they hide cut files.

    Raises OutcomesError naming the line.
    """
    rows: list[dict[str, object]] = []
    decoder = msgspec.json.Decoder()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            value = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            remedy = "JSON has no NaN: leave a score out where it is unknown." if b"NaN" in line else None
            raise OutcomesError(f"{path}, line {number}: not JSON ({error}).", remedy=remedy) from error
        if not isinstance(value, dict):
            raise OutcomesError(f"{path}, line {number}: a row must be an object, not {type(value).__name__}.")
        rows.append(_flattened(value, path, number))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}, "line"


def _flattened(row: dict[str, object], path: Path, number: int) -> dict[str, object]:
    """{"scores": {"a": 1}} becomes {"score__a": 1}; likewise "losses" and "chars"."""
    flat = dict(row)
    for key, prefix in (("scores", "score__"), ("losses", "loss__"), ("chars", "chars__")):
        nested = flat.pop(key, None)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise OutcomesError(f"{path}, line {number}, column '{key}': it must map expert names to numbers.")
        for name, value in nested.items():
            if prefix + name in flat:
                raise OutcomesError(f"{path}, line {number}, column '{key}': {name} is given twice.")
            flat[prefix + name] = value
    return flat
