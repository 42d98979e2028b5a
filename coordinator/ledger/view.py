"""The ledger's rows as tables, plain lines, CSV and JSON. PURE: values to text and renderables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any, TextIO

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe2.common import figures, statusparts
from moe2.common.energy import Quality
from moe2.common.figures import UNKNOWN, UNMEASURED, fact_line, known, printable
from moe2.coordinator.ledger.report import RequestRow, SumRow

Row = SumRow | RequestRow
Rows = tuple[SumRow, ...] | tuple[RequestRow, ...]

_SUM_FIGURES = ("Requests", "Tokens in", "Tokens out", "Seconds", "Joules", "Useful", "Wasted")
_REQUEST_FIGURES = ("In", "Out", "First", "Whole", "Joules", "Wasted")


def picture(rows: Rows, by: str) -> RenderableType:
    """The rows for a terminal. by: heading of the sums' groups."""
    if not rows:
        return Text("The ledger has no request in this span.", style="dim")
    table = statusparts.figures_table(by.capitalize(), *_SUM_FIGURES, right=_SUM_FIGURES)
    if isinstance(rows[0], RequestRow):
        table = statusparts.figures_table(
            "When (UTC)", "Key", "Expert", "Outcome", *_REQUEST_FIGURES, right=_REQUEST_FIGURES
        )
    for row in rows:
        _add(table, row)
    return Group(table, *_notes(rows))


def lines(rows: Rows) -> list[str]:
    """The rows for a pipe: one line each."""
    return [fact_line("request" if isinstance(row, RequestRow) else "sum", **_facts(row)) for row in rows]


def as_json(rows: Rows) -> str:
    """All rows as one document; what is unknown is null."""
    return msgspec.json.encode(rows).decode()


def write_csv(rows: Rows, file: TextIO) -> None:
    """A header and one line per row; what is unknown is empty. Wasted joules have a column for each cause."""
    causes = sorted({cause for row in rows for cause in row.wasted_j})
    kind = type(rows[0]) if rows else SumRow
    names = [name for name in kind.__struct_fields__ if name != "wasted_j"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, *(f"wasted_{cause}_j" for cause in causes)])
    for row in rows:
        cells = [_cell(getattr(row, name)) for name in names]
        writer.writerow([*cells, *(_cell(row.wasted_j.get(cause)) for cause in causes)])


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        # A spreadsheet would take it for a formula, and others chose it.
        return f"'{value}"
    return "" if value is None else value


def _add(table: Table, row: Row) -> None:
    # Where some joules are unknown, nobody can say that none were wasted.
    nothing = UNKNOWN if row.joules is None or (isinstance(row, SumRow) and row.n_unmeasured) else "0"
    wasted = Text(_wasted(row.wasted_j) or nothing, style="yellow" if row.wasted_j else "dim")
    if isinstance(row, SumRow):
        unmeasured = f"\n{row.n_unmeasured} {UNMEASURED}" if row.n_unmeasured else ""
        table.add_row(
            Text(printable(row.group), style="bold"),
            Text(str(row.n_requests)),
            Text(known(row.prompt_tokens, str)),
            Text(known(row.decoded_tokens, str)),
            Text(known(row.seconds, figures.number)),
            Text.assemble(_joules(row.joules, row.quality), (unmeasured, "dim")),
            Text(known(row.useful_j, figures.number)),
            wasted,
        )
        return
    table.add_row(
        Text(figures.moment(row.at_unix_s).replace("T", " ").rstrip("Z"), style="dim"),
        Text(printable(row.key_name)),
        Text(printable(", ".join(expert.partition("/")[2] for expert in row.experts)) or UNKNOWN),
        Text(row.outcome if row.code is None else f"{row.outcome}\n{printable(row.code)}", style=_style(row.outcome)),
        Text(known(row.prompt_tokens, str)),
        Text(known(row.decoded_tokens, str)),
        Text(known(row.ttft_s, figures.latency)),
        Text(known(row.total_s, figures.latency)),
        Text(_joules(row.joules, row.quality)),
        wasted,
    )


def _notes(rows: Sequence[Row]) -> list[RenderableType]:
    notes = []
    if any(isinstance(row, SumRow) and row.n_unmeasured and row.joules is not None for row in rows):
        notes.append("Where requests are unmeasured, the joules are those of the others: a lower bound.")
    if any(row.quality == Quality.SIMULATED for row in rows):
        notes.append("Joules marked (simulated) rest on a simulated host's power.")
    return [Text(note, style="dim") for note in notes]


def _joules(joules: float | None, quality: str) -> str:
    return known(joules, figures.number, otherwise=UNMEASURED) + (
        " (simulated)" if quality == Quality.SIMULATED and joules is not None else ""
    )


def _wasted(wasted_j: dict[str, float]) -> str:
    return "\n".join(f"{figures.number(joules)} {printable(cause)}" for cause, joules in wasted_j.items())


def _style(outcome: str) -> str:
    return {"completed": "green", "cancelled": "yellow"}.get(outcome, "red")


def _facts(row: Row) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if name == "wasted_j":
            facts |= {f"wasted_{cause}_j": figures.number(joules) for cause, joules in value.items()}
        elif name == "at_unix_s":
            facts["at"] = figures.moment(value)
        elif name in ("joules", "useful_j") and value is None:
            facts[name] = UNMEASURED
        elif isinstance(value, float):
            facts[name] = figures.number(value)
        else:
            facts[name] = ",".join(value) if isinstance(value, tuple) else value
    return facts
