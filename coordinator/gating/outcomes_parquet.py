"""Outcomes from Parquet: the only user of pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe2.coordinator.gating.outcomes import OutcomesError


def read_columns(path: Path) -> tuple[dict[str, Sequence[object]], str]:
    """The file's columns and what its rows are called. Raises OutcomesError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OutcomesError(
            "Reading Parquet needs pyarrow.", remedy="Install moe2[gate], or convert the file to JSON lines."
        ) from error
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise OutcomesError(f"{path} is not a readable Parquet file: {error}.") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}, "row"
