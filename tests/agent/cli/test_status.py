"""`moe2-agent status`: what is drawn, what is printed, and the exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import io
import os
import socket as sockets
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from rich.console import Console

from moe2.agent.cli import status as cli_status
from moe2.agent.observing.local_api import local_app
from moe2.agent.observing.metrics import AgentMetrics
from moe2.agent.paths import DEFAULT_SOCKET_PATH
from moe2.common import localclient, localsocket
from moe2.common.energy import unmeasured
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, Performance, SensorReport
from moe2.common.standby import Standby
from moe2.common.status import AgentStatus, LinkState, LinkStatus
from moe2.common.terminal import screen
from tests.common.samples import COST, SMALL_EXPERT, STANDBY

NOW_UNIX_S = 1_000_500.0

READY = msgspec.structs.replace(
    SMALL_EXPERT,
    file_bytes=98_900_000,
    quantization="Q4_1",
    performance=msgspec.structs.replace(SMALL_EXPERT.performance, j_per_decoded_token=0.213),
)
FRESH = ExpertReport(model="fresh", state=ExpertState.LOADING, context_tokens=64, slots=1, load_progress=0.43)
CONNECTED = LinkStatus(
    url="ws://127.0.0.1:8081", state=LinkState.CONNECTED, connected_since_unix_s=1_000_000.0, rtt_s=0.0021, protocol=1
)
WAITING = LinkStatus(
    url="ws://127.0.0.1:8081",
    state=LinkState.WAITING,
    attempts=4,
    next_attempt_in_s=3.2,
    last_error="connection refused",
    last_error_at_unix_s=1_000_400.0,
)
DEGRADED = HealthWarning(
    code="coordinator_unreachable", severity=Severity.DEGRADED, message="No link.", remedy="Check the firewall."
)
NOTICE = HealthWarning(
    code="energy_unmeasured", severity=Severity.NOTICE, message="No sensor.", remedy="Run the doctor."
)


def status(
    *,
    link: LinkStatus = CONNECTED,
    experts: tuple[ExpertReport, ...] = (READY,),
    sensors: tuple[SensorReport, ...] = (),
    warnings: tuple[HealthWarning, ...] = (),
    name: str = "jetson-01",
    draining: bool = False,
) -> AgentStatus:
    return AgentStatus(
        agent_id="agent-0f",
        agent_name=name,
        version="1.2.3",
        pid=812,
        uptime_s=8000.0,
        draining=draining,
        host=HostFacts(hostname="jetson-01", system="Linux 5.15", architecture="aarch64", power_mode="MODE_30W"),
        sensors=sensors,
        experts=experts,
        link=link,
        jobs_finished=3,
        jobs_failed=0,
        warnings=warnings,
    )


def drawn(value: AgentStatus, *, width: int = 120) -> str:
    """The picture as text, one blank between words."""
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(cli_status.picture(value, NOW_UNIX_S))
    return " ".join(console.export_text().split())


def plain(value: AgentStatus) -> dict[str, str]:
    """The plain lines by their first word."""
    return {line.partition(" ")[0]: line for line in cli_status.lines(value, NOW_UNIX_S)}


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_picture_shows_the_models_figures() -> None:
    """Slots, queue, speed, time to first token and energy of a model stand in one row."""
    assert "small-q4 ● ready 2/4 1/32 41.7 21.4 ms 0.213" in drawn(status())


def test_picture_shows_unknown_figures_as_unknown() -> None:
    """A model that served nothing has no speed, and no 0 J per token."""
    text = drawn(status(experts=(FRESH,)))
    assert "fresh ● loading 0/1 0/0 – – unmeasured" in text
    assert "43%" in text


def test_picture_says_that_figures_rest_on_the_warm_up_only() -> None:
    """A speed that no request has confirmed is marked."""
    warm = msgspec.structs.replace(READY, performance=Performance(decode_tokens_per_s=11.0))
    assert "warm-up" in drawn(status(experts=(warm,)))
    assert "warm-up" not in drawn(status())


def test_picture_of_a_live_link() -> None:
    """A connected agent shows since when and how far away its coordinator is."""
    text = drawn(status())
    assert "● connected" in text
    assert "for 8 min 20 s" in text
    assert "2.10 ms" in text


def test_picture_of_a_broken_link() -> None:
    """A disconnected agent shows the last error, its age and the next attempt."""
    text = drawn(status(link=WAITING))
    assert "Next attempt in 3.20 s" in text
    assert "connection refused (1 min 40 s ago)" in text


def test_picture_shows_every_sensor() -> None:
    """A sensor that can be read shows watts, one that cannot shows its remedy."""
    sensors = (
        SensorReport(name="ina3221", state="present", power_w=12.31, detail="VDD_IN"),
        SensorReport(name="rapl", state="denied", remedy="Join the group rapl."),
    )
    text = drawn(status(sensors=sensors))
    assert "ina3221 present 12.3 W VDD_IN" in text
    assert "rapl denied – Join the group rapl." in text


def test_picture_without_a_sensor_says_unmeasured() -> None:
    """A host without sensors does not look like one that uses no energy."""
    assert "joules are unmeasured on this host" in drawn(status())


def test_picture_shows_warnings_with_their_remedy() -> None:
    """Every warning tells what to do."""
    text = drawn(status(warnings=(DEGRADED,)))
    assert "● degraded" in text
    assert "coordinator_unreachable No link." in text
    assert "→ Check the firewall." in text


def test_picture_marks_draining() -> None:
    """An agent that is shutting down says so."""
    assert "draining" in drawn(status(draining=True))
    assert "draining" not in drawn(status())


def test_picture_fits_a_terminal_of_80_columns() -> None:
    """No figure is cut off on a small terminal."""
    text = drawn(status(experts=(READY, FRESH)), width=80)
    assert "41.7 21.4 ms 0.213" in text
    assert "unmeasured" in text


def test_names_cannot_drive_the_terminal() -> None:
    """Neither escape sequences nor rich's markup in a name have an effect."""
    text = drawn(status(name="\x1b[2J[red]x[/red]"))
    assert "\ufffd[2J[red]x[/red]" in text


def test_plain_lines_name_the_links_to_all_coordinators() -> None:
    """An agent with two coordinators has a line for each link, also where one of them is down."""
    both = tuple(msgspec.structs.replace(WAITING, url=url) for url in ("ws://one:8081", "ws://two:8081"))
    told = cli_status.lines(msgspec.structs.replace(status(link=both[0]), links=both), NOW_UNIX_S)
    urls = [line.split("url=")[1].split(" ")[0] for line in told if line.startswith("link ")]
    assert urls == ["ws://one:8081", "ws://two:8081"]


def test_plain_lines_hold_one_fact_each() -> None:
    """A pipe gets words and key=value pairs, with units in the names."""
    lines = plain(status(link=WAITING, warnings=(DEGRADED,)))
    assert 'last_error="connection refused"' in lines["link"]
    assert "next_attempt_in_s=3.20" in lines["link"]
    assert "connected_s=–" in lines["link"]
    assert "tokens_per_s=41.7 ttft_s=0.0214 j_per_token=0.213" in lines["model"]
    assert "health=degraded" in lines["agent"]
    assert "power_mode=MODE_30W" in lines["host"]
    assert 'remedy="Check the firewall."' in lines["warning"]


def test_plain_lines_keep_unknown_apart_from_zero() -> None:
    """No figure, no number."""
    assert "tokens_per_s=– ttft_s=– j_per_token=unmeasured" in plain(status(experts=(FRESH,)))["model"]


# --- Asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@contextlib.asynccontextmanager
async def daemon(socket: Path, value: Callable[[], AgentStatus]) -> AsyncIterator[None]:
    metrics = AgentMetrics(value, lambda: unmeasured("no sensor"))
    async with localsocket.serving(local_app(value, metrics), socket):
        yield


async def asked(socket: Path, *, as_json: bool = False) -> int:
    return await asyncio.to_thread(cli_status.show_status, socket, as_json=as_json, watch=False)


@pytest.mark.parametrize(("warnings", "code"), [((), 0), ((NOTICE,), 0), ((NOTICE, DEGRADED), 1)])
async def test_exit_code_is_the_health(socket: Path, warnings: tuple[HealthWarning, ...], code: int) -> None:
    """0 for healthy, also with mere notices; 1 for degraded."""
    async with daemon(socket, lambda: status(warnings=warnings)):
        assert await asked(socket) == code


async def test_json_is_the_snapshot(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the daemon's own document, which decodes to the same status."""
    async with daemon(socket, status):
        assert await asked(socket, as_json=True) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=AgentStatus) == status()


async def test_a_pipe_gets_no_boxes_and_no_colour(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Output that is not a terminal is plain, however long its lines are."""
    async with daemon(socket, lambda: status(name="n" * 200)):
        await asked(socket)
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert not set("╭│─●") & set(output)
    assert [line.split(" ")[0] for line in output.splitlines()] == ["agent", "host", "link", "model", "standby"]


@pytest.mark.slow
async def test_a_reader_that_leaves_is_no_error(socket: Path) -> None:
    """`moe2-agent status | head -1` ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    async with daemon(socket, status):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moe2.agent", "status", "--socket", socket),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        _, errors = await process.communicate()
    assert errors == b""


def test_a_daemon_that_is_down_names_the_command_that_starts_it(
    socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody at the socket: exit code 2, and how to start it."""
    assert cli_status.show_status(socket, as_json=False, watch=False) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "moe2-agent run --config FILE" in captured.err


def test_a_stale_socket_file_is_not_running(socket: Path) -> None:
    """A file that a dead daemon left behind counts as not running."""
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(socket))
    assert cli_status.show_status(socket, as_json=True, watch=False) == 2


def test_the_unit_is_started_where_there_is_one(tmp_path: Path) -> None:
    """With systemd's unit installed, the command is systemctl's."""
    view = cli_status.VIEW
    assert screen.start_command(view, DEFAULT_SOCKET_PATH, [tmp_path]) == (
        "moe2-agent run --config /etc/moe2/agent.toml"
    )
    (tmp_path / "moe2-agent.service").touch()
    assert screen.start_command(view, DEFAULT_SOCKET_PATH, [tmp_path]) == "systemctl start moe2-agent"
    assert screen.start_command(view, tmp_path / "other", [tmp_path]) == "moe2-agent run --config FILE"


def test_no_permission_names_the_group_to_join(
    socket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user outside the socket's group learns which group that is."""
    with sockets.socket(sockets.AF_UNIX) as server:
        server.bind(str(socket))
    socket.chmod(0o660)
    group = next(entry for entry in grp.getgrall() if entry.gr_gid)
    facts = os.stat_result((0o140660, 0, 0, 0, 0, group.gr_gid, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _self: facts)

    def refused(*_: object) -> bytes:
        raise PermissionError

    monkeypatch.setattr(localclient, "fetch", refused)
    assert cli_status.show_status(socket, as_json=False, watch=False) == 2
    assert f"sudo usermod -aG {group.gr_name} $USER" in capsys.readouterr().err


async def test_a_daemon_of_another_release_is_named_as_such(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that does not fit the type is an error that tells what to do, not a traceback."""

    async def other(_: web.Request) -> web.Response:
        return web.json_response({"agent_id": 7})

    app = web.Application()
    app.router.add_get(localclient.STATUS_ROUTE, other)
    async with localsocket.serving(app, socket):
        assert await asked(socket) == 1
    assert "Restart the daemon after an upgrade" in capsys.readouterr().err


async def test_a_narrow_terminal_loses_nothing(socket: Path) -> None:
    """At 40 columns a table would leave out the model's name: the plain facts are shown instead."""
    console = Console(width=40, file=io.StringIO(), force_terminal=True)
    async with daemon(socket, status):
        await asyncio.to_thread(screen.show, cli_status.VIEW, socket, as_json=False, watch=False, console=console)
    assert isinstance(console.file, io.StringIO)
    shown = "".join(console.file.getvalue().split())
    for fact in ("name=small-q4", "state=ready", "power_mode="):
        assert fact in shown


# --- Watching ---------------------------------------------------------------------------------------------------------


async def test_watch_redraws_until_ctrl_c_and_survives_a_restart(socket: Path) -> None:
    """A watched daemon that goes away is shown as down; the exit code is that of the last look."""
    console = Console(width=120, file=io.StringIO(), force_terminal=True)
    looks: list[str] = []

    def pause(_s: float) -> None:
        assert isinstance(console.file, io.StringIO)
        looks.append(console.file.getvalue())
        console.file.truncate(0)
        console.file.seek(0)
        if len(looks) == 2:
            asyncio.run_coroutine_threadsafe(leave(), loop).result()
        if len(looks) == 3:
            raise KeyboardInterrupt

    async def leave() -> None:
        await served.aclose()

    loop = asyncio.get_running_loop()
    served = contextlib.AsyncExitStack()
    await served.enter_async_context(daemon(socket, status))
    code = await asyncio.to_thread(
        screen.show, cli_status.VIEW, socket, as_json=False, watch=True, console=console, pause=pause
    )
    assert code == 2
    assert ["small-q4" in look for look in looks] == [True, True, False]
    assert "is not running" in looks[2]


async def test_watch_into_a_pipe_prints_again_and_again(socket: Path) -> None:
    """Two looks into a pipe are two plain blocks."""
    console = Console(file=io.StringIO(), force_terminal=False)
    left = iter([True, False])

    def pause(_s: float) -> None:
        if not next(left):
            raise KeyboardInterrupt

    async with daemon(socket, status):
        code = await asyncio.to_thread(
            screen.show, cli_status.VIEW, socket, as_json=False, watch=True, console=console, pause=pause
        )
    assert code == 0
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("agent name=jetson-01") == 2


def test_a_simulated_sensor_is_marked() -> None:
    """Drawn and plain; a real one is not."""
    sensors = (
        SensorReport(name="profile:rtx-4090", state="present", power_w=275.0, simulated=True),
        SensorReport(name="rapl", state="present", power_w=30.0),
    )
    text = drawn(status(sensors=sensors), width=160)
    assert "275 W (simulated)" in text
    assert "30.0 W (simulated)" not in text
    lines = cli_status.lines(status(sensors=sensors), NOW_UNIX_S)
    marks = [line.partition("simulated=")[2].split()[0] for line in lines if line.startswith("sensor ")]
    assert marks == ["yes", "no"]


# --- Waiting ----------------------------------------------------------------------------------------------------------


def waiting(standby: Standby | None) -> AgentStatus:
    loaded = msgspec.structs.replace(READY, load_cost=COST)
    return msgspec.structs.replace(status(experts=(loaded,)), standby=standby)


def test_what_waiting_costs_and_what_is_allowed_are_shown() -> None:
    """Watts of each state, what changes take, joules of no request by cause."""
    text = drawn(waiting(STANDBY))
    assert "unload and suspend" in text
    assert "logind says no" in text
    assert "1500 J idle" in text
    assert "±0.5 W" in text
    assert "load small-q4" in text


def test_in_a_pipe_waiting_is_one_fact_a_line() -> None:
    """For grep; a state has the models in memory, or is asleep."""
    lines = cli_status.lines(waiting(STANDBY), NOW_UNIX_S)
    assert next(line for line in lines if line.startswith("standby ")).startswith(
        "standby allow_unload=yes allow_suspend=yes"
    )
    states = [line.split()[1] for line in lines if line.startswith("idle ")]
    assert states == ["state=smollm2", "state=asleep"]
    [load, _, _] = [line for line in lines if line.startswith("change ")]
    assert load.startswith("change what=load model=small-q4 duration_s=4.50 energy_j=180 n=3")


def test_an_unmeasured_host_says_so() -> None:
    """Not 0 W."""
    text = drawn(waiting(None))
    assert "The watts of waiting are unmeasured yet." in text
    assert "neither unloading nor suspending" in text
