"""`moe2-agent status`: how an agent's status looks, drawn and plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from moe2.agent.cli.waiting import waiting_lines, waiting_panel
from moe2.agent.paths import DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH
from moe2.common.link.reports import ExpertReport, SensorReport
from moe2.common.status import AgentStatus, LinkState, LinkStatus
from moe2.common.terminal import figures
from moe2.common.terminal import parts as terminal_parts
from moe2.common.terminal.figures import UNKNOWN, UNMEASURED, fact_line, known, printable
from moe2.common.terminal.screen import StatusView, show

_LINK_STYLES = {LinkState.CONNECTED: "green", LinkState.CONNECTING: "yellow", LinkState.WAITING: "red"}
_SENSOR_STYLES = {"present": "green", "absent": "dim", "denied": "yellow", "broken": "red"}


def show_status(socket: Path, *, as_json: bool, watch: bool) -> int:
    """Print the status; returns the exit code: 0 healthy, 1 degraded, 2 not running."""
    return show(VIEW, socket, as_json=as_json, watch=watch)


# --- Drawn ------------------------------------------------------------------------------------------------------------


def picture(status: AgentStatus, now_unix_s: float) -> RenderableType:
    """Returns an agent's status as panels and tables for a terminal."""
    parts: list[RenderableType] = [_header(status)]
    if status.warnings:
        parts.append(terminal_parts.warnings_panel(status.warnings))
    links = [_link(link, now_unix_s) for link in status.links or (status.link,)]
    parts += [_models(status.experts), *links, _sensors(status.sensors), waiting_panel(status)]
    return Group(*parts)


def _header(status: AgentStatus) -> Panel:
    host = status.host
    machine = [host.board or host.system, host.architecture, host.cpu_model, host.accelerator]
    if host.cpu_count is not None:
        machine.append(f"{host.cpu_count} CPUs")
    if host.memory_bytes is not None:
        machine.append(figures.size(host.memory_bytes))
    grid = terminal_parts.facts_grid(
        ("Host", Text(" · ".join(printable(part) for part in (host.hostname, *machine) if part))),
        ("Power mode", Text(printable(host.power_mode or UNKNOWN))),
        ("Agent", Text(f"{status.agent_id} · moe2 {status.version} · pid {status.pid}")),
        ("Requests", Text(f"{status.jobs_finished} finished · {status.jobs_failed} failed")),
        ("Up", Text(figures.duration(status.uptime_s))),
    )
    return terminal_parts.header_panel(status.agent_name, grid, status.warnings, draining=status.draining)


def _models(experts: tuple[ExpertReport, ...]) -> Table:
    table = terminal_parts.figures_table("Model", "State", *terminal_parts.EXPERT_COLUMNS)
    for expert in experts:
        table.add_row(
            terminal_parts.model_cell(expert), terminal_parts.state_cell(expert), *terminal_parts.expert_cells(expert)
        )
    return table


def _link(link: LinkStatus, now_unix_s: float) -> Panel:
    rows: list[tuple[str, Text]] = [("Coordinator", Text(printable(link.url)))]
    if link.connected_since_unix_s is not None and link.state is LinkState.CONNECTED:
        rows.append(("Connected", Text(f"for {figures.duration(now_unix_s - link.connected_since_unix_s)}")))
        rows.append(("Round trip", Text(known(link.rtt_s, figures.latency))))
    else:
        rows.append(("Attempts", Text(str(link.attempts))))
        rows.append(("Next attempt", Text(known(link.next_attempt_in_s, lambda s: f"in {figures.latency(s)}"))))
    if link.last_error is not None:
        ago = known(link.last_error_at_unix_s, lambda at: f" ({figures.duration(now_unix_s - at)} ago)", otherwise="")
        over = link.state is LinkState.CONNECTED
        rows.append(("Last error", Text(printable(link.last_error) + ago, style="dim" if over else "")))
    style = _LINK_STYLES[link.state]
    title = Text.assemble("Link ", ("● " + link.state.value, style))
    return Panel(terminal_parts.facts_grid(*rows), title=title, title_align="left", border_style="dim", box=box.ROUNDED)


def _sensors(sensors: tuple[SensorReport, ...]) -> RenderableType:
    if not sensors:
        return Text(f"No power sensor: joules are {UNMEASURED} on this host.", style="dim")
    table = terminal_parts.figures_table("Power sensor", "State", "Power", "Detail", right=("Power",))
    for sensor in sensors:
        table.add_row(
            Text(printable(sensor.name), style="bold"),
            Text(printable(sensor.state), style=_SENSOR_STYLES.get(sensor.state, "")),
            terminal_parts.sensor_power(sensor),
            Text(" ".join(printable(part) for part in _sensor_detail(sensor))),
        )
    return table


def _sensor_detail(sensor: SensorReport) -> Iterator[str]:
    if sensor.detail:
        yield sensor.detail
    if sensor.owned:
        yield "Owned by this agent."
    if sensor.remedy:
        yield sensor.remedy


# --- Plain ------------------------------------------------------------------------------------------------------------


def lines(status: AgentStatus, now_unix_s: float) -> list[str]:
    """The status for a pipe: one fact per line, each a word and key=value pairs."""
    host = status.host
    return [
        fact_line(
            "agent",
            name=status.agent_name,
            health=terminal_parts.health_word(status.warnings),
            draining=terminal_parts.yes_no(status.draining),
            id=status.agent_id,
            version=status.version,
            pid=status.pid,
            uptime_s=round(status.uptime_s),
            requests_finished=status.jobs_finished,
            requests_failed=status.jobs_failed,
        ),
        fact_line(
            "host",
            name=host.hostname,
            system=host.system,
            architecture=host.architecture,
            cpus=host.cpu_count,
            cpu=host.cpu_model,
            memory_bytes=host.memory_bytes,
            accelerator=host.accelerator,
            board=host.board,
            power_mode=host.power_mode,
        ),
        *(_link_line(link, now_unix_s) for link in status.links or (status.link,)),
        *(terminal_parts.sensor_line(sensor) for sensor in status.sensors),
        *(terminal_parts.expert_line("model", expert) for expert in status.experts),
        *waiting_lines(status),
        *(terminal_parts.warning_line(warning) for warning in status.warnings),
    ]


def _link_line(link: LinkStatus, now_unix_s: float) -> str:
    connected_s = None
    if link.connected_since_unix_s is not None and link.state is LinkState.CONNECTED:
        connected_s = round(now_unix_s - link.connected_since_unix_s)
    return fact_line(
        "link",
        state=link.state.value,
        url=link.url,
        connected_s=connected_s,
        connected_since=known(link.connected_since_unix_s, figures.moment),
        rtt_s=known(link.rtt_s, figures.number),
        attempts=link.attempts,
        next_attempt_in_s=known(link.next_attempt_in_s, figures.number),
        last_error=link.last_error,
    )


VIEW = StatusView(
    program="moe2-agent",
    kind=AgentStatus,
    picture=picture,
    lines=lines,
    default_socket=DEFAULT_SOCKET_PATH,
    default_config=DEFAULT_CONFIG_PATH,
)
