"""The web page in a real Chromium, in front of a real coordinator."""

from __future__ import annotations

from pathlib import Path

import pytest
from yarl import URL

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import HostFacts
from moe2.common.status import CoordinatorStatus
from tests.coordinator.receipts import agent_row, status
from tests.fakes.browser import Browser
from tests.fakes.fleet import FAKE_EXPERT, fleet
from tests.scenarios.pages import ANSWERED, ARROW_LEFT, fake_coordinator, visit

pytestmark = pytest.mark.slow


async def test_hosts_show_power_or_that_it_is_unmeasured(tmp_path: Path, browser: Browser) -> None:
    """A simulated host is marked; one without a sensor has no watts, and nothing anywhere says 0 W."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("orin", profile="agx-orin-maxn")
        await running.start_agent("plain")
        await running.until(ready=2)

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelectorAll('.host').length === 2")
            browser.until("document.querySelector('[data-agent=orin] .power .value').innerText.includes('W')")
            assert browser.text("[data-agent=orin] .power .chip") == "simulated"
            assert browser.text("[data-agent=plain] .power .value") == "unmeasured"
            assert "simulated" in browser.text("#tiles")
            assert browser.complaints() == []

        await visit(check)


async def test_average_budgets_show_what_is_wanted_taken_and_paid(tmp_path: Path, browser: Browser) -> None:
    """Each scope has a row with its joules, marked where a host is simulated; a decision tells its price."""
    selection = {"average_energy_j": 1e-3}
    async with fleet(tmp_path, profile="agx-orin-maxn", selection=selection) as running:
        for _ in range(2):
            async with await running.chat("a b c", max_tokens=5) as answer:
                assert answer.status == 200
        await running.quiet()

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelectorAll('#averages tbody tr').length === 1")
            row = browser.text("#averages tbody tr")
            assert row.startswith("fleet")
            assert "1 mJ" in row
            assert "simulated" in row
            assert "points/" in row
            assert browser.complaints() == []

        await visit(check)


async def test_chart_is_read_with_arrow_keys(tmp_path: Path, browser: Browser) -> None:
    """The newest interval tells its joules in words."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:
        async with await running.chat("a b", max_tokens=4) as answer:
            await answer.read()

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelector('rect.joules.simulated') !== null")
            browser.js("document.querySelector('#chart svg').focus()")
            for _ in range(3):
                browser.press(ARROW_LEFT)
                if "J simulated" in browser.text("#chart-readout"):
                    break
            assert "J simulated" in browser.text("#chart-readout")
            assert "1 requests" in str(browser.js("document.querySelector('#chart svg').getAttribute('aria-label')"))

        await visit(check)


@pytest.mark.parametrize("width", [320, 390, 768, 1180])
async def test_nothing_is_cut_off_on_any_width(tmp_path: Path, browser: Browser, width: int) -> None:
    """No sideways scrolling, and the playground works, on phones and tablets alike."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:

        def check() -> None:
            browser.open(running.coordinator.api_url, width=width, height=800)
            browser.until("document.querySelectorAll('.host').length === 1")
            browser.click("#send")
            browser.until(ANSWERED)
            browser.until("document.querySelectorAll('.request').length === 1")
            browser.click(".request > summary")
            browser.until("document.querySelector('.request .decision') !== null")
            assert browser.js("document.documentElement.scrollWidth <= innerWidth")

        await visit(check)


async def test_colours_follow_the_system_and_the_choice(tmp_path: Path, browser: Browser) -> None:
    """Dark where the system is dark; a choice overrides it and outlives a reload."""
    ground = "getComputedStyle(document.body).backgroundColor"
    async with fleet(tmp_path) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url, dark=False)
            light = browser.js(ground)
            browser.open(running.coordinator.api_url, dark=True)
            dark = browser.js(ground)
            assert light != dark
            browser.js("document.querySelector('#theme').value = 'light'")
            browser.js("document.querySelector('#theme').dispatchEvent(new Event('change'))")
            assert browser.js(ground) == light
            browser.open(running.coordinator.api_url, dark=True)
            assert browser.js(ground) == light

        await visit(check)


@pytest.mark.parametrize("dark", [False, True])
async def test_text_can_be_read_in_both_colours(tmp_path: Path, browser: Browser, dark: bool) -> None:
    """Ink, muted text and marks reach the contrast of 4.5 that WCAG 2.2 asks for (1.4.3)."""
    ratio = """
      ((a, b) => {
        const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const paint = document.createElement('canvas').getContext('2d');
        const light = (name) => {
          paint.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
          paint.fillRect(0, 0, 1, 1);
          const [r, g, b] = paint.getImageData(0, 0, 1, 1).data;
          return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        };
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
      })
    """
    pairs = [
        (ink, ground)
        for ink in ("--ink", "--muted", "--bad", "--watt")
        for ground in ("--panel", "--ground", "--sunken")
    ] + [("--sim", "--sim-soft"), ("--warn", "--warn-soft"), ("--bad", "--bad-soft"), ("--panel", "--ok")]
    async with fleet(tmp_path, agents=()) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url, dark=dark)
            found = {pair: browser.js(f"{ratio}('{pair[0]}', '{pair[1]}')") for pair in pairs}
            assert {pair: value for pair, value in found.items() if float(str(value)) < 4.5} == {}

        await visit(check)


async def test_warnings_come_with_their_remedy(tmp_path: Path, browser: Browser) -> None:
    """A model that cannot be loaded is on top of the page, with what to do."""
    async with fleet(tmp_path, agents=()) as running:
        missing = [{"name": "fake", "path": tmp_path / "nowhere.gguf"}]
        await running.start_agent("one", models=missing)

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelector('#warnings').innerText.includes('model_failed')")
            assert "nowhere.gguf" in browser.text(".warning.degraded ~ .warning.degraded")
            assert "Correct the model's path" in browser.text("#warnings")
            assert browser.text(".expert .chip.failed") == "failed"

        await visit(check)


async def test_a_model_that_fell_back_to_the_processor_is_named(tmp_path: Path, browser: Browser) -> None:
    """On top with cause and remedy, and beside the model the device that holds it."""
    async with fleet(tmp_path, agents=()) as running:
        await running.start_agent("one", engine_argv=(*FAKE_EXPERT, "--gpu-is-barred"))

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelector('#warnings').innerText.includes('gpu_unused')")
            degraded = browser.text("#warnings")
            assert "no_permission" in degraded
            assert "Its group is video: join it." in degraded
            assert "on CPU" in browser.text(".expert .note")

        await visit(check)


async def test_a_lost_coordinator_is_said_and_found_again(tmp_path: Path, browser: Browser) -> None:
    """The page says that it reconnects, and is live again by itself when the coordinator is back."""
    async with fake_coordinator() as (url, _):
        await visit(lambda: browser.open(url))
    await visit(lambda: browser.until("document.querySelector('#live').innerText === 'Reconnecting'"))
    async with fake_coordinator(port=URL(url).port):
        await visit(lambda: browser.until("document.querySelector('#live').innerText === 'Live'"))


def large_status(n_hosts: int) -> CoordinatorStatus:
    """A fleet of which every tenth host is lost, each with a warning, and every fifth an Orin board."""
    board = HostFacts(hostname="h", system="Linux", architecture="aarch64", board="Jetson AGX Orin")
    rows = tuple(
        agent_row(
            agent_id=f"id-{number:04d}",
            agent_name=f"host-{number:04d}",
            connected=number % 10 != 9,
            **({"host": board} if number % 5 == 0 else {}),
        )
        for number in range(n_hosts)
    )
    lost = tuple(
        HealthWarning(
            code="agent_disconnected", severity=Severity.DEGRADED, message=f"{row.agent_name} is gone.", remedy="Look."
        )
        for row in rows
        if not row.connected
    )
    return status(*rows, warnings=lost)


@pytest.mark.parametrize("width", [390, 1440])
async def test_a_thousand_hosts_are_found_and_turned_through(browser: Browser, width: int) -> None:
    """A page of them is drawn at a time, with the numbers of all; hosts are found by board and by state."""

    async with fake_coordinator(fleet_status=large_status(1000)) as (url, _):

        def shown() -> str:
            return "[...document.querySelectorAll('.host')].map((host) => host.dataset.agent).join()"

        def check() -> None:
            browser.open(url, width=width)
            browser.until("document.querySelectorAll('.host').length === 48")
            assert browser.text("#fleet-note") == "1 to 48 of 1,000 hosts"
            assert "900 of 1,000 hosts connected" in browser.text("#tiles")
            assert browser.js("document.querySelectorAll('#warnings > .warning').length") == 5
            assert "and 36 more" in browser.text("#warnings")
            browser.click("#hosts-after")
            browser.until(f"{shown()}.startsWith('host-0048,')")
            assert browser.text("#fleet-note") == "49 to 96 of 1,000 hosts"
            browser.type("#find-text", "agx")
            browser.until(f"{shown()}.startsWith('host-0000,host-0005,')")
            assert browser.text("#fleet-note") == "1 to 48 of 200 found of 1,000 hosts"
            browser.click("#find-state")
            browser.click("#find-state option[value=disconnected]")
            browser.until("document.querySelector('#fleet-note').innerText.includes(' found')")
            browser.type("#find-text", "host-0009")
            browser.until(f"{shown()} === 'host-0009'")
            browser.type("#find-text", "nobody is called so")
            browser.until("document.querySelectorAll('.host').length === 0")
            assert browser.text("#hosts") == "There is no host like the one that was searched for."
            assert browser.js("document.documentElement.scrollWidth <= innerWidth") is True
            assert browser.complaints() == []

        await visit(check)
