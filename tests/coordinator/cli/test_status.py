"""The command `moe2-coordinator status`: the fleet, drawn and plain, and the exit codes."""

from __future__ import annotations

import argparse
import asyncio
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from msgspec.structs import replace
from rich.console import Console

from moe2.common import localsocket
from moe2.common.cost import EnergyProfile, Spread
from moe2.common.energy import Quality
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import HostFacts, Performance, SensorReport
from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import AgentRow, AverageRow, CoordinatorStatus, PairStatus, ProvisioningStatus
from moe2.coordinator.cli import status as cli_status
from moe2.coordinator.cli.fleet import told
from moe2.coordinator.observing.fleet_view import FleetQuery, page_of
from tests.common.samples import SMALL_EXPERT
from tests.coordinator import receipts

NO_AGENTS = HealthWarning(
    code="no_agents", severity=Severity.DEGRADED, message="No agent is connected.", remedy="Start an agent."
)


def row(name: str, *, connected: bool = True, **fields: Any) -> AgentRow:
    host = HostFacts(hostname=name, system="Linux", architecture="aarch64", board="Orin NX", power_mode="25W")
    known = {"version": "1.2.3", "report_age_s": 1.2, "host": host, "experts": (SMALL_EXPERT,), "sensors": (), **fields}
    rtt_s = 0.0004 if connected else None
    return receipts.agent_row(agent_id=f"agent-{name}", agent_name=name, connected=connected, rtt_s=rtt_s, **known)


def status(*agents: AgentRow, warnings: tuple[HealthWarning, ...] = ()) -> CoordinatorStatus:
    return receipts.status(
        *agents,
        version="1.2.3",
        pid=7,
        uptime_s=93_784.0,
        epoch=12,
        api_url="http://127.0.0.1:8080",
        agents_url="ws://127.0.0.1:8081",
        requests_active=2,
        requests_finished=1000,
        requests_failed=1,
        requests_cancelled=4,
        warnings=warnings,
    )


def drawn(value: CoordinatorStatus, *, width: int = 120) -> str:
    """Returns a picture as text, with one blank between words."""
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(cli_status.picture(value, 0.0))
    return " ".join(console.export_text().split())


def test_every_expert_has_a_row() -> None:
    """Each expert of each agent is shown with its figures; no sensor means unmeasured."""
    text = drawn(status(row("one"), row("two")))
    for name in ("one", "two"):
        assert f"small-q4 {name} ● ready 2/4 1/32 41.7 21.4 ms unmeasured" in text


def test_a_lost_agents_experts_are_not_shown_as_ready() -> None:
    """Experts of a lost agent are not shown as ready, although its last report says so."""
    text = drawn(status(row("gone", connected=False)))
    assert "gone ● down – 1 s ago" in text
    assert "● ready" not in text
    assert "0 of 1 connected" in text


def test_a_draining_agent_is_marked() -> None:
    """An agent that drains is told from one that takes new work."""
    assert "● draining" in drawn(status(row("one", draining=True)))


def test_watts_are_shown_per_sensor() -> None:
    """Each sensor's watts are shown on their own, without a sum, as scopes overlap."""
    sensors = (
        SensorReport(name="nvml", state="present", power_w=60.0),
        SensorReport(name="rapl", state="present"),
        SensorReport(name="ina3221", state="absent"),
    )
    text = drawn(status(row("one", sensors=sensors)))
    assert "60.0 W" in text
    assert text.index("60.0 W") < text.index("nvml") < text.index("rapl")
    assert "ina3221" not in text


def test_a_warning_is_shown_once_with_its_remedy() -> None:
    """An agent's warning is shown once, although it is also in the coordinator's list."""
    text = drawn(status(row("one", warnings=(NO_AGENTS,)), warnings=(NO_AGENTS,)))
    assert text.count("→ Start an agent.") == 1


def test_warnings_of_one_kind_share_their_remedy() -> None:
    """Twenty hosts without a sensor do not fill the screen with the same advice."""
    both = tuple(msgspec.structs.replace(NO_AGENTS, message=f"{name} sleeps.") for name in ("one", "two"))
    text = drawn(status(warnings=both))
    assert "no_agents" in text
    assert "one sleeps." in text
    assert "two sleeps." in text
    assert text.count("→ Start an agent.") == 1


def test_an_empty_fleet_says_so() -> None:
    """A fleet without agents is a sentence, not an empty table."""
    assert "No agent has registered yet." in drawn(status())


def test_picture_fits_a_terminal_of_80_columns() -> None:
    """No figure is cut off on a terminal of 80 columns."""
    assert "2/4 1/32 41.7 21.4 ms unmeasured" in drawn(status(row("jetson-orin-nx-01")), width=80)


def test_plain_lines_name_the_agent_on_every_line_about_it() -> None:
    """`grep agent=one` finds every plain line about an agent."""
    sensors = (SensorReport(name="nvml", state="present", power_w=60.0),)
    lines = cli_status.lines(status(row("one", sensors=sensors, warnings=(NO_AGENTS,)), warnings=(NO_AGENTS,)), 0.0)
    assert [line.split(" ")[0] for line in lines if "agent=one" in line] == ["sensor", "expert"]
    assert [line.split(" ")[0] for line in lines[:5]] == ["coordinator", "requests", "dispatch", "warning", "agent"]
    assert "j_per_token=unmeasured" in next(line for line in lines if line.startswith("expert"))


FIND = ", --host TEXT, --state and --model find some."


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (FleetQuery(), None),
        (FleetQuery(limit=50), None),
        (
            FleetQuery(limit=2),
            "Hosts 1 to 2 of 4; --offset 2 shows the next, --host TEXT, --state and --model find some.",
        ),
        (FleetQuery(limit=2, offset=2), "Hosts 3 to 4 of 4, --host TEXT, --state and --model find some."),
        (FleetQuery(text="two"), "1 host found of 4."),
        (FleetQuery(text="nobody"), "0 hosts found of 4."),
    ],
)
def test_a_part_of_the_fleet_says_which(query: FleetQuery, said: str | None) -> None:
    """Which hosts are shown is told where not all are, and how to see the others."""
    shown = page_of(status(*map(row, ("four", "one", "three", "two"))), query)
    assert cli_status.shown_part(shown) == said
    assert (said or "") in drawn(shown, width=200)
    assert "of 4 connected" in drawn(shown)


def test_plain_lines_count_the_whole_fleet() -> None:
    """One line has the numbers of all hosts, however many are shown."""
    lines = cli_status.lines(page_of(status(*map(row, ("one", "two"))), FleetQuery(limit=1)), 0.0)
    [counted] = [line for line in lines if line.startswith("fleet ")]
    assert counted == (
        "fleet agents=2 connected=2 asleep=0 experts=2 experts_ready=2 slots=8 slots_active=4 queued=2 matching=2 "
        "shown=1 warnings=0"
    )
    assert sum(line.startswith("agent ") for line in lines) == 1


@pytest.mark.parametrize(
    ("pair", "line", "drawing"),
    [
        (
            PairStatus(name="one", preferred=True, reached=True, unshipped=0, others=("two",)),
            "database name=one preferred=yes reached=yes unshipped=0 others=two",
            "one, preferred · beside two · reached · 0 entries to be shipped",
        ),
        (
            PairStatus(name="one", preferred=False, reached=False, unshipped=7, others=()),
            "database name=one preferred=no reached=no unshipped=7 others=–",
            "one · no other coordinator was seen · not reached · 7 entries to be shipped",
        ),
    ],
)
def test_one_of_a_pair_says_how_it_stands_with_the_others(pair: PairStatus, line: str, drawing: str) -> None:
    """Who the others are, which one is preferred, and what the database lacks; nothing without a shared database."""
    whole = replace(status(row("one")), pair=pair)
    assert line in cli_status.lines(whole, 0.0)
    assert drawing in drawn(whole, width=200)
    alone = replace(whole, pair=None)
    assert not [line for line in cli_status.lines(alone, 0.0) if line.startswith("database ")]
    assert "Database" not in drawn(alone)


def test_a_part_of_the_fleet_says_how_many_others_there_are() -> None:
    """Who sleeps or is wanted beyond those that are shown is counted, not left out."""
    keys = tuple(f"id-{number}/m" for number in range(100))
    asleep = tuple(replace(row(f"host-{number:02d}"), connected=False, asleep=True) for number in range(30))
    slow = ProvisioningStatus(mode="observe", status="optimal", awake=keys, pinned=tuple(f"pin-{n}" for n in range(50)))
    whole = replace(status(*asleep), provisioning=slow)
    shown = page_of(whole, FleetQuery(limit=5))
    said = "\n".join(told(shown))
    assert "Asleep: host-00, host-01, host-02, host-03, host-04 and 25 more." in said
    assert "m on id-19 and 80 more." in said
    assert "pin-19 and 30 more." in said
    assert "Asleep: 30 that are not shown." in told(page_of(whole, FleetQuery(limit=0)))
    [line] = [line for line in cli_status.lines(shown, 0.0) if line.startswith("provisioning ")]
    assert "wanted=100 awake=id-0/m," in line
    assert line.count(",") == 19


def test_a_state_that_there_is_not_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """As one types them."""
    parser = argparse.ArgumentParser()
    cli_status.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--state", "sleepy"])
    assert "(choose from 'connected', 'draining'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], {}),
        (["--host", "orin & co", "--limit", "5"], {"q": "orin & co", "limit": "5"}),
        (["--state", "asleep", "--model", "m", "--offset", "0"], {"state": "asleep", "model": "m", "offset": "0"}),
    ],
)
async def test_what_is_looked_for_is_asked_of_the_coordinator(
    tmp_path: Path, arguments: list[str], asked: dict[str, str]
) -> None:
    """The options are the route's parameters; into a pipe everybody is printed who was not searched for."""
    came: list[dict[str, str]] = []

    async def answer(http: web.Request) -> web.Response:
        came.append(dict(http.query))
        return web.Response(body=msgspec.json.encode(status(row("one"))))

    parser = argparse.ArgumentParser()
    cli_status.add_arguments(parser)
    parsed = parser.parse_args([*arguments, "--socket", str(tmp_path / "c.sock")])
    app = web.Application()
    app.router.add_get(STATUS_ROUTE, answer)
    async with localsocket.serving(app, tmp_path / "c.sock"):
        assert await asyncio.to_thread(cli_status.run, parsed) == 0
    assert came == [asked]


@pytest.mark.parametrize(("warnings", "code"), [((), 0), ((NO_AGENTS,), 1)])
async def test_exit_code_and_json(
    tmp_path: Path, warnings: tuple[HealthWarning, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json prints the status; the exit code is the coordinator's health."""
    value = status(row("one"), warnings=warnings)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(value))

    app = web.Application()
    app.router.add_get(STATUS_ROUTE, answer)
    async with localsocket.serving(app, tmp_path / "c.sock"):
        shown = await asyncio.to_thread(cli_status.show_status, tmp_path / "c.sock", as_json=True, watch=False)
    assert shown == code
    assert msgspec.json.decode(capsys.readouterr().out, type=CoordinatorStatus) == value


def test_a_coordinator_that_is_down_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no coordinator runs, the exit code is 2 and the message says how to start it."""
    assert cli_status.show_status(tmp_path / "c.sock", as_json=False, watch=False) == 2
    assert "moe2-coordinator run --config FILE" in capsys.readouterr().err


def test_simulated_figures_are_marked() -> None:
    """Simulated figures are marked: watts beside the sensor, joules per token below the figure."""
    simulated = msgspec.structs.replace(
        SMALL_EXPERT,
        performance=Performance(j_per_decoded_token=2.17),
        energy=EnergyProfile(
            coefficients=(0.0, 2.17, 0.0, 0.0), spread=Spread(p50=0.0, p95=0.1), quality=Quality.SIMULATED
        ),
    )
    sensor = SensorReport(name="profile:agx-orin-maxn", state="present", power_w=47.6, simulated=True)
    text = drawn(status(row("one", experts=(simulated,), sensors=(sensor,))), width=160)
    assert text.index("47.6 W (simulated)") < text.index("profile:agx-orin-maxn")
    assert "2.17" in text
    assert "simulated" in text.partition("2.17")[2]


def test_on_eighty_columns_a_host_is_told_in_words_not_in_crumbs() -> None:
    """Its board and accelerator stand below its name, and are broken between words."""
    host = HostFacts(
        hostname="vm",
        system="Linux",
        architecture="aarch64",
        board="NVIDIA Jetson AGX Orin 64 GB (simulated)",
        accelerator="NVIDIA Ampere GPU",
    )
    sensor = SensorReport(name="profile:agx-orin-30w", state="present", power_w=8.8, simulated=True)
    text = drawn(status(row("demo-agx-orin-30w", host=host, sensors=(sensor,))), width=80)
    assert "demo-agx-orin-30w" in text
    assert "NVIDIA Jetson AGX" in text


AVERAGES = (
    AverageRow(scope="fleet", average_energy_j=150.0, price_per_j=0.0004, mean_j=151.2, n_answers=1200, simulated=True),
    AverageRow(scope="key \x1b[31mapp", average_energy_j=80.0, price_per_j=0.0, mean_j=None, n_answers=0),
)


def test_average_budgets_are_drawn_with_their_price() -> None:
    """Points per kilojoule, what is wanted and taken; a simulated mean says so, an unknown one is no 0."""
    picture = drawn(msgspec.structs.replace(status(row("orin")), averages=AVERAGES), width=200)
    assert "fleet 150 151.2 (simulated) 40.0 1200 0" in picture
    assert "\x1b" not in picture
    assert "80 – 0 0 0" in picture


def test_average_budgets_are_lines_for_a_pipe() -> None:
    """One line for each scope; without averages there is none."""
    lines = cli_status.lines(msgspec.structs.replace(status(), averages=AVERAGES), 0.0)
    (first, second) = [line for line in lines if line.startswith("average ")]
    assert first.startswith("average scope=fleet average_energy_j=150 mean_j=151 price_per_j=0.0004 answers=1200")
    assert "mean_j=–" in second
    assert not any(line.startswith("average ") for line in cli_status.lines(status(), 0.0))
