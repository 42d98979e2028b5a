"""The command `moe2-coordinator status`: the fleet as a table or as plain lines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe2.common.link.reports import ExpertReport
from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import AgentRow, AverageRow, CoordinatorStatus, FleetCounts, PairStatus
from moe2.common.terminal import figures
from moe2.common.terminal import parts as terminal_parts
from moe2.common.terminal.commandline import add_socket
from moe2.common.terminal.figures import UNKNOWN, UNMEASURED, fact_line, known, printable
from moe2.common.terminal.screen import StatusView, show
from moe2.coordinator.cli.fleet import told
from moe2.coordinator.http.query import whole_number
from moe2.coordinator.observing.fleet_view import MAX_HOSTS, AgentState
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH

DRAWN_HOSTS = 50
"""Hosts that are drawn on a terminal if nothing is said."""
POINTS_PER_KJ = 1e5
"""A score is 0 to 1, a point a hundredth of it; what a single joule is worth is too small a figure to read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `status`."""
    parser.add_argument("--json", action="store_true", help="the whole status as one JSON document")
    parser.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C")
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="show how accurate the predictions of recent requests were, instead",
    )
    which = parser.add_argument_group("which hosts", f"All; of more than {DRAWN_HOSTS} a terminal shows the first.")
    which.add_argument("--host", metavar="TEXT", help="part of a name, an id, a board or an accelerator")
    which.add_argument(
        "--state",
        metavar="STATE",
        choices=[state.value for state in AgentState],
        help=f"one of {', '.join(AgentState)}",
    )
    which.add_argument("--model", metavar="NAME", help="those that have this model")
    which.add_argument("--limit", metavar="N", type=_count, help="at most so many, in the order of their names")
    which.add_argument("--offset", metavar="N", type=_count, help="leave out so many before")
    add_socket(parser, DEFAULT_SOCKET_PATH)
    parser.set_defaults(act=run)


def _count(text: str) -> int:
    found = whole_number(text, 0, MAX_HOSTS)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {MAX_HOSTS}")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Shows the fleet's status, or the calibration, and returns the exit code."""
    if arguments.calibration:
        from moe2.coordinator.cli.accuracy import show_calibration

        return show_calibration(arguments.socket, as_json=arguments.json, watch=arguments.watch)
    wanted = {"q": arguments.host, "state": arguments.state, "model": arguments.model}
    wanted |= {"limit": arguments.limit, "offset": arguments.offset}
    return show_status(arguments.socket, as_json=arguments.json, watch=arguments.watch, wanted=wanted)


def show_status(
    socket: Path, *, as_json: bool, watch: bool, wanted: Mapping[str, str | int | None] | None = None
) -> int:
    """Prints the status and returns the exit code: 0 healthy, 1 degraded, 2 not running.

    wanted: parameters of `GET /v1/moe2/fleet` that say which hosts; those that are None are not set.
    """
    asked = {name: value for name, value in (wanted or {}).items() if value is not None}
    view = replace(VIEW, route=_route(asked), drawn_route=_route({"limit": DRAWN_HOSTS, **asked}))
    return show(view, socket, as_json=as_json, watch=watch)


def _route(asked: Mapping[str, str | int]) -> str:
    return f"{STATUS_ROUTE}?{urlencode(asked)}" if asked else STATUS_ROUTE


# --- Drawn ------------------------------------------------------------------------------------------------------------


def picture(status: CoordinatorStatus, _now_unix_s: float) -> RenderableType:
    """Draws the status for a terminal: the coordinator, all warnings, the agents, and one row per expert."""
    parts: list[RenderableType] = [_header(status)]
    if status.warnings:
        parts.append(terminal_parts.warnings_panel(status.warnings))
    if status.agents:
        parts += [_agents(status.agents), _experts(status.agents)]
    elif status.counts is not None and status.counts.agents:
        parts.append(Text("There is no host like the one that was asked for.", style="dim"))
    else:
        parts.append(Text("No agent has registered yet.", style="dim"))
    if left_out := shown_part(status):
        parts.append(Text(left_out, style="dim"))
    if status.averages:
        parts.append(_averages(status.averages))
    if status.provisioning is not None and (status.provisioning.status is not None or status.provisioning.returning):
        parts.append(Text("\n".join(told(status)), style="dim"))
    return Group(*parts)


def shown_part(status: CoordinatorStatus) -> str | None:
    """Which hosts are shown, in words; None where all are."""
    counts, n_shown = status.counts, len(status.agents)
    if counts is None or n_shown == counts.agents:
        return None
    found = "" if counts.matching == counts.agents else f" found of {counts.agents}"
    if n_shown == counts.matching:
        return f"{n_shown} {'host' if n_shown == 1 else 'hosts'}{found}."
    first, last = counts.offset + 1, counts.offset + n_shown
    on = f"; --offset {last} shows the next" if last < counts.matching else ""
    return f"Hosts {first} to {last} of {counts.matching}{found}{on}, --host TEXT, --state and --model find some."


def _header(status: CoordinatorStatus) -> RenderableType:
    counts = status.counts
    connected = counts.connected if counts else sum(agent.connected for agent in status.agents)
    n_agents = counts.agents if counts else len(status.agents)
    requests = (
        f"{status.requests_active} active · {status.requests_finished} finished · {status.requests_failed} failed · "
        f"{status.requests_cancelled} cancelled"
    )
    dispatch = status.dispatch
    helped = (
        f"{dispatch.waiting} wait for room · {dispatch.queue_refused} found no place · "
        f"{dispatch.hedges_won} of {dispatch.hedges_won + dispatch.hedges_lost} hedges won · {dispatch.resumed} resumed"
    )
    grid = terminal_parts.facts_grid(
        ("API for apps", Text(printable(status.api_url))),
        ("For agents", Text(printable(status.agents_url))),
        ("Agents", Text(f"{connected} of {n_agents} connected")),
        ("Requests", Text(requests)),
        ("Dispatch", Text(helped)),
        *([("Database", Text(_pair_said(status.pair)))] if status.pair else []),
        ("Up", Text(f"{figures.duration(status.uptime_s)} · moe2 {status.version} · pid {status.pid}")),
    )
    return terminal_parts.header_panel("moe2 coordinator", grid, status.warnings, draining=status.draining)


def _pair_said(pair: PairStatus) -> str:
    return " · ".join(
        (
            printable(pair.name) + (", preferred" if pair.preferred else ""),
            f"beside {', '.join(map(printable, pair.others))}" if pair.others else "no other coordinator was seen",
            "reached" if pair.reached else "not reached",
            f"{pair.unshipped} entries to be shipped",
        )
    )


def _agents(agents: tuple[AgentRow, ...]) -> Table:
    right = ("Power", "Round trip", "Report")
    table = terminal_parts.figures_table("Agent", "Link", "Round trip", "Report", "Power", right=right)
    for agent in agents:
        table.add_row(
            Text(printable(agent.agent_name), style="bold").append(f"\n{_host(agent)}", style="not bold dim"),
            _link_cell(agent),
            Text(known(agent.rtt_s, figures.latency)),
            Text(known(agent.report_age_s, lambda age_s: figures.duration(age_s) + " ago")),
            _power_cell(agent),
        )
    return table


def _experts(agents: tuple[AgentRow, ...]) -> Table:
    table = terminal_parts.figures_table("Expert", "Agent", "State", *terminal_parts.EXPERT_COLUMNS)
    for agent in agents:
        for expert in agent.experts:
            table.add_row(
                terminal_parts.model_cell(expert),
                Text(printable(agent.agent_name)),
                _expert_state(agent, expert),
                *terminal_parts.expert_cells(expert),
            )
    return table


def _expert_state(agent: AgentRow, expert: ExpertReport) -> Text:
    if agent.connected:
        return terminal_parts.state_cell(expert)
    return Text("●\u00a0asleep", style="blue") if agent.asleep else Text("●\u00a0lost", style="red")


def _averages(averages: tuple[AverageRow, ...]) -> Table:
    """The table of average budgets, with the price that each puts on a joule."""
    right = ("J wanted", "J taken", "Points per kJ", "Answers", "Unmeasured")
    table = terminal_parts.figures_table("Average of", *right, right=right)
    for row in averages:
        table.add_row(
            Text(printable(row.scope), style="bold"),
            Text(f"{row.average_energy_j:.4g}"),
            Text(
                known(row.mean_j, lambda joules: f"{joules:.4g}") + (" (simulated)" if row.simulated else ""),
                style="yellow" if row.saturated else "",
            ),
            Text(figures.number(row.price_per_j * POINTS_PER_KJ)),
            Text(str(row.n_answers)),
            Text(str(row.n_unmeasured)),
        )
    return table


def _link_cell(agent: AgentRow) -> Text:
    if agent.asleep:
        return Text("●\u00a0asleep", style="blue")
    if not agent.connected:
        return Text("●\u00a0down", style="red")
    return Text("●\u00a0draining", style="yellow") if agent.draining else Text("●\u00a0up", style="green")


def _host(agent: AgentRow) -> str:
    if agent.host is None:
        return UNKNOWN
    about = (agent.host.board or agent.host.architecture, agent.host.accelerator, agent.host.power_mode)
    return " · ".join(printable(part) for part in about if part)


def _power_cell(agent: AgentRow) -> Text:
    """Shows every sensor that can be read on its own: their scopes overlap, so they are not added up."""
    present = [sensor for sensor in agent.sensors if sensor.state == "present"]
    if not present:
        return Text(UNMEASURED, style="dim")
    return Text("\n".join(f"{terminal_parts.sensor_power(sensor)}\n{printable(sensor.name)}" for sensor in present))


# --- Plain ------------------------------------------------------------------------------------------------------------


def lines(status: CoordinatorStatus, _now_unix_s: float) -> list[str]:
    """Writes the status for a pipe: one fact per line, each a word and key=value pairs."""
    output = [
        fact_line(
            "coordinator",
            health=terminal_parts.health_word(status.warnings),
            draining=terminal_parts.yes_no(status.draining),
            id=status.coordinator_id,
            version=status.version,
            pid=status.pid,
            uptime_s=round(status.uptime_s),
            api_url=status.api_url,
            agents_url=status.agents_url,
            epoch=status.epoch,
        ),
        fact_line(
            "requests",
            active=status.requests_active,
            finished=status.requests_finished,
            failed=status.requests_failed,
            cancelled=status.requests_cancelled,
        ),
        fact_line(
            "dispatch",
            waiting=status.dispatch.waiting,
            queue_refused=status.dispatch.queue_refused,
            hedges_won=status.dispatch.hedges_won,
            hedges_lost=status.dispatch.hedges_lost,
            resumed=status.dispatch.resumed,
        ),
        *_pair_lines(status.pair),
        *(
            fact_line("breaker", expert=breaker.expert, state=breaker.state)
            for breaker in status.dispatch.breakers
            if breaker.state != "closed"
        ),
        *(
            fact_line(
                "average",
                scope=row.scope,
                average_energy_j=figures.number(row.average_energy_j),
                mean_j=known(row.mean_j, figures.number),
                price_per_j=f"{row.price_per_j:.3g}",
                answers=row.n_answers,
                unmeasured=row.n_unmeasured,
                saturated=terminal_parts.yes_no(row.saturated),
                simulated=terminal_parts.yes_no(row.simulated),
            )
            for row in status.averages
        ),
        *_provisioning_lines(status),
        *(terminal_parts.warning_line(warning) for warning in status.warnings),
    ]
    if status.counts is not None:
        output.append(_counts_line(status.counts, len(status.agents)))
    # What is wrong with an agent is among the coordinator's own warnings, with the agent's name.
    for agent in status.agents:
        output += _agent_lines(agent)
    return output


def _counts_line(counts: FleetCounts, n_shown: int) -> str:
    return fact_line(
        "fleet",
        agents=counts.agents,
        connected=counts.connected,
        asleep=counts.asleep,
        experts=counts.experts,
        experts_ready=counts.experts_ready,
        slots=counts.slots,
        slots_active=counts.slots_active,
        queued=counts.queued,
        matching=counts.matching,
        shown=n_shown,
        warnings=counts.warnings,
    )


def _pair_lines(pair: PairStatus | None) -> list[str]:
    if pair is None:
        return []
    return [
        fact_line(
            "database",
            name=pair.name,
            preferred=terminal_parts.yes_no(pair.preferred),
            reached=terminal_parts.yes_no(pair.reached),
            unshipped=pair.unshipped,
            others=",".join(pair.others) or None,
        )
    ]


def _provisioning_lines(status: CoordinatorStatus) -> list[str]:
    provisioning = status.provisioning
    if provisioning is None or provisioning.status is None:
        return []
    return [
        fact_line(
            "provisioning",
            mode=provisioning.mode,
            proof=provisioning.status,
            wanted=len(provisioning.awake) if provisioning.n_awake is None else provisioning.n_awake,
            awake=",".join(provisioning.awake) or None,
            standing_w=known(provisioning.standing_w, figures.number),
            least_w=known(provisioning.least_w, figures.number),
            price_per_j=known(provisioning.price_per_j, lambda price: f"{price:.3g}"),
            saved_j=known(provisioning.saved_j, figures.number),
        )
    ]


def _agent_lines(agent: AgentRow) -> list[str]:
    host = agent.host
    return [
        fact_line(
            "agent",
            name=agent.agent_name,
            connected=terminal_parts.yes_no(agent.connected),
            asleep=terminal_parts.yes_no(agent.asleep),
            draining=terminal_parts.yes_no(agent.draining),
            id=agent.agent_id,
            version=agent.version,
            rtt_s=known(agent.rtt_s, figures.number),
            report_age_s=known(agent.report_age_s, figures.number),
            host=host and host.hostname,
            architecture=host and host.architecture,
            accelerator=host and host.accelerator,
            power_mode=host and host.power_mode,
        ),
        *(terminal_parts.sensor_line(sensor, agent=agent.agent_name) for sensor in agent.sensors),
        *(terminal_parts.expert_line("expert", expert, agent=agent.agent_name) for expert in agent.experts),
    ]


VIEW = StatusView(
    program="moe2-coordinator",
    kind=CoordinatorStatus,
    picture=picture,
    lines=lines,
    default_socket=DEFAULT_SOCKET_PATH,
    default_config=DEFAULT_CONFIG_PATH,
)
