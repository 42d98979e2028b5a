"""`moe2-agent doctor`: what of this host can be measured and computed with, what was refused, and how to fix it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe2.agent.cli.as_service import NoServiceError, run_as_service
from moe2.agent.energy.blocking import within
from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSettings, choose, discover
from moe2.agent.energy.ownership import DeviceLocks
from moe2.agent.energy.sensor import Sensor
from moe2.agent.engine.gpu.facts import HostGpu
from moe2.agent.engine.gpu.fault import cuda_text, gpu_fault
from moe2.agent.engine.gpu.look import look
from moe2.agent.engine.gpu.trial import EngineTrial, try_engine
from moe2.agent.observing.host import detect_host
from moe2.agent.observing.state_disk import state_fault_warning
from moe2.common.energy import Scope
from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning
from moe2.common.link.reports import HostFacts, SensorReport
from moe2.common.placement import GpuFault
from moe2.common.statefile import write_fault
from moe2.common.terminal.figures import printable_lines
from moe2.common.terminal.output import say_json, tell
from moe2.common.terminal.screen import table_console

_STYLE = {
    ProbeState.PRESENT: "green",
    ProbeState.ABSENT: "dim",
    ProbeState.DENIED: "yellow",
    ProbeState.BROKEN: "red",
}
_GOOD = (ProbeState.PRESENT, ProbeState.ABSENT)
_HANGS = "Check the kernel log for its driver."
_AS_SERVICE = "MOE2_DOCTOR_AS_SERVICE"
"""Set for the doctor that runs with the unit's rights."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What the doctor found.

    sampled: the sensors that the agent would use. gpu, engine, gpu_fault: the GPU, llama.cpp's view of it, and why it
    cannot be used. gpu_usable: None where the host has none. state_fault: why the agent's state cannot be written; None
    where it can, or where nobody knows. user: whose rights it was probed with. as_service: with
    those of the installed unit. healthy: nothing was refused or broken.
    """

    host: HostFacts
    sensors: tuple[SensorReport, ...]
    sampled: tuple[str, ...]
    gpu: HostGpu
    engine: EngineTrial | None
    gpu_fault: GpuFault | None
    gpu_usable: bool | None
    state_fault: HealthWarning | None = None
    user: str
    as_service: bool
    healthy: bool


def diagnose(settings: SensorSettings, *, as_service: bool = False, state_dir: Path | None = None) -> Diagnosis:
    """Probe everything with this process's rights. Blocking, bounded by the settings' deadline and the driver's.

    as_service: this process has the unit's rights. state_dir: where the agent keeps its state, if that is known.
    """
    state_fault = None if state_dir is None else _state_fault(state_dir, as_service=as_service)
    results = discover(settings)
    chosen = choose(results)
    gpu, engine, fault = _examine_gpu(settings.root)
    try:
        reports = _reports(results, chosen, DeviceLocks(settings.root, "doctor"))
        states = {report.name: report.state for report in reports}
        chosen_names = [sensor.name for sensor in chosen]
        return Diagnosis(
            host=_host(settings),
            sensors=reports,
            sampled=tuple(name for name in chosen_names if states[name] == ProbeState.PRESENT),
            gpu=gpu,
            engine=engine,
            gpu_fault=fault,
            gpu_usable=None if gpu.kind is None else fault is None,
            state_fault=state_fault,
            user=_user(),
            as_service=as_service,
            healthy=fault is None and state_fault is None and all(state in _GOOD for state in states.values()),
        )
    finally:
        for sensor in chosen:
            with suppress(TimeoutError):
                within(sensor.close, settings.deadline_s)


def _state_fault(folder: Path, *, as_service: bool) -> HealthWarning | None:
    """Return why the agent cannot write its state. What another user may not, or is not there yet, says nothing."""
    fault = write_fault(folder)
    if fault is None or (isinstance(fault, PermissionError | FileNotFoundError) and not as_service):
        return None
    return state_fault_warning(folder, fault)


def _host(settings: SensorSettings) -> HostFacts:
    """Return what this host is; without its boards' names where their driver hangs."""
    facts = partial(detect_host, settings.root, simulated=settings.simulated)
    try:
        return within(facts, settings.deadline_s)
    except TimeoutError:
        return facts(ask_driver=False)


def run_doctor(
    settings: SensorSettings,
    *,
    as_json: bool,
    own_rights: bool = False,
    config: Path | None = None,
    state_dir: Path | None = None,
    console: Console | None = None,
) -> int:
    """Print the diagnosis; 0 if energy can be measured, a GPU used and nothing is wrong, otherwise 1.

    Root asks as the installed service would, with its `config` where another one is given. own_rights: ask with this
    process's rights whoever it is. state_dir: where the agent keeps its state, if that is known.
    """
    found = _diagnosis(settings, own_rights=own_rights, config=config, state_dir=state_dir)
    console = console or table_console()
    if as_json:
        say_json(found, file=console.file, indent=2)
    else:
        _print(found, console)
    return 0 if found.healthy and found.sampled else 1


def _diagnosis(settings: SensorSettings, *, own_rights: bool, config: Path | None, state_dir: Path | None) -> Diagnosis:
    if own_rights or os.geteuid() != 0 or settings.root != Path("/"):
        return diagnose(settings, as_service=os.environ.get(_AS_SERVICE) == "1", state_dir=state_dir)
    try:
        options = () if config is None else ("--config", str(config.absolute()))
        told = run_as_service(("doctor", "--own-rights", "--json", *options), variables={_AS_SERVICE: "1"})
        return msgspec.json.decode(told, type=Diagnosis)
    except (NoServiceError, msgspec.MsgspecError) as error:
        tell(f"This is what root may do, not what the agent may: it cannot be asked as its service: {error}")
        return diagnose(settings, state_dir=state_dir)


def _examine_gpu(root: Path) -> tuple[HostGpu, EngineTrial | None, GpuFault | None]:
    """Returns the GPU below `root`; where that is this host's own, the driver and llama.cpp are asked as well."""
    gpu = look(root, ask=False)
    if gpu.kind is None:
        return gpu, None, None
    if root != Path("/"):
        return gpu, None, gpu_fault(gpu, backends=None)
    gpu, engine = look(root), try_engine()
    fault = gpu_fault(gpu, backends=engine.backends, engine_said="" if engine.offloads else engine.said)
    return gpu, engine, fault


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _reports(results: Sequence[ProbeResult], chosen: Sequence[Sensor], locks: DeviceLocks) -> tuple[SensorReport, ...]:
    """Returns all sensors with what they read now; a plug tells how much of its watts the others see."""
    reports = {result.name: _with_power(result, locks) for result in results if result.sensor in chosen}
    is_wall = {sensor.name: sensor.facts.scope is Scope.WALL for sensor in chosen}
    inside_w = [report.power_w for name, report in reports.items() if not is_wall[name]]
    if inside_w and None not in inside_w:
        seen_w = sum(power_w or 0.0 for power_w in inside_w)
        for name, report in reports.items():
            if is_wall[name] and report.power_w:
                share = f"{report.detail}; the other sensors see {seen_w:.1f} W of it ({seen_w / report.power_w:.0%})"
                reports[name] = msgspec.structs.replace(report, detail=share)
    return tuple(reports.get(result.name) or result.report() for result in results)


def _with_power(result: ProbeResult, locks: DeviceLocks) -> SensorReport:
    report = result.report()
    if result.sensor is None:
        return report
    facts = result.sensor.facts
    try:
        power_w = within(result.sensor.read, facts.deadline_s).power_w
    except TimeoutError:
        late = f"it has not answered for {facts.deadline_s:.0f} s."
        return msgspec.structs.replace(report, state=ProbeState.BROKEN, detail=late, remedy=_HANGS)
    except Exception as error:
        remedy = error.remedy if isinstance(error, Moe2Error) else None
        return msgspec.structs.replace(report, state=ProbeState.BROKEN, detail=str(error), remedy=remedy)
    if power_w is not None and not facts.limits.min_power_w <= power_w <= facts.limits.max_power_w:
        lie = f"it reads {power_w:.6g} W, which such a device cannot draw; the agent would not believe it."
        return msgspec.structs.replace(report, state=ProbeState.BROKEN, detail=lie)
    owner = locks.owner(facts.hardware or facts.device)
    told = report.detail if owner is None else f"{report.detail}; measured by {owner}"
    return msgspec.structs.replace(report, power_w=power_w, detail=told)


def _print(found: Diagnosis, console: Console) -> None:
    host = found.host
    facts = [host.board, host.accelerator, host.cpu_model, host.power_mode and f"power mode {host.power_mode}"]
    console.print(_line((host.hostname, "bold"), "  " + ", ".join(fact for fact in facts if fact)))
    whose = "the rights of the service" if found.as_service else "its own rights"
    console.print(_line((f"Probed as {found.user}, with {whose}.", "dim")))
    _print_gpu(found, console)
    if found.state_fault is not None:
        console.print(_line(("State", "bold"), " ", ("not written", "red"), f": {found.state_fault.message}"))
        console.print(_line(("State", "bold"), f": {found.state_fault.remedy}"))
    table = Table(box=None, pad_edge=False)
    for heading in ("SENSOR", "STATE", "POWER", "FOUND"):
        table.add_column(heading, overflow="fold")
    for sensor in found.sensors:
        state = _line((sensor.state, _STYLE[ProbeState(sensor.state)]))
        power = "" if sensor.power_w is None else f"{sensor.power_w:.1f} W"
        table.add_row(_line(sensor.name), state, power, _line(sensor.detail or ""))
    console.print(table)
    for sensor in found.sensors:
        if sensor.remedy and (sensor.state != ProbeState.ABSENT or not found.sampled):
            console.print(_line((sensor.name, "bold"), f": {sensor.remedy}"))
    if found.sampled:
        console.print(_line(f"Energy is measured with {', '.join(found.sampled)}."))
    else:
        console.print(_line(("Energy cannot be measured on this host: joules are reported as unmeasured.", "yellow")))


def _line(*parts: str | tuple[str, str]) -> Text:
    """Returns one line of texts, some with a style; what a host says of itself begins no line of its own."""
    told = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((" ".join(printable_lines(text).split("\n")), style) for text, style in told))


def _print_gpu(found: Diagnosis, console: Console) -> None:
    if found.gpu.kind is None:
        return
    answer = "" if found.gpu.cuda is None else f": {cuda_text(found.gpu.cuda)}"
    if found.gpu_fault is None:
        console.print(_line(("GPU", "bold"), " ", ("usable", "green"), answer))
        return
    fault = found.gpu_fault
    console.print(_line(("GPU", "bold"), " ", ("not usable", "red"), f" ({fault.cause}): {fault.message}"))
    console.print(_line(("GPU", "bold"), f": {fault.remedy}"))
