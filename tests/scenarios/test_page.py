"""The web page in a real Chromium, in front of a real coordinator."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import HostFacts, SensorReport
from moe2.common.status import ChangeRow, CoordinatorStatus, ProvisioningStatus
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.events import EventsRoute
from moe2.coordinator.http.routes.page import PageRoute
from moe2.coordinator.keys.keys import Scope
from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.observing.history import EndedRequest, RecentPast
from moe2.coordinator.serving.collaboration import Collaboration, MemberShare
from tests.coordinator.keys.keys import add_key, revoke
from tests.coordinator.receipts import agent_row, line, receipt, status
from tests.fakes.browser import Browser, chromium
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, fleet
from tests.fakes.hub import FakeHub, serving
from tests.gguf import write_gguf
from tests.scenarios.test_supply import TAKES, stock, stocked

pytestmark = pytest.mark.slow

CONTROL = "\ue009"
ENTER = "\ue007"
TAB = "\ue004"
ARROW_LEFT = "\ue012"
ANSWERED = "document.querySelector('#answer .receipt') !== null"
PLAN = {
    "chosen": "id-1/tiny",
    "prompt_tokens": 12,
    "answer_tokens": 128,
    "decision": {
        "mode": "route",
        "category": "default",
        "kind": None,
        "budgets": {"energy_budget_j": 20.0},
        "experts": [
            {"expert": "id-1/tiny", "agent": "orin", "model": "tiny", "score": 0.7, "score_source": "gate",
             "energy_j": {"p50": 10.0, "p95": 12.5}, "energy_quality": "simulated", "ttft_s": None,
             "total_s": {"p50": 1.0, "p95": 1.5}, "candidate": True, "chosen": True, "reason": None},
            {"expert": "id-2/big", "agent": "desk", "model": "big", "score": 0.9, "score_source": "prior",
             "energy_j": None, "energy_quality": None, "ttft_s": None, "total_s": None, "candidate": False,
             "chosen": False, "reason": "needs more energy than the budget"},
        ],
        "certificate": {"method": "branch", "status": "optimal", "value": 0.7, "upper_bound": 0.7, "gap": 0.0,
                        "nodes": 3, "elapsed_s": 0.0004},
    },
    "refusal": None,
    "offers": None,
    "frontier": [{"energy_budget_j": 12.5, "value": 0.7, "experts": ["id-1/tiny"]},
                 {"energy_budget_j": 40.0, "value": 0.9, "experts": ["id-1/tiny", "id-2/big"]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


async def visit(check: Callable[[], None]) -> None:
    """Run what a person does, while the fleet goes on in this thread's loop."""
    await asyncio.to_thread(check)


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


async def test_a_prompt_is_answered_with_its_receipt(tmp_path: Path, browser: Browser) -> None:
    """Type, click, read: the text, the decision, predicted against measured; the console stays silent."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.type("#prompt", "alpha beta")
            browser.type("#max-tokens", "4")
            browser.click("#send")
            browser.until(ANSWERED)
            assert browser.text("#answer-text").strip() == "alpha beta alpha beta"
            receipt = browser.text("#answer-receipt")
            assert "fake on one was chosen among 1 candidate of 1." in receipt
            assert "p95" in receipt
            assert "simulated" in receipt
            assert browser.complaints() == []

        await visit(check)


async def test_a_receipt_tells_what_guesses_brought(tmp_path: Path, browser: Browser) -> None:
    """Four tokens, of which two were guessed right, are two a step; without guesses there is no such line."""
    async with fleet(tmp_path, engine_argv=(*FAKE_EXPERT, "--guesses")) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.type("#max-tokens", "4")
            browser.click("#send")
            browser.until(ANSWERED)
            receipt = " ".join(browser.text("#answer-receipt").split())
            assert "Tokens a step 2 (2 of 4 guesses right)" in receipt

        await visit(check)
    plain = tmp_path / "plain"
    plain.mkdir()
    async with fleet(plain) as running:

        def check_plain() -> None:
            browser.open(running.coordinator.api_url)
            browser.click("#send")
            browser.until(ANSWERED)
            assert "Tokens a step" not in browser.text("#answer-receipt")

        await visit(check_plain)


async def test_unmeasured_energy_is_named_in_receipt_and_list(tmp_path: Path, browser: Browser) -> None:
    """No joules are invented where there is no sensor."""
    async with fleet(tmp_path) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.click("#send")
            browser.until(ANSWERED)
            browser.until("document.querySelectorAll('.request').length === 1")
            assert browser.text(".request [data-name=energy]") == "unmeasured"
            assert "no power sensor" in browser.text("#answer-receipt")
            assert "0 J" not in browser.text("#answer-receipt")

        await visit(check)


async def test_keyboard_alone_sends_and_opens_a_request(tmp_path: Path, browser: Browser) -> None:
    """Ctrl+Enter in the prompt sends; Enter on a request shows its decision; every control can be reached by Tab."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.js("document.querySelector('#prompt').focus()")
            browser.press(CONTROL, ENTER)
            browser.until("document.querySelectorAll('.request').length === 1")
            browser.js("document.querySelector('#pause').focus()")
            while browser.js("document.activeElement.tagName") != "SUMMARY":
                browser.press(TAB)
                assert browser.js("document.activeElement !== document.body")
            browser.press(ENTER)
            browser.until("document.querySelector('.request .decision') !== null")
            assert "fake on one" in browser.text(".request .decision")
            assert "answered" in browser.text(".request .attempts")
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


async def test_an_answer_never_becomes_markup(tmp_path: Path, browser: Browser) -> None:
    """A model that writes HTML is shown writing HTML."""
    async with fleet(tmp_path) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.type("#prompt", "<img/src=x/onerror=document.title='broken'>")
            browser.type("#max-tokens", "1")
            browser.click("#send")
            browser.until(ANSWERED)
            assert browser.text("#answer-text").startswith("<img/src=x")
            assert browser.js("document.querySelector('#answer-text img') === null")
            assert browser.js("document.title") == "moe2"

        await visit(check)


async def test_a_failed_request_says_why(tmp_path: Path, browser: Browser) -> None:
    """The coordinator's own words stand where the answer would, and in the list."""
    small = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 64}]
    async with fleet(tmp_path, models=small) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.js(f"document.querySelector('#prompt').value = {'word ' * 200!r}")
            browser.click("#send")
            browser.until("document.querySelector('#answer-state').className === 'error'")
            assert "200 tokens" in browser.text("#answer-state")
            browser.until("document.querySelectorAll('.request.failed').length === 1")
            assert "context exceeded" in browser.text(".request.failed")

        await visit(check)


async def test_stop_cancels_the_decoder(
    tmp_path: Path, browser: Browser, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Stop ends the request at the expert, and the list says cancelled."""
    async with fleet(tmp_path, engine_argv=controlled) as running:

        def begin() -> None:
            browser.open(running.coordinator.api_url)
            browser.click("#send")

        def stop() -> None:
            browser.until("document.querySelector('#running').innerText.includes('one')")
            browser.click("#stop")
            browser.until("document.querySelector('#answer-state').innerText.startsWith('Stopped')")

        await visit(begin)
        await control.next_phase()
        await visit(stop)
        await running.quiet()
        assert running.coordinator.status().requests_cancelled == 1
        await visit(lambda: browser.until("document.querySelectorAll('.request.cancelled').length === 1"))


async def test_a_paused_list_stands_still(tmp_path: Path, browser: Browser) -> None:
    """New requests are held back until one goes on."""
    async with fleet(tmp_path) as running:

        async def ask() -> None:
            async with await running.chat("a", max_tokens=1) as answer:
                await answer.read()

        await visit(lambda: browser.open(running.coordinator.api_url))
        await visit(lambda: browser.click("#pause"))
        await ask()
        await visit(lambda: browser.until("document.querySelector('#requests-note').innerText === '1 new'"))
        assert browser.js("document.querySelectorAll('.request').length") == 0
        await visit(lambda: browser.click("#pause"))
        assert browser.js("document.querySelectorAll('.request').length") == 1


async def test_a_lost_coordinator_is_said_and_found_again(tmp_path: Path, browser: Browser) -> None:
    """The page says that it reconnects, and is live again by itself when the coordinator is back."""
    async with fake_coordinator() as (url, _):
        await visit(lambda: browser.open(url))
    await visit(lambda: browser.until("document.querySelector('#live').innerText === 'Reconnecting'"))
    async with fake_coordinator(port=URL(url).port):
        await visit(lambda: browser.until("document.querySelector('#live').innerText === 'Live'"))


async def test_budgets_are_hidden_without_a_planner(tmp_path: Path, browser: Browser) -> None:
    """What the coordinator would refuse is not offered."""
    async with fake_coordinator() as (url, _):

        def check() -> None:
            browser.open(url)
            assert browser.js("document.querySelector('#budgets').hidden && document.querySelector('#plan').hidden")

        await visit(check)


async def test_a_plan_shows_choice_reasons_frontier_and_certificate(tmp_path: Path, browser: Browser) -> None:
    """With a planner the budgets travel to it and its answer is drawn; unknown energy stays unmeasured."""
    async with fake_coordinator(plan=PLAN) as (url, feed):

        def check() -> None:
            browser.open(url)
            browser.until("!document.querySelector('#budgets').hidden")
            browser.type("#energy-budget", "20")
            browser.type("#max-experts", "2")
            browser.click("#plan")
            browser.until("document.querySelector('#plan-view .plan') !== null")
            shown = browser.text("#plan-view")
            assert "Would be answered by tiny on orin" in shown
            assert "needs more energy than the budget" in shown
            assert "unmeasured" in shown
            assert browser.js("document.querySelectorAll('#plan-view .offer').length") == 2
            browser.click("#plan-view .decision-facts summary")
            assert "Upper bound" in browser.text("#plan-view")
            assert browser.complaints() == []

        await visit(check)
        assert feed.bodies[0]["moe2"] == {"energy_budget_j": 20, "max_experts": 2}
        assert feed.bodies[0]["messages"][0]["role"] == "user"


async def test_mode_choices_and_category_travel_with_the_prompt(tmp_path: Path, browser: Browser) -> None:
    """A vote goes out without a temperature, which it would be refused for."""
    async with fake_coordinator(plan=PLAN) as (url, feed):

        def check() -> None:
            browser.open(url)
            browser.until("!document.querySelector('#budgets').hidden")
            browser.js("document.querySelector('#mode').value = 'vote'")
            browser.type("#category", "maths")
            browser.js("document.querySelector('#choices').value = ' 3 \\n\\n4'")
            browser.click("#plan")
            browser.until("document.querySelector('#plan-view .plan') !== null")

        await visit(check)
        assert feed.bodies[0]["moe2"] == {"mode": "vote", "category": "maths", "choices": ["3", "4"]}
        assert "temperature" not in feed.bodies[0]


async def test_unmeasured_requests_are_counted_by_request(tmp_path: Path, browser: Browser) -> None:
    """A request that two experts answered in turn, both unmeasured, is one of the last one, not two."""
    async with fleet(tmp_path) as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            line = "{energy: {joules: null}, decoded_tokens: 3}"
            browser.js(
                "import('./page/tiles.js').then((tiles) => { document.body.dataset.note ="
                f" tiles.energyNote([{{receipt: {{experts: [{line}, {line}]}}}}]) }})"
            )
            browser.until("document.body.dataset.note !== undefined")
            assert browser.js("document.body.dataset.note") == "1 of the last 1 requests unmeasured"

        await visit(check)


@pytest.mark.parametrize(
    ("outcomes", "purpose", "shown"),
    [
        (("answered", "hedged"), "answer", "tiny on first"),
        (("failed", "answered"), "answer", "tiny on second"),
        (("answered", "outvoted"), "candidate", "tiny on first"),
        (("answered", "answered"), "score", "2 experts"),
        (("failed", "failed"), "answer", "tiny on second"),
    ],
)
async def test_a_request_names_whose_answer_it_was(
    tmp_path: Path, browser: Browser, outcomes: tuple[str, str], purpose: str, shown: str
) -> None:
    """The expert that delivered is named, not the one that was tried last; a vote belongs to its members."""
    lines = tuple(
        msgspec.structs.replace(line(outcome=outcome), expert=name, agent=name, purpose=purpose)
        for name, outcome in zip(("first", "second"), outcomes, strict=True)
    )
    shares = tuple(MemberShare(expert=name, weight=0.5) for name in ("first", "second"))
    together = None if purpose == "answer" else Collaboration(members=shares)
    ended = EndedRequest(
        seq=1, ended_at_unix_s=0.0, asked_model="moe2", outcome="completed", reason="stop", message=None,
        receipt=msgspec.structs.replace(receipt(lines=lines), collaboration=together),
    )  # fmt: skip
    async with fake_coordinator() as (url, _):

        def check() -> None:
            browser.open(url)
            told = msgspec.json.encode(ended).decode()
            browser.js(f"import('./page/requests.js').then((requests) => {{ requests.resetRequests([{told}]) }})")
            browser.until("document.querySelector('.request .who') !== null")
            assert browser.text(".request .who").startswith(shown)
            browser.click(".request summary")
            browser.until("document.querySelector('.request .decision') !== null")
            if purpose == "answer":
                assert browser.text(".request .decision").startswith(f"{shown} was chosen")
            assert browser.complaints() == []

        await visit(check)


async def test_an_answer_that_arrives_whole_has_no_speed(tmp_path: Path, browser: Browser) -> None:
    """A consensus is delivered at once: its tokens over those milliseconds are nobody's decoding."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running:

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.js("document.querySelector('#mode').value = 'consensus'")
            browser.type("#max-tokens", "4")
            browser.click("#send")
            browser.until(ANSWERED)
            assert "answered together (consensus)" in browser.text("#answer-receipt")
            assert "4 tokens in" in browser.text("#answer-state")
            assert "tok/s" not in browser.text("#answer-state")

        await visit(check)


async def test_who_is_awake_and_what_sleep_would_save_is_told(tmp_path: Path, browser: Browser) -> None:
    """The slow level's wish, its reasons and today's saving stand below the hosts, marked where one is simulated."""
    slow = ProvisioningStatus(
        mode="observe", status="optimal", awake=("id-1/tiny",), standing_w=8.8, least_w=8.8, requests_per_hour=12.0,
        changes=(ChangeRow(host="desk", change="unload", reason="it waits dearly", expert="id-2/big"),),
        stays={"id-1/tiny": "a request is running"}, pinned=("orin",),
        saved_j=7200.0, waited_j=10800.0, returns=3, would_sleep=("id-2/big",),
    )  # fmt: skip
    sensor = SensorReport(name="profile:rtx-4090", state="present", power_w=52.0)
    agents = (
        agent_row(asleep=True, connected=False),
        agent_row(agent_id="id-2", agent_name="desk", sensors=(sensor,)),
    )
    async with fake_coordinator(fleet_status=status(*agents, provisioning=slow)) as (url, _):

        def check() -> None:
            browser.open(url)
            browser.until("!document.querySelector('#standby').hidden")
            text = browser.text("#standby")
            assert "simulated" in text
            assert "it touches nothing" in text
            assert "for 12 requests an hour: tiny on orin. The fleet then waits at 8.8 W" in text
            assert "tiny on orin is left as it is: a request is running." in text
            assert "It would: unload big on desk, because it waits dearly." in text
            assert (
                "Today big on desk waited 3 Wh; 3 returns from sleep would have replaced that and saved 2 Wh." in text
            )
            assert "Pinned by an operator: orin." in text
            assert "asleep" in browser.text("[data-agent=orin] footer")
            assert browser.complaints() == []

        await visit(check)


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
            assert browser.text("#hosts") == "No host is there of those that were searched for."
            assert browser.js("document.documentElement.scrollWidth <= innerWidth") is True
            assert browser.complaints() == []

        await visit(check)


async def test_turning_pages_keeps_an_open_request(tmp_path: Path, browser: Browser) -> None:
    """Who reads a request's receipt goes on reading it while other hosts are shown."""
    async with fleet(tmp_path) as running:
        async with await running.chat("a b c", max_tokens=4) as answer:
            assert answer.status == 200
        await running.quiet()

        def check() -> None:
            browser.open(running.coordinator.api_url)
            browser.until("document.querySelectorAll('.request').length === 1")
            browser.click(".request summary")
            browser.until("document.querySelector('.request .decision') !== null")
            choice = "document.querySelector('#find-state')"
            browser.js(f"[{choice}.value = 'connected', {choice}.dispatchEvent(new Event('change'))]")
            browser.until("document.querySelector('#fleet-note').innerText === '1 found of 1 hosts'")
            assert browser.js("document.querySelectorAll('.request[open] .decision').length") == 1
            assert browser.js("document.querySelectorAll('.request').length") == 1
            assert browser.complaints() == []

        await visit(check)


async def test_the_key_is_asked_for_and_sent(tmp_path: Path, browser: Browser) -> None:
    """A coordinator that wants a key makes the page ask; feed and plan then carry it."""
    async with fake_coordinator(plan=PLAN, key="k-1") as (url, feed):

        def check() -> None:
            browser.driver.get(url)
            browser.until("document.querySelector('#key-dialog').open")
            browser.type("#key", "k-1")
            browser.press(ENTER)
            browser.until("document.querySelector('#live').dataset.state === 'live'")
            browser.until("!document.querySelector('#plan').hidden")
            browser.click("#plan")
            browser.until("document.querySelector('#plan-view .plan') !== null")
            assert "k-1" not in str(browser.js("document.documentElement.outerHTML"))

        await visit(check)
        assert feed.bodies


async def test_a_coordinator_with_keys_lets_the_page_in_and_out(tmp_path: Path, browser: Browser) -> None:
    """A wrong key is asked about again, a right one works at once, a revoked one ends the feed."""
    file = KeyFile(tmp_path)
    record, key = add_key(file, scopes=tuple(Scope))
    secret = key.split("_", 2)[2]
    async with fleet(tmp_path, api={"keys": "required"}, profile="agx-orin-maxn") as running:

        def enter(typed: str) -> None:
            browser.until("document.querySelector('#key-dialog').open")
            browser.type("#key", typed)
            browser.press(ENTER)

        def check() -> None:
            browser.driver.get(running.coordinator.api_url)
            enter("moe2_wrong")
            browser.until("document.querySelector('#key-reason').innerText === 'The API key is wrong.'")
            enter(key)
            browser.until("document.querySelector('#live').dataset.state === 'live'")
            browser.type("#max-tokens", "4")
            browser.click("#send")
            browser.until(ANSWERED)
            assert secret not in str(browser.js("document.documentElement.outerHTML + JSON.stringify(localStorage)"))
            revoke(file, record.id)
            browser.until("document.querySelector('#key-dialog').open")
            assert browser.text("#key-reason") == "This API key was revoked."

        await visit(check)


async def test_models_are_shown_and_served_by_a_button_where_the_key_may_operate(
    tmp_path: Path, browser: Browser
) -> None:
    """Without the scope the same host has its files and no buttons."""
    file = KeyFile(tmp_path)
    _, operator = add_key(file, 1, scopes=tuple(Scope))
    _, watcher = add_key(file, 2, scopes=(Scope.OBSERVE,))
    stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, api={"keys": "required"}, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")

        def enter(typed: str) -> None:
            browser.driver.get(running.coordinator.api_url)
            browser.js("sessionStorage.clear()")
            browser.driver.get(running.coordinator.api_url)
            browser.until("document.querySelector('#key-dialog').open")
            browser.type("#key", typed)
            browser.press(ENTER)
            browser.until("document.querySelector('[data-file=\"new.gguf\"]') !== null")

        def check() -> None:
            enter(watcher)
            assert "not served" in browser.text("[data-file='new.gguf']")
            assert "Free: " in browser.text(".models .free")
            assert browser.js("document.querySelectorAll('.models button').length") == 0
            enter(operator)
            browser.until("document.querySelector('button[data-verb=add]') !== null")
            browser.js("[window.prompt = (question, usual) => usual, window.confirm = () => true].length")
            # The page moves as its feed comes: a click by coordinates may miss.
            browser.js("document.querySelector('button[data-verb=add]').click()")
            browser.until("document.querySelector('[data-file=\"new.gguf\"]').innerText.includes('served as new')")
            browser.until("document.querySelector('button[data-verb=remove]') !== null")
            browser.js("[window.asked = [], window.prompt = (_, usual) => (window.asked.push(usual), null)].length")
            browser.js("document.querySelector('button[data-verb=set]').click()")
            assert browser.js("window.asked") == ["4096"]
            browser.js("[window.said = [], window.alert = (text) => window.said.push(text)].length")
            browser.js("[window.prompt = () => 'many'].length")
            browser.js("document.querySelector('button[data-verb=set]').click()")
            assert browser.js("window.said") == ["many is no number of 1 or more."]
            browser.js("[window.typed = ['2048', '2', 'q5', ''], window.prompt = () => window.typed.shift()].length")
            browser.js("document.querySelector('button[data-verb=set]').click()")
            assert browser.js("window.said[1]") == "q5 is none of these."
            browser.js("[window.words = [], window.sent = window.fetch].length")
            browser.js(
                "[window.fetch = (path, how) => (how?.body && window.words.push(how.body), window.sent(path, how)),"
                " window.typed = ['2048', '2', 'q8_0', '-1']].length"
            )
            browser.js("document.querySelector('button[data-verb=set]').click()")
            browser.until("window.words.length === 1")
            word = msgspec.json.decode(str(browser.js("window.words[0]")))
            assert (word["verb"], word["cache_type"], word["gpu_layers"]) == ("set", "q8_0", -1)
            browser.until("document.querySelector('button[data-verb=set][data-slots=\"2\"]') !== null")
            browser.js("document.querySelector('button[data-verb=remove]').click()")
            browser.until("document.querySelector('[data-file=\"new.gguf\"]').innerText.includes('not served')")

        await visit(check)


async def test_models_are_pulled_and_deleted_by_buttons_where_the_host_allows_it(
    tmp_path: Path, browser: Browser
) -> None:
    """A pull is seen while it comes and when it is refused; what is served has no button that deletes it."""
    _, operator = add_key(KeyFile(tmp_path), 1, scopes=tuple(Scope))
    source = write_gguf(tmp_path / "big.gguf", body=bytes(4_000_000))
    stock(tmp_path, "one", "new.gguf")
    stock(tmp_path, "two", "other.gguf")
    async with serving(FakeHub({"big.gguf": source}, stalls=True)) as hub:
        allowed = {**TAKES, "pull_from": [f"{hub.storage}/"], "delete": True}
        async with fleet(tmp_path, api={"keys": "required"}, models_from=allowed) as running:
            await running.start_agent("two", models_from=TAKES)
            await running.until(ready=2)
            await stocked(running, "one", "new.gguf")
            await stocked(running, "two", "other.gguf")
            address = f"{hub.storage}/big.gguf?key=hush#sha256={hashlib.sha256(source.read_bytes()).hexdigest()}"

            def say(verb: str, typed: str) -> None:
                browser.js(f"[window.prompt = (text) => (window.question = text, {json.dumps(typed)})].length")
                browser.js(f"document.querySelector('button[data-verb={verb}]').click()")

            def check() -> None:
                browser.driver.get(running.coordinator.api_url)
                browser.until("document.querySelector('#key-dialog').open")
                browser.type("#key", operator)
                browser.press(ENTER)
                browser.until("document.querySelector('button[data-verb=pull]') !== null")
                assert browser.js("document.querySelectorAll('button[data-verb=pull]').length") == 1
                assert browser.js("document.querySelectorAll('button[data-verb=delete]').length") == 1
                browser.js("[window.said = [], window.alert = (text) => window.said.push(text)].length")
                say("pull", "hf:org/repo/a.gguf")
                browser.until("window.said.length === 1")
                assert f"pulls from {hub.storage}/ when it is told to" in str(browser.js("window.said[0]"))
                assert f"this host pulls from {hub.storage}/" in str(browser.js("window.question"))
                say("pull", address)
                browser.until("document.querySelector('.models .pulling progress')?.value > 0")
                told = browser.text(".models .pulling")
                assert told.startswith(f"pulls big.gguf from {hub.storage}/big.gguf?…: ")
                assert "hush" not in str(browser.js("document.documentElement.outerHTML"))
                if folder := os.environ.get("MOE2_SCREENSHOTS"):
                    for width in (1400, 390):
                        browser.driver.set_window_size(width, 1000)
                        browser.js("document.querySelector('.models').scrollIntoView()")
                        browser.driver.save_screenshot(f"{folder}/models-{width}.png")
                browser.js("[window.confirm = () => true].length")
                browser.js("document.querySelector('button[data-verb=delete]').click()")
                browser.until("document.querySelector('[data-file=\"new.gguf\"]') === null")

            await visit(check)
            assert not (tmp_path / "one/models/new.gguf").exists()


class FakeCoordinator:
    """The page and its feed over a made-up fleet; what a planner would answer is given."""

    def __init__(self, plan: dict[str, Any] | None, key: str | None, fleet_status: CoordinatorStatus) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._plan = plan
        self._key = key
        self._feed = EventsRoute(
            RecentPast(),
            status=lambda: fleet_status,
            power=CapabilityTable(stale_s=1.0, evict_s=1.0).fleet_power,
            lives=lambda: (),
        )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        PageRoute().add_to(app)
        self._feed.add_to(app)
        if self._plan is not None:
            app.router.add_post(PLAN_PATH, self._answer)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        wanted = f"Bearer {self._key}"
        if self._key and request.path.startswith("/v1/") and request.headers.get("Authorization") != wanted:
            return web.json_response({"error": {"message": "A key is needed."}}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.json_response(self._plan)


@asynccontextmanager
async def fake_coordinator(
    *,
    plan: dict[str, Any] | None = None,
    key: str | None = None,
    port: int | None = None,
    fleet_status: CoordinatorStatus | None = None,
) -> AsyncIterator[tuple[str, FakeCoordinator]]:
    fake = FakeCoordinator(plan, key, fleet_status or status(agent_row()))
    async with TestServer(fake.app(), port=port) as server:
        yield str(server.make_url("/")), fake
