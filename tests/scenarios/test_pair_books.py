"""Two coordinators' books are one: sums of both at either, and scores of answers that the other one gave."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from moe2.coordinator.keys.keys import KeyOptions, Scope
from tests.fakes.fleet import POLL_S, Fleet, fleet
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_pair import ask, two_fleets, with_key

pytestmark = [needs_postgres, pytest.mark.slow]
LEDGER = "/v1/moe2/ledger"


async def ledger_of(each: Fleet, query: str = "") -> dict[str, Any]:
    async with each.http.get(f"{LEDGER}{query}") as answer:
        assert answer.status == 200
        told: dict[str, Any] = await answer.json()
    return told


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums whose last digits do not depend on the order of adding up."""
    return [
        {name: round(value, 9) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]


async def n_requests(each: Fleet) -> int:
    return sum(row["n_requests"] for row in (await ledger_of(each))["sums"])


async def until_both_know(both: tuple[Fleet, Fleet], n_asked: int) -> None:
    async with asyncio.timeout(60):
        while [await n_requests(each) for each in both] != [n_asked, n_asked]:
            await asyncio.sleep(POLL_S)


async def until_whole(each: Fleet) -> dict[str, Any]:
    """The books of the first coordinator, once the second has said that all of its own is in the database."""
    async with asyncio.timeout(60):
        while (told := await ledger_of(each))["coordinators"][1]["complete_s_ago"] is None:
            await asyncio.sleep(POLL_S)
    return told


async def test_either_coordinator_shows_the_sums_of_both(tmp_path: Path, url: str) -> None:
    """`GET /v1/moe2/ledger` has the requests and joules of both coordinators, says whose, and until when."""
    async with two_fleets(tmp_path, url, keys="off") as both:
        for each in (both[0], both[0], both[1]):
            async with await each.chat("a b c") as answer:
                assert answer.status == 200
        await until_both_know(both, 3)
        for by in ("key", "expert", "model", "day", "outcome"):
            one, two = [(await ledger_of(each, f"?by={by}"))["sums"] for each in both]
            assert rounded(one) == rounded(two)
            assert sum(row["n_requests"] for row in one) == 3
        told = await until_whole(both[0])
        [own, other] = told["coordinators"]
        assert (own["name"], own["is_own"], other["name"], other["is_own"]) == ("a", True, "b", False)
        assert 0.0 <= other["complete_s_ago"] < 30.0
        assert told["database_error"] is None
        assert [(row["key"], row["n_requests"]) for row in told["today"]] == [("anybody", 3)]
        assert told["standing"]["answers"] == 3


async def test_without_the_database_its_own_sums_are_shown_and_that_is_said(
    tmp_path: Path, server: Postgres, url: str
) -> None:
    """While the database is down a coordinator shows what it has answered itself, and why it shows no more."""
    async with two_fleets(tmp_path, url, keys="off") as both:
        for each in both:
            async with await each.chat("a b c") as answer:
                assert answer.status == 200
        await until_both_know(both, 2)
        await asyncio.to_thread(server.kill)
        try:
            told = await ledger_of(both[0])
        finally:
            await asyncio.to_thread(server.start)
    assert sum(row["n_requests"] for row in told["sums"]) == 1
    assert [one["name"] for one in told["coordinators"]] == ["a"]
    assert "cannot be reached" in told["database_error"]


async def test_the_day_of_a_limited_key_is_that_of_both(tmp_path: Path, url: str) -> None:
    """What a key has used today, and what is left of its limit, counts the requests of both coordinators."""
    headers = with_key(url, KeyOptions(name="app", daily_tokens=100_000, scopes=(Scope.INFER, Scope.OBSERVE)))
    async with two_fleets(tmp_path, url) as both:
        answers = [await ask(each, headers) for each in both]
        used = sum(answer["usage"]["total_tokens"] for _, answer in answers)
        for each in both:
            async with asyncio.timeout(60):
                while True:
                    async with each.http.get(LEDGER, headers=headers) as answer:
                        [day] = (await answer.json())["today"]
                    if day["tokens"] == used:
                        break
                    await asyncio.sleep(POLL_S)
            assert (day["token_limit"], day["tokens_left"]) == (100_000, 100_000 - used)


async def command(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moe2.coordinator", "ledger", "--config", str(tmp_path / "cli.toml"), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


@pytest.mark.slow
async def test_the_command_shows_both_coordinators_requests(tmp_path: Path, url: str) -> None:
    """`ledger` sums up both coordinators' requests, lists them with who answered, and says whose they are."""
    async with two_fleets(tmp_path, url, keys="off") as both:
        joules = []
        for each in both:
            async with await each.chat("a b c") as answer:
                joules.append((await answer.json())["moe2"]["energy"]["joules"])
        await until_both_know(both, 2)
        await until_whole(both[0])
        (tmp_path / "cli.toml").write_text(
            f'[coordinator]\nstate_dir = "{tmp_path / "a"}"\n[database]\nurl = "{url}"\nname = "a"\n'
        )
        out, err = await command(tmp_path, "--json")
        [row] = json.loads(out)
        assert row["n_requests"] == 2
        assert row["joules"] == pytest.approx(math.fsum(joules))
        assert re.search(r"Requests of 2 coordinators: a \(this one\), b \(whole until \d+ s ago\)\.", err)
        out, _ = await command(tmp_path, "--requests", "--json")
        assert [row["coordinator"] for row in json.loads(out)] == ["a", "b"]
        out, _ = await command(tmp_path, "--requests", "--most", "1", "--json")
        assert [row["coordinator"] for row in json.loads(out)] == ["b"]
        out, err = await command(tmp_path, "--own", "--json")
        assert (json.loads(out)[0]["n_requests"], err) == (1, "")
        out, _ = await command(tmp_path, "--standing", "--json")
        assert json.loads(out)["answers"] == 2


async def score(each: Fleet, request_id: str, value: float, **headers: str) -> tuple[int, dict[str, Any]]:
    body = {"request_id": request_id, "score": value}
    async with each.http.post("/v1/moe2/feedback", json=body, headers=headers) as answer:
        return answer.status, {**await answer.json(), "retry_after": answer.headers.get("Retry-After")}


async def test_an_answer_is_scored_at_either_coordinator(tmp_path: Path, url: str) -> None:
    """A score that is sent at once to the coordinator that did not answer counts at both, once, and is kept with the
    prompt by the one that answered, where training reads it."""
    async with two_fleets(tmp_path, url, keys="off", selection={"keep_prompts": True}) as (one, two):
        async with await one.chat("secret words") as answer:
            request_id = answer.headers["x-request-id"]
        status, told = await score(two, request_id, 0.25)
        assert (status, told["model"], told["model_mean"], told["model_count"]) == (200, "fake", 0.25, 1)
        kept = tmp_path / "a" / "feedback.jsonl"
        async with asyncio.timeout(60):
            while not kept.exists():
                await asyncio.sleep(POLL_S)
        line = json.loads(kept.read_text())
        assert (line["prompt"], line["score"], line["request_id"]) == ("secret words", 0.25, request_id)
        for each in (one, two):
            assert (await score(each, request_id, 1.0))[0] == 409
            assert scores(each) == 1


def scores(running: Fleet) -> int:
    """How many scores a coordinator has counted, of whichever model."""
    return sum(tally.count for tally in running.coordinator._feedback.tallies.values())


async def test_scores_of_both_coordinators_answers_are_counted_after_a_restart(tmp_path: Path, url: str) -> None:
    """A coordinator that starts again takes scores of what it answered before, and knows those that there are."""
    async with two_fleets(tmp_path, url, keys="off") as (one, two):
        ids = []
        for _ in range(2):
            async with await one.chat("a b c") as answer:
                ids.append(answer.headers["x-request-id"])
        assert (await score(two, ids[0], 1.0))[0] == 200
    async with fleet(tmp_path / "a", database={"url": url, "name": "a"}) as one:
        await one.until_status(lambda _: scores(one) == 1)
        assert (await score(one, ids[0], 0.0))[0] == 409
        assert (await score(one, ids[1], 0.0))[0] == 200


async def test_another_keys_answer_cannot_be_scored(tmp_path: Path, url: str) -> None:
    """The key of the request alone can score it; to any other there is no such request, and it may try again."""
    headers = with_key(url, KeyOptions(name="app"))
    other = with_key(url, KeyOptions(name="other"), nth=2)
    async with two_fleets(tmp_path, url) as (one, two):
        _, answered = await ask(one, headers)
        request_id = answered["moe2"]["request_id"]
        status, told = await score(two, request_id, 1.0, **other)
        assert (status, told["error"]["code"], told["retry_after"]) == (404, "request_not_found", "1")
        assert (await score(two, "req-nobody", 1.0, **headers))[0] == 404
        assert (await score(two, request_id, 1.0, **headers))[0] == 200


async def test_a_score_without_the_database_is_asked_for_again(tmp_path: Path, server: Postgres, url: str) -> None:
    """Of an answer that this coordinator does not remember, a score gets 503 with Retry-After while nobody can look."""
    async with two_fleets(tmp_path, url, keys="off") as (one, _):
        await asyncio.to_thread(server.kill)
        try:
            status, told = await score(one, "req-nobody", 1.0)
        finally:
            await asyncio.to_thread(server.start)
    assert (status, told["error"]["code"], told["retry_after"]) == (503, "database_unreachable", "5")
