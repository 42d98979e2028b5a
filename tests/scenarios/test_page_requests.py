"""The page as somebody asks: prompts, answers, receipts, plans, the list of requests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from moe2.coordinator.observing.history import EndedRequest
from moe2.coordinator.serving.mode import Collaboration, MemberShare
from tests.coordinator.receipts import line, receipt
from tests.fakes.browser import Browser
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, fleet
from tests.scenarios.pages import ANSWERED, CONTROL, ENTER, PLAN, TAB, fake_coordinator, visit

pytestmark = pytest.mark.slow


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
            browser.js(
                "import('./page/tiles.js').then((tiles) => { document.body.dataset.answer ="
                " tiles.perAnswer({j_per_answer: 33.3, unmeasured: 3}) })"
            )
            browser.until("document.body.dataset.answer !== undefined")
            assert browser.js("document.body.dataset.answer") == "at least 33.3 J"

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
