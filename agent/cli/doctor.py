"""`moe2-agent doctor`: what of this host can be measured, what was refused, and how to fix it."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSettings, choose, discover
from moe2.agent.observing.host import detect_host
from moe2.common.link.messages import HostFacts, SensorReport

_STYLE = {
    ProbeState.PRESENT: "green",
    ProbeState.ABSENT: "dim",
    ProbeState.DENIED: "yellow",
    ProbeState.BROKEN: "red",
}


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What the doctor found. sampled: the sensors that the agent would use. healthy: nothing was refused or broken."""

    host: HostFacts
    sensors: tuple[SensorReport, ...]
    sampled: tuple[str, ...]
    healthy: bool


def diagnose(settings: SensorSettings) -> Diagnosis:
    """Probe everything. Blocking, bounded by the settings' deadline."""
    results = discover(settings)
    chosen = choose(results)
    try:
        return Diagnosis(
            host=detect_host(settings.root, simulated=settings.simulated),
            sensors=tuple(_with_power(result) if result.sensor in chosen else result.report() for result in results),
            sampled=tuple(sensor.name for sensor in chosen),
            healthy=all(result.state in (ProbeState.PRESENT, ProbeState.ABSENT) for result in results),
        )
    finally:
        for sensor in chosen:
            sensor.close()


def run_doctor(settings: SensorSettings, *, as_json: bool, console: Console | None = None) -> int:
    """Print the diagnosis; 0 if energy can be measured and nothing is wrong, otherwise 1."""
    found = diagnose(settings)
    console = console or Console()
    if as_json:
        console.file.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _print(found, console)
    return 0 if found.healthy and found.sampled else 1


def _with_power(result: ProbeResult) -> SensorReport:
    report = result.report()
    if result.sensor is None:
        return report
    try:
        return msgspec.structs.replace(report, power_w=result.sensor.read().power_w)
    except Exception as error:
        return msgspec.structs.replace(report, state=ProbeState.BROKEN, detail=str(error))


def _print(found: Diagnosis, console: Console) -> None:
    host = found.host
    facts = [host.board, host.accelerator, host.cpu_model, host.power_mode and f"power mode {host.power_mode}"]
    console.print(f"[bold]{host.hostname}[/]  " + ", ".join(fact for fact in facts if fact), highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("SENSOR", "STATE", "POWER", "FOUND"):
        table.add_column(heading, overflow="fold")
    for sensor in found.sensors:
        style = _STYLE[ProbeState(sensor.state)]
        power = "" if sensor.power_w is None else f"{sensor.power_w:.1f} W"
        table.add_row(sensor.name, f"[{style}]{sensor.state}[/]", power, escape(sensor.detail or ""))
    console.print(table)
    for sensor in found.sensors:
        if sensor.remedy and (sensor.state != ProbeState.ABSENT or not found.sampled):
            console.print(f"[bold]{sensor.name}[/]: {escape(sensor.remedy)}", highlight=False)
    if found.sampled:
        console.print(f"Energy is measured with {', '.join(found.sampled)}.", highlight=False)
    else:
        console.print("[yellow]Energy cannot be measured on this host: joules are reported as unmeasured.[/]")
