"""API keys over real HTTP: the stock OpenAI client, every route, and what a key changes at once."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import structlog

from moe2.common.errors import Moe2Error
from moe2.coordinator.choosing.request import Budgets
from moe2.coordinator.http.access.auth import OPEN, ROUTES
from moe2.coordinator.http.paths import EVENTS_PATH, ORDERS_PATH, PULLS_PATH, PUSHES_PATH
from moe2.coordinator.keys.keys import Scope
from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key, revoke
from tests.fakes.control import ExpertControl
from tests.fakes.fleet import TOKEN, Fleet, fleet
from tests.scenarios.clients import client_of

REQUIRED = {"keys": "required"}
HELLO: Any = [{"role": "user", "content": "a b c"}]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_key_opens_the_api_to_the_stock_client(tmp_path: Path) -> None:
    """Answers, streams and lists, as without keys."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, api=REQUIRED) as running, client_of(running, key) as client:
        answer = await client.chat.completions.create(model="moe2", messages=HELLO, max_tokens=3)
        assert answer.choices[0].message.content == "a b c "
        stream = await client.chat.completions.create(model="moe2", messages=HELLO, max_tokens=3, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "a b c "
        assert [model.id async for model in client.models.list()] == ["moe2", "fake"]


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    """As OpenAI's: 401 with the code `invalid_api_key`."""
    add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running, client_of(running, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.chat.completions.create(model="moe2", messages=HELLO)
        assert refusal.value.code == "invalid_api_key"
        assert refusal.value.type == "invalid_request_error"
        assert refusal.value.response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer \udcff\udcfe", "Bearer moe2_", "Bearer " + "_" * 99],
)
async def test_whatever_is_no_key_is_unauthorized(tmp_path: Path, header: str) -> None:
    """Nothing that a header can hold breaks the check."""
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        async with running.http.get("/v1/models", headers={"Authorization": header}) as answer:
            assert answer.status == 401
            assert (await answer.json())["error"]["code"] == "invalid_api_key"


async def test_the_scheme_is_written_as_one_likes(tmp_path: Path) -> None:
    """RFC 9110 section 11.1: the name of an authentication scheme has no case."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        async with running.http.get("/v1/models", headers={"Authorization": f"bearer  {key}"}) as answer:
            assert answer.status == 200


async def test_a_new_key_and_a_revoked_one_count_at_once(tmp_path: Path) -> None:
    """Without a restart."""
    file = KeyFile(tmp_path)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        assert [warning.code for warning in running.coordinator.status().warnings].count("no_keys") == 1
        record, key = add_key(file)
        async with client_of(running, key) as client:
            await client.models.retrieve("moe2")
            revoke(file, record.id)
            with pytest.raises(openai.AuthenticationError, match="was revoked"):
                await client.models.retrieve("moe2")


async def test_an_expired_key_says_so(tmp_path: Path) -> None:
    """To who has the whole key."""
    _, key = add_key(KeyFile(tmp_path), expires_at_unix_s=1.0)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running, client_of(running, key) as client:
        with pytest.raises(openai.AuthenticationError, match="has expired"):
            await client.models.retrieve("moe2")


async def test_a_key_that_is_revoked_ends_its_live_feed(tmp_path: Path) -> None:
    """A feed has no end of its own; the key's is its."""
    file = KeyFile(tmp_path)
    record, key = add_key(file, scopes=(Scope.OBSERVE,))
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        async with running.http.get(EVENTS_PATH, headers=bearer(key)) as feed, asyncio.timeout(60):
            assert await feed.content.readline() == b"event: hello\n"
            revoke(file, record.id)
            await feed.content.read()
            assert feed.content.at_eof()


async def test_a_request_in_progress_outlives_its_key(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """What was admitted is answered; the energy is spent either way."""
    file = KeyFile(tmp_path)
    record, key = add_key(file)
    async with fleet(tmp_path, api=REQUIRED, engine_argv=controlled) as running:
        async with client_of(running, key) as client:
            asked = asyncio.create_task(client.chat.completions.create(model="moe2", messages=HELLO, max_tokens=2))
            step = await control.next_phase()
            revoke(file, record.id)
            step.answer()
            control.release()
            assert (await asked).choices[0].message.content == "a b "


# --- Scopes -----------------------------------------------------------------------------------------------------------


WRITERS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
OPERATORS = (ORDERS_PATH, PUSHES_PATH, PULLS_PATH)
KEPT = ("/v1/responses/resp_1", "/v1/responses/resp_1/input_items")


def paths() -> list[str]:
    return [path.format(name="main.js", model="moe2", response_id="resp_1") for path in ROUTES]


async def statuses(running: Fleet, key: str | None) -> dict[str, int]:
    """How every route answers an empty body; 400, 405 and the like mean that it was let in."""
    found = {}
    for path in paths():
        posts = path in WRITERS or path.endswith(("plan", "feedback"))
        headers = bearer(key) if key else {}
        async with running.http.request("POST" if posts else "GET", path, headers=headers) as answer:
            found[path] = answer.status
    return found


async def test_every_route_is_in_the_table(tmp_path: Path) -> None:
    """A route that nobody thought about would be nobody's; here it is noticed before."""
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        app = running.coordinator._api_app()
        assert {resource.canonical for resource in app.router.resources()} == set(ROUTES)


async def test_without_a_key_only_health_and_the_bare_page_are_open(tmp_path: Path) -> None:
    """The page's files hold no data: what they show, they have to ask for."""
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        found = await statuses(running, None)
        closed = {path for path, status in found.items() if status == 401}
        assert set(paths()) - closed == {"/", "/page/main.js", "/v1/openapi.json", "/healthz", "/readyz"}


@pytest.mark.parametrize(
    ("scopes", "forbidden"),
    [
        ((Scope.INFER,), {"/v1/moe2/fleet", "/v1/moe2/ledger", EVENTS_PATH, "/metrics", *OPERATORS}),
        (
            (Scope.OBSERVE,),
            {*WRITERS, *KEPT, "/v1/moe2/plan", "/v1/moe2/feedback", *OPERATORS},
        ),
        (tuple(Scope), set()),
    ],
)
async def test_a_key_does_what_its_scopes_say(tmp_path: Path, scopes: tuple[Scope, ...], forbidden: set[str]) -> None:
    """403 with `insufficient_scope` elsewhere."""
    _, key = add_key(KeyFile(tmp_path), scopes=scopes)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        found = await statuses(running, key)
        assert {path for path, status in found.items() if status == 403} == forbidden
        assert 401 not in found.values()


async def test_the_missing_scope_is_named(tmp_path: Path) -> None:
    """The stock client raises `PermissionDeniedError`."""
    _, key = add_key(KeyFile(tmp_path), scopes=(Scope.OBSERVE,))
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running, client_of(running, key) as client:
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope infer") as refusal:
            await client.chat.completions.create(model="moe2", messages=HELLO)
        assert refusal.value.code == "insufficient_scope"


async def test_a_stranger_does_not_learn_what_there_is(tmp_path: Path) -> None:
    """Without a key a route that does not exist looks like one that does; with one it is a 404."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        async with running.http.get("/v1/nonsense") as stranger:
            assert stranger.status == 401
        async with running.http.get("/v1/nonsense", headers=bearer(key)) as known:
            assert known.status == 404


def test_only_reading_what_is_public_is_open() -> None:
    """No route that starts work or shows the fleet may become open by a slip."""
    opened = {path for path, scopes in ROUTES.items() if scopes == OPEN}
    assert opened == {"/", "/page/{name}", "/v1/openapi.json", "/healthz", "/readyz"}


# --- Limits -----------------------------------------------------------------------------------------------------------


async def test_too_many_requests_per_minute_are_429_with_retry_after(tmp_path: Path) -> None:
    """Per key: another one is not held up by it."""
    _, key = add_key(KeyFile(tmp_path), 1, requests_per_minute=2)
    _, other = add_key(KeyFile(tmp_path), 2, requests_per_minute=2)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        async with client_of(running, key) as client, client_of(running, other) as neighbour:
            await client.models.retrieve("moe2")
            await client.models.retrieve("moe2")
            with pytest.raises(openai.RateLimitError) as refusal:
                await client.models.retrieve("moe2")
            assert refusal.value.code == "rate_limit_exceeded"
            assert 1 <= int(refusal.value.response.headers["Retry-After"]) <= 30
            await neighbour.models.retrieve("moe2")


async def test_budgets_come_from_the_request_then_its_key_then_its_category(tmp_path: Path) -> None:
    """Each limit by itself; the receipt and the plan show those in force."""
    budgets = Budgets(latency_budget_s=50.0, ttft_budget_s=40.0)
    _, key = add_key(KeyFile(tmp_path), budgets=budgets)
    categories = {"categories": {"default": {"latency_budget_s": 99.0, "ttft_budget_s": 98.0, "tpot_budget_s": 97.0}}}
    in_force = {"latency_budget_s": 30.0, "ttft_budget_s": 40.0, "tpot_budget_s": 97.0}
    body = {"model": "moe2", "messages": HELLO, "max_tokens": 2, "moe2": {"latency_budget_s": 30.0}}
    async with fleet(tmp_path, api=REQUIRED, selection=categories) as running:
        for path in ("/v1/chat/completions", "/v1/moe2/plan"):
            async with running.http.post(path, json=body, headers=bearer(key)) as answer:
                document = await answer.json()
                assert document.get("moe2", document)["decision"]["budgets"] == in_force


# --- What is never asked for, and what never gets out -----------------------------------------------------------------


async def test_the_local_socket_needs_no_key(tmp_path: Path) -> None:
    """Its file's rights say who may ask."""
    async with fleet(tmp_path, agents=(), api=REQUIRED):
        connector = aiohttp.UnixConnector(str(tmp_path / "coordinator.sock"))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as local:
            async with local.get("/status") as answer:
                assert answer.status == 200


async def test_without_keys_another_sites_page_is_refused(tmp_path: Path) -> None:
    """A browser on this machine could be made to send prompts to it; its own page and other clients may."""
    async with fleet(tmp_path, agents=()) as running:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            async with running.http.get("/v1/models", headers={"Sec-Fetch-Site": site}) as answer:
                assert answer.status == status
        async with running.http.get("/", headers={"Sec-Fetch-Site": "cross-site"}) as page:
            assert page.status == 200


async def test_a_damaged_key_file_stops_the_start(tmp_path: Path) -> None:
    """Whose keys they were, nobody knows."""
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(Moe2Error, match=r"API keys in .*keys\.json cannot be used"):
        async with fleet(tmp_path, agents=(), api=REQUIRED):
            pass


async def test_a_key_file_damaged_later_is_a_warning(tmp_path: Path) -> None:
    """And the keys of before stay in force."""
    file = KeyFile(tmp_path)
    _, key = add_key(file)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running, client_of(running, key) as client:
        file.path.write_text("{")
        await client.models.retrieve("moe2")
        assert "keys_damaged" in [warning.code for warning in running.coordinator.status().warnings]


async def test_no_secret_gets_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logs, status, metrics, feed, errors, receipts, the key file: neither keys nor digests nor tokens."""
    caplog.set_level(logging.DEBUG)
    file = KeyFile(tmp_path)
    record, key = add_key(file, 1, scopes=tuple(Scope), requests_per_minute=60)
    revoked, former = add_key(file, 2)
    wrong = f"moe2_{record.id}_{'W' * 43}"
    said: list[str] = []
    with structlog.testing.capture_logs() as logged:
        async with fleet(tmp_path, api=REQUIRED) as running:
            revoke(file, revoked.id)
            for presented in (key, wrong, former, f"{key}x"):
                async with client_of(running, presented) as client:
                    try:
                        said.append((await client.chat.completions.create(model="moe2", messages=HELLO)).to_json())
                    except openai.APIStatusError as error:
                        said.append(f"{error} {error.response.headers}")
            await running.quiet()
            for path in ("/v1/moe2/fleet", "/metrics", "/v1/models", "/v1/nonsense"):
                async with running.http.get(path, headers=bearer(key)) as answer:
                    said.append(f"{answer.headers} {await answer.text()}")
            async with running.http.get(EVENTS_PATH, headers=bearer(key), read_bufsize=2**22) as feed:
                said += [(await feed.content.readline()).decode() for _ in range(5)]
            file.path.write_text(file.path.read_text()[:-9])
            said.append(str(running.coordinator.status()))
    shown = "\n".join([*said, json.dumps(logged, default=repr), caplog.text])
    assert '"event": "key_refused"' in shown
    assert "keys_damaged" in shown
    assert "moe2_build_info" in shown
    secrets = [presented.split("_", 2)[2] for presented in (key, former, wrong)]
    for secret in (*secrets, record.secret_sha256, revoked.secret_sha256, TOKEN):
        assert secret not in shown
    for secret in secrets:
        assert secret not in file.path.read_text()


async def test_refusals_do_not_flood_the_log(tmp_path: Path) -> None:
    """However many wrong keys are tried."""
    with structlog.testing.capture_logs() as logged:
        async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
            for _ in range(80):
                async with running.http.get("/v1/models", headers=bearer("wrong")) as answer:
                    assert answer.status == 401
    assert 60 <= sum(entry["event"] == "key_refused" for entry in logged) < 80


async def test_keys_that_nobody_asks_for_stop_nothing(tmp_path: Path) -> None:
    """A damaged file counts only where keys are required."""
    (tmp_path / "keys.json").write_text("{")
    async with fleet(tmp_path, agents=()) as running, running.http.get("/v1/models") as answer:
        assert answer.status == 200


async def test_feedback_is_taken_from_the_key_that_asked_only(tmp_path: Path) -> None:
    """Another key that has seen the request's id, in a log for instance, cannot move everybody's gate with it."""
    (_, mine), (_, theirs) = add_key(KeyFile(tmp_path), name="mine"), add_key(KeyFile(tmp_path), 2, name="theirs")
    async with fleet(tmp_path, api=REQUIRED) as running:
        body = {"model": "moe2", "messages": HELLO, "max_tokens": 2}
        async with running.http.post("/v1/chat/completions", json=body, headers=bearer(mine)) as answer:
            score = {"request_id": answer.headers["x-request-id"], "score": 1}
        for key, status in ((theirs, 404), (mine, 200), (theirs, 404)):
            async with running.http.post("/v1/moe2/feedback", json=score, headers=bearer(key)) as answer:
                assert answer.status == status


async def test_a_key_that_expires_is_refused_while_the_clock_says_1970(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status names the clock, and the client is told what is wrong."""
    _, key = add_key(KeyFile(tmp_path), expires_at_unix_s=time.time() + 3600)
    async with fleet(tmp_path, agents=(), api=REQUIRED) as running:
        keys = running.coordinator._keys
        assert keys is not None
        monkeypatch.setattr(keys, "_clock", lambda: 60.0)
        monkeypatch.setattr("moe2.coordinator.daemon.time", lambda: 60.0)
        async with running.http.get("/v1/models", headers=bearer(key)) as answer:
            assert answer.status == 401
            assert "clock is wrong" in (await answer.json())["error"]["message"]
        assert "clock_wrong" in {warning.code for warning in running.coordinator.status().warnings}
