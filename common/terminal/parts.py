"""Parts that the agent's and the coordinator's status views are put together from. PURE: values to renderables."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from moe2.common.energy import Quality
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, ExpertState, SensorReport
from moe2.common.placement import placement_text
from moe2.common.status import exit_code
from moe2.common.terminal import figures
from moe2.common.terminal.figures import UNMEASURED, fact_line, known, printable

EXPERT_COLUMNS = ("Slots", "Queue", "Tokens/s", "TTFT", "J/token")

_STATE_STYLES = {
    ExpertState.COLD: "blue",
    ExpertState.READY: "green",
    ExpertState.LOADING: "cyan",
    ExpertState.RESTARTING: "yellow",
    ExpertState.FAILED: "red",
}
_BAR_CELLS = 8


def health_word(warnings: tuple[HealthWarning, ...]) -> str:
    return "degraded" if exit_code(warnings) else "healthy"


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def power(value_w: float) -> str:
    return f"{figures.number(value_w)} W"


def sensor_power(sensor: SensorReport) -> str:
    """Return the present power; that of a simulated host, and what is no part of the host's sum, says so."""
    if sensor.power_w is None and sensor.uncounted_w is not None:
        return power(sensor.uncounted_w) + " (not counted)"
    return known(sensor.power_w, power) + (" (simulated)" if sensor.simulated else "")


def _energy_is_simulated(expert: ExpertReport) -> bool:
    return expert.energy is not None and expert.energy.quality is Quality.SIMULATED


# --- Drawn ------------------------------------------------------------------------------------------------------------


def header_panel(name: str, body: RenderableType, warnings: tuple[HealthWarning, ...], *, draining: bool) -> Panel:
    """The frame around the first lines: whose status this is, and how it is."""
    style = "yellow" if exit_code(warnings) else "green"
    title = Text.assemble((printable(name), "bold"), "  ", ("● " + health_word(warnings), style))
    if draining:
        title.append("  draining", style="yellow")
    return Panel(body, title=title, title_align="left", border_style=style, box=box.ROUNDED)


def facts_grid(*rows: tuple[str, Text]) -> Table:
    """Names on the left, their values on the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def figures_table(*columns: str, right: Iterable[str] = EXPERT_COLUMNS) -> Table:
    """A table whose columns named in `right` hold figures: to the right, and never broken."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    right = tuple(right)
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table


def model_cell(expert: ExpertReport) -> Text:
    """The model's name, and below it its quantization, size and context length."""
    cell = Text(printable(expert.model), style="bold")
    about = [
        printable(expert.quantization or ""),
        known(expert.file_bytes, figures.size, otherwise=""),
        f"{expert.context_tokens}\u00a0context",
        printable(placement_text(expert.placement)),
    ]
    cell.append("\n" + " · ".join(part for part in about if part), style="not bold dim")
    return cell


def state_cell(expert: ExpertReport) -> Text:
    """The state; how far loading is; how often its engine was restarted."""
    style = _STATE_STYLES[expert.state]
    cell = Text(f"●\u00a0{expert.state.value}", style=style)
    if expert.state is ExpertState.LOADING and expert.load_progress is not None:
        full = round(expert.load_progress * _BAR_CELLS)
        cell.append(f"\n{'━' * full}", style=style)
        cell.append("━" * (_BAR_CELLS - full), style="dim")
        cell.append(f"\u00a0{figures.percent(expert.load_progress)}")
    if expert.restarts:
        cell.append(f"\n{expert.restarts}\u00a0restarts", style="not bold dim")
    return cell


def expert_cells(expert: ExpertReport) -> tuple[Text, ...]:
    """The cells under `EXPERT_COLUMNS`; below the speed stands what the figures rest on."""
    speed = expert.performance
    rate = Text(known(speed.decode_tokens_per_s, figures.number))
    if speed.decode_tokens_per_s is not None:
        rate.append(f"\n{_basis(expert)}", style="dim")
    if expert.paced:
        rate.append("\nsimulated", style="dim")
    joules = Text(
        known(speed.j_per_decoded_token, figures.number, otherwise=UNMEASURED),
        style="dim" if speed.j_per_decoded_token is None else "",
    )
    if _energy_is_simulated(expert):
        joules.append("\nsimulated", style="dim")
    return (
        Text(f"{expert.active}/{expert.slots}"),
        Text(f"{expert.queued}/{expert.max_queue}", style="yellow" if expert.queued else ""),
        rate,
        Text(known(speed.ttft_s, figures.latency)),
        joules,
    )


def _basis(expert: ExpertReport) -> str:
    """What the speed figures rest on: so many requests, or only the warm-up run after loading."""
    count = expert.performance.n_requests
    return f"n={count}" if count else "warm-up"


def warnings_panel(warnings: tuple[HealthWarning, ...]) -> Panel:
    """Every warning under its code; a remedy that several share stands once, below them."""
    text = Text()
    for (code, severity, remedy), messages in _grouped(warnings).items():
        style = "bold yellow" if severity is Severity.DEGRADED else "bold cyan"
        text.append("\n" if text else "")
        text.append(printable(code), style=style)
        for message in messages:
            text.append(("  " if len(messages) == 1 else "\n  ") + printable(message))
        if remedy:
            text.append(f"\n  → {printable(remedy)}", style="italic")
    degraded = bool(exit_code(warnings))
    return Panel(
        text,
        title="Warnings" if degraded else "Notices",
        title_align="left",
        border_style="yellow" if degraded else "dim",
        box=box.ROUNDED,
    )


def _grouped(warnings: tuple[HealthWarning, ...]) -> dict[tuple[str, Severity, str], list[str]]:
    groups: dict[tuple[str, Severity, str], list[str]] = {}
    for warning in warnings:
        groups.setdefault((warning.code, warning.severity, warning.remedy), []).append(warning.message)
    return groups


# --- Plain ------------------------------------------------------------------------------------------------------------


def expert_line(word: str, expert: ExpertReport, **before: object) -> str:
    speed = expert.performance
    return fact_line(
        word,
        **before,
        name=expert.model,
        state=expert.state.value,
        progress=known(expert.load_progress, figures.percent),
        active=expert.active,
        slots=expert.slots,
        queued=expert.queued,
        max_queue=expert.max_queue,
        tokens_per_s=known(speed.decode_tokens_per_s, figures.number),
        ttft_s=known(speed.ttft_s, figures.number),
        j_per_token=known(speed.j_per_decoded_token, figures.number, otherwise=UNMEASURED),
        energy_quality=expert.energy.quality.value if expert.energy else UNMEASURED,
        n_requests=speed.n_requests,
        context_tokens=expert.context_tokens,
        quantization=expert.quantization,
        file_bytes=expert.file_bytes,
        restarts=expert.restarts,
        last_error=expert.last_error,
        placement=placement_text(expert.placement) or None,
    )


def sensor_line(sensor: SensorReport, **before: object) -> str:
    return fact_line(
        "sensor",
        **before,
        name=sensor.name,
        state=sensor.state,
        power_w=known(sensor.power_w, figures.number),
        uncounted_w=known(sensor.uncounted_w, figures.number),
        simulated=yes_no(sensor.simulated),
        owned=yes_no(sensor.owned),
        detail=sensor.detail,
        remedy=sensor.remedy,
    )


def warning_line(warning: HealthWarning) -> str:
    return fact_line(
        "warning",
        severity=warning.severity.value,
        code=warning.code,
        message=warning.message,
        remedy=warning.remedy,
    )
