"""Tests of how experts are asked: the requests that a real server gets, and what is made of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.training.collect.asking import (
    DEFAULT_PAUSE_S,
    MAX_PAUSE_S,
    Asker,
    AskError,
    AwayError,
    BusyError,
    LiveExpert,
    pause_of,
    with_columns,
)
from moe2.coordinator.training.collect.questions import Metric, Question

CHAT, BASE = LiveExpert("a/chat", "chat"), LiveExpert("a/base", "base", has_chat_template=False)
COLOUR = Question(
    id="c", asked="Sky?\n(A) red\n(B) blue", gold="B", metric=Metric.CHOICE, choices=("red", "blue"), labels=()
)
TWINS = Question(id="t", asked="One?", gold="B", metric=Metric.CHOICE, choices=("1", "1 "), labels=())
SUM = Question(id="s", asked="1 + 1?", gold="2", metric=Metric.NUMERIC, choices=(), labels=())


@asynccontextmanager
async def server(*answers: web.Response | str) -> AsyncIterator[tuple[Asker, list[tuple[str, Any]]]]:
    """An API that gives these answers in turn, and the requests that it got as (path, body)."""
    got: list[tuple[str, Any]] = []
    left = list(answers)

    async def answer(request: web.Request) -> web.Response:
        got.append((request.path, await request.json()))
        following = left.pop(0)
        return following if isinstance(following, web.Response) else completion(request.path, following)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield Asker(session, max_tokens=7), got
    await runner.cleanup()


def completion(path: str, text: str) -> web.Response:
    choice = {"message": {"content": text}} if "chat" in path else {"text": text}
    receipt = {"seconds": {"total": 1.5}, "energy": {"joules": 4.0, "quality": "simulated"}}
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": 3}, "moe2": receipt})


def fault(status: int, code: str | None = None, **headers: str) -> web.Response:
    return web.json_response({"error": {"message": "No.", "code": code}}, status=status, headers=headers)


async def test_a_choice_is_asked_by_writing_and_by_scoring() -> None:
    """Both requests have the same prompt, the second one the options' texts; both scores and joules are told."""
    async with server("The answer is (A)", "blue") as (asker, got):
        answered = await asker.ask(COLOUR, CHAT)
    (_, writing), (_, scoring) = got
    assert writing["messages"] == scoring["messages"]
    assert scoring["moe2"] == {"mode": "vote", "choices": ["red", "blue"]}
    assert answered.by_scoring is not None
    assert (answered.score, answered.by_scoring.score, answered.by_scoring.joules) == (0.0, 1.0, 4.0)
    assert answered.answer == "A"


async def test_a_question_without_options_is_only_written() -> None:
    """There is nothing to score."""
    async with server("It is 2.") as (asker, got):
        answered = await asker.ask(SUM, CHAT)
    assert (len(got), answered.score, answered.by_scoring) == (1, 1.0, None)


async def test_a_base_model_continues_a_plain_frame() -> None:
    """A model without a chat template is asked by a text completion that ends with the line."""
    async with server(" B", " blue") as (asker, got):
        answered = await asker.ask(COLOUR, BASE)
    (path, writing), (_, scoring) = got
    assert path == "/v1/completions"
    assert (writing["prompt"], writing["stop"]) == ("Question: Sky?\n(A) red\n(B) blue\nAnswer:", ["\n"])
    assert scoring["moe2"]["choices"] == [" red", " blue"]
    assert "stop" not in scoring
    assert (answered.score, answered.by_scoring and answered.by_scoring.score) == (1.0, 1.0)


async def test_options_that_are_the_same_text_are_scored_by_letter() -> None:
    """A vote takes different texts only."""
    async with server("B", "B") as (asker, got):
        answered = await asker.ask(TWINS, CHAT)
    assert got[1][1]["moe2"]["choices"] == ["A", "B"]
    assert answered.by_scoring is not None
    assert answered.by_scoring.score == 1.0


async def test_options_that_cannot_be_scored_cost_no_answer() -> None:
    """An expert that cannot vote has its written answer kept."""
    async with server("B", fault(422, "mode_unavailable")) as (asker, _):
        answered = await asker.ask(COLOUR, CHAT)
    assert (answered.score, answered.by_scoring) == (1.0, None)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "model_not_found", AwayError),
        (502, "agent_lost", AwayError),
        (502, None, AwayError),
        (503, "no_live_expert", AwayError),
        (503, "model_away", AwayError),
        (429, "overloaded", BusyError),
        (503, "infeasible_now", BusyError),
        (400, "context_length_exceeded", AskError),
        (404, None, AskError),
    ],
)
async def test_faults_are_told_apart(status: int, code: str | None, kind: type[AskError]) -> None:
    """An expert that is away or busy may answer later, a refusal stays one."""
    async with server(fault(status, code)) as (asker, _):
        with pytest.raises(AskError) as caught:
            await asker.ask(SUM, CHAT)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b'{"error": []}', b'{"error": "no"}', b'{"error": {"message": "x", "code": {}}}']
)
async def test_an_error_in_another_shape_is_an_error(body: bytes) -> None:
    """A proxy's error is told by its status."""
    async with server(web.Response(status=500, body=body)) as (asker, _):
        with pytest.raises(AskError, match="HTTP 500"):
            await asker.ask(SUM, CHAT)


@pytest.mark.parametrize(
    ("header", "pause_s"),
    [
        (None, DEFAULT_PAUSE_S),
        ("0", 0.0),
        ("2.5", 2.5),
        ("86400", MAX_PAUSE_S),
        ("Wed, 21 Oct 2026 07:28:00 GMT", MAX_PAUSE_S),
        *(
            (hostile, DEFAULT_PAUSE_S)
            for hostile in ("", "soon", "nan", "inf", "-1", "-inf", "1e999", "٣ days", "0x10")
        ),
    ],
)
def test_a_retry_after_of_any_kind_is_a_pause(header: str | None, pause_s: float) -> None:
    """Seconds are kept up to a limit, a date is the longest pause, and anything else the usual one."""
    assert pause_of(header) == pause_s


@given(st.text())
def test_no_retry_after_breaks_a_survey(header: str) -> None:
    """Whatever a proxy sends, the pause is a figure within its limits."""
    assert 0.0 <= pause_of(header) <= MAX_PAUSE_S


async def test_a_busy_expert_says_for_how_long() -> None:
    """The pause of its Retry-After comes with the error, also where that is a date."""
    async with server(fault(429, "overloaded", **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})) as (asker, _):
        with pytest.raises(BusyError) as caught:
            await asker.ask(SUM, CHAT)
    assert caught.value.pause_s == MAX_PAUSE_S


def test_scores_are_kept_by_file_and_not_by_name() -> None:
    """Two names of a file are one column, two files of a name are two, and an unknown file goes by its name."""
    one, two = "ab" * 32, "cd" * 32
    live = (
        LiveExpert("a/m", "m", file_sha256=one),
        LiveExpert("b/m", "m", file_sha256=two),
        LiveExpert("c/x", "x", file_sha256=two),
        LiveExpert("d/y", "y", file_sha256="ef" * 32),
        LiveExpert("e/z", "z"),
    )
    columns = {expert.key: expert.column for expert in with_columns(live)}
    assert columns == {"a/m": f"m@{one[:12]}", "b/m": f"m@{two[:12]}", "c/x": f"m@{two[:12]}", "d/y": "y", "e/z": "z"}
