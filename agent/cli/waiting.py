"""How `moe2-agent status` shows waiting: what each state draws, what changes of state take, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from moe2.common.energy import Quality
from moe2.common.link.reports import ExpertReport
from moe2.common.standby import IdlePower, Standby, TransitionCost
from moe2.common.status import AgentStatus
from moe2.common.terminal import figures
from moe2.common.terminal import parts as terminal_parts
from moe2.common.terminal.figures import UNMEASURED, fact_line, known, printable

Change = tuple[str, str, TransitionCost]
"""What changes ("load", "unload", "suspend" or "wake"), the model ("" for the whole host), and what it takes."""


def waiting_panel(status: AgentStatus) -> RenderableType:
    """Draws how the host waits, for a terminal."""
    standby = status.standby or Standby()
    facts = [("Allowed", Text(_allowed(standby)))]
    if standby.suspend_fault:
        facts.append(("Suspending", Text(printable(standby.suspend_fault), style="yellow")))
    if standby.asleep_s is not None:
        facts.append(("Last sleep", Text(figures.duration(standby.asleep_s))))
    if standby.energy is not None:
        causes = (f"{figures.number(joules)} J {cause.value}" for cause, joules in standby.energy.by_cause().items())
        facts.append(("No request's", Text(" · ".join(causes) + _simulated(standby.energy.quality))))
    parts: list[RenderableType] = [terminal_parts.facts_grid(*facts), _idle_table(standby.idle)]
    if changes := _changes(status.experts, standby):
        parts.append(_changes_table(changes))
    return Panel(Group(*parts), title="Waiting", title_align="left", border_style="dim", box=box.ROUNDED)


def waiting_lines(status: AgentStatus) -> list[str]:
    """Writes how the host waits, for a pipe: one fact per line."""
    standby = status.standby or Standby()
    return [
        fact_line(
            "standby",
            allow_unload=terminal_parts.yes_no(standby.allow_unload),
            allow_suspend=terminal_parts.yes_no(standby.allow_suspend),
            suspend_fault=standby.suspend_fault,
            asleep_s=known(standby.asleep_s, figures.number),
        ),
        *(_energy_lines(standby)),
        *(
            fact_line(
                "idle",
                state=_state(idle),
                power_w=figures.number(idle.power_w),
                spread_w=known(idle.spread_w, figures.number),
                measured_s=round(idle.measured_s),
                age_s=known(idle.age_s, figures.number),
                quality=idle.quality.value,
            )
            for idle in standby.idle
        ),
        *(
            fact_line(
                "change",
                what=what,
                model=model or None,
                duration_s=figures.number(cost.duration_s),
                energy_j=known(cost.energy_j, figures.number, otherwise=UNMEASURED),
                n=cost.n,
                age_s=known(cost.age_s, figures.number),
                quality=cost.quality.value,
            )
            for what, model, cost in _changes(status.experts, standby)
        ),
    ]


def _energy_lines(standby: Standby) -> Iterator[str]:
    if standby.energy is not None:
        joules = {f"{cause.value}_j": figures.number(spent) for cause, spent in standby.energy.by_cause().items()}
        requests_j = figures.number(standby.energy.requests_j)
        yield fact_line("energy", **joules, requests_j=requests_j, quality=standby.energy.quality.value)


def _idle_table(idle: tuple[IdlePower, ...]) -> RenderableType:
    if not idle:
        return Text(f"The watts of waiting are {UNMEASURED} yet.", style="dim")
    table = terminal_parts.figures_table("In memory", "Waiting", "Spread", "Age", right=("Waiting", "Spread", "Age"))
    for one in idle:
        table.add_row(
            Text(printable(_state(one)), style="bold"),
            Text(f"{figures.number(one.power_w)} W{_simulated(one.quality)}"),
            Text(known(one.spread_w, lambda w: f"±{figures.number(w)} W")),
            Text(known(one.age_s, figures.duration)),
        )
    return table


def _changes_table(changes: list[Change]) -> Table:
    table = terminal_parts.figures_table("Change", "Seconds", "Joules", "Times", right=("Seconds", "Joules", "Times"))
    for what, model, cost in changes:
        table.add_row(
            Text(printable(f"{what} {model}".strip()), style="bold"),
            Text(figures.number(cost.duration_s)),
            Text(known(cost.energy_j, figures.number, otherwise=UNMEASURED) + _simulated(cost.quality)),
            Text(str(cost.n)),
        )
    return table


def _changes(experts: tuple[ExpertReport, ...], standby: Standby) -> list[Change]:
    several = [("load", expert.model, expert.load_cost) for expert in experts]
    several += [("unload", expert.model, expert.unload_cost) for expert in experts]
    several += [("suspend", "", standby.suspend_cost), ("wake", "", standby.wake_cost)]
    return [(what, model, cost) for what, model, cost in several if cost is not None]


def _state(idle: IdlePower) -> str:
    return "asleep" if idle.asleep else ",".join(idle.models) or "nothing"


def _allowed(standby: Standby) -> str:
    allowed = [
        name for name, is_set in (("unload", standby.allow_unload), ("suspend", standby.allow_suspend)) if is_set
    ]
    return " and ".join(allowed) if allowed else "neither unloading nor suspending"


def _simulated(quality: Quality) -> str:
    return " (simulated)" if quality is Quality.SIMULATED else ""
