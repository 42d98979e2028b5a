"""The page as somebody operates a fleet: keys, who is awake, models that are served, pulled and deleted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec
import pytest

from moe2.common.link.reports import SensorReport
from moe2.common.status import ChangeRow, PairStatus, ProvisioningStatus
from moe2.coordinator.keys.keys import Scope
from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key, revoke
from tests.coordinator.receipts import agent_row, status
from tests.fakes.browser import Browser
from tests.fakes.fleet import fleet
from tests.fakes.hub import FakeHub, serving
from tests.gguf import write_gguf
from tests.scenarios.pages import ANSWERED, ENTER, PLAN, fake_coordinator, visit
from tests.scenarios.test_supply import TAKES, stock, stocked

pytestmark = pytest.mark.slow


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


async def test_one_of_a_pair_says_which(tmp_path: Path, browser: Browser) -> None:
    """The foot of the page names this coordinator and the others; it names nobody where no database is shared."""
    pair = PairStatus(name="one", preferred=True, reached=True, unshipped=0, others=("two", "three"))
    for shown, said in ((pair, True), (None, False)):
        async with fake_coordinator(fleet_status=status(agent_row(), pair=shown)) as (url, _):

            def check(url: str = url, said: bool = said) -> None:
                browser.open(url)
                browser.until("document.querySelector('#footer').textContent.includes(' · up ')")
                assert ("one, preferred, beside two, three" in browser.text("#footer")) is said
                assert ("preferred" in browser.text("#footer")) is said
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
