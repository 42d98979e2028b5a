"""`moe2-agent bench`: progress while an expert is measured, and a table of what was found."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from moe2.agent.cli.workload import BenchResult, ExpertBench
from moe2.agent.energy.catalog import SensorSettings, discover
from moe2.agent.energy.monitor import HostMonitor
from moe2.agent.learning.store import store_profile
from moe2.agent.settings import AgentSettings, ModelSection
from moe2.common.energy import Energy, Quality
from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.localclient import STATUS_ROUTE, NotRunningError, fetch
from moe2.common.terminal.figures import UNMEASURED, known, latency, number, printable
from moe2.common.terminal.output import Screen, say_json
from moe2.common.terminal.screen import table_console


def run_bench(
    settings: AgentSettings,
    sensors: SensorSettings,
    engine_argv: Sequence[str],
    *,
    model: str | None = None,
    as_json: bool = False,
    idle_s: float | None = None,
    console: Console | None = None,
) -> int:
    """Measure one expert (the first one, if none is named), store its profile, show it; 0.

    Raises ConfigError for an unknown model, Moe2Error if it cannot be measured, or its profile not be stored, or if the
    agent runs: both together would measure each other.
    """
    section = _section(settings, model)
    _refuse_if_served(settings.agent.socket)
    console = console or table_console()
    # The bar goes to standard error: the table, or the JSON, can be piped.
    with _progress(Screen(stderr=True) if console.file is sys.stdout else console, quiet=as_json) as bars:
        shown: dict[str, TaskID] = {}

        def on_progress(what: str, share: float) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=1.0)
            bars.update(shown[what], completed=share)

        monitor = HostMonitor(discover(sensors), root=sensors.root)
        bench = ExpertBench(section, settings.engine, monitor, engine_argv)
        options = {} if idle_s is None else {"idle_s": idle_s}
        result = asyncio.run(bench.run(on_progress, **options))
    path = store_profile(settings.agent.state_dir, result.profile)
    if as_json:
        say_json(result, file=console.file, indent=2)
        return 0
    _print(result, console)
    console.print(f"Stored as {path}; the agent begins with it when it is started next.", highlight=False)
    return 0


def _refuse_if_served(socket: Path) -> None:
    try:
        fetch(socket, STATUS_ROUTE)
    except NotRunningError:
        return
    except PermissionError:
        pass  # Whoever may not ask cannot know that nobody answers.
    raise Moe2Error(
        f"The agent runs (its socket is {socket}), and its requests would be measured too.",
        remedy="Stop it first, for instance with 'systemctl stop moe2-agent', and start it again afterwards.",
    )


def _section(settings: AgentSettings, model: str | None) -> ModelSection:
    for section in settings.models:
        if model in (None, section.name):
            return section
    known = ", ".join(section.name for section in settings.models)
    raise ConfigError([f"--model: there is no model {model!r} in the configuration; it has {known}"])


def _progress(console: Console, *, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


def _print(result: BenchResult, console: Console) -> None:
    mode = result.profile.power_mode
    heading = f"{result.profile.model}  power mode {printable(mode)}" if mode else result.profile.model
    console.print(heading, style="bold", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    is_simulated = any(burst.energy.quality is Quality.SIMULATED for burst in result.bursts)
    joules = "J/TOKEN\n(simulated)" if is_simulated else "J/TOKEN"
    for heading in ("PROMPT", "AT ONCE", "FIRST TOKEN", "PREFILL/S", "DECODE/S EACH", "TOGETHER", joules):
        table.add_column(heading, justify="right")
    for burst in result.bursts:
        table.add_row(
            str(burst.prompt_tokens),
            str(burst.concurrency),
            known(burst.ttft_s, latency),
            known(burst.prefill_tokens_per_s, number),
            known(burst.decode_tokens_per_s, number),
            number(burst.together_tokens_per_s),
            _per_token(burst.energy, burst.decoded_tokens),
        )
    console.print(table)
    energy = result.profile.energy
    if energy is not None:
        idle = "unknown" if energy.idle_w is None else f"{energy.idle_w:.1f} W"
        simulated = " (simulated)" if energy.quality is Quality.SIMULATED else ""
        console.print(
            f"{energy.j_per_prefilled_token():.3f} J per prompt token, {energy.j_per_decoded_token():.2f} J per decoded"
            f" token of one request, idle {idle}{simulated}.",
            highlight=False,
        )
    elif reason := next((burst.energy.reason for burst in result.bursts if burst.energy.reason), None):
        console.print(f"Energy is unmeasured: {reason}", highlight=False, markup=False)


def _per_token(energy: Energy, tokens: int) -> str:
    if energy.joules is None or tokens == 0:
        return UNMEASURED
    return number(energy.joules / tokens)
