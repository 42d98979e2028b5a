"""Several experts for one answer, over real HTTP, WebSockets and processes; the experts are fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet, model_file
from tests.scenarios.clients import text_of

pytestmark = pytest.mark.slow

COMPLETE: dict[str, Any] = {"max_tokens": 2, "stop": ["END"]}
"""Makes an answer of one word end by itself: a text that is cut off has no final answer."""


async def asked(running: Fleet, content: str = "one two three", **fields: Any) -> dict[str, Any]:
    async with await running.chat(content, **fields) as answer:
        body: dict[str, Any] = await answer.json()
    assert answer.status == 200, body
    return body


async def refused(running: Fleet, status: int, **fields: Any) -> dict[str, Any]:
    async with await running.chat("one two three", **fields) as answer:
        body = await answer.json()
    assert answer.status == status, body
    error: dict[str, Any] = body["error"]
    return error


async def streamed(running: Fleet, **fields: Any) -> tuple[list[str], dict[str, Any]]:
    """(the pieces that the client read, the receipt)."""
    texts: list[str] = []
    receipt: dict[str, Any] = {}
    async with await running.chat("one two three", stream=True, **fields) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                receipt = chunk.get("moe2", receipt)
                texts += [choice["delta"].get("content", "") for choice in chunk["choices"]]
    return [text for text in texts if text], receipt


async def test_a_vote_answers_with_the_members_choice(tmp_path: Path) -> None:
    """In one piece, with the distribution in the receipt."""
    argv = (*FAKE_EXPERT, "--prefers", "blue")
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=argv) as running:
        body = await asked(running, moe2={"mode": "vote", "choices": ["red", "blue", "green"]})
        assert text_of(body) == "blue"
        assert body["choices"][0]["finish_reason"] == "stop"
        receipt = body["moe2"]
        assert receipt["mode"] == "vote"
        # e^-1 for blue, e^-2 for the two others.
        assert receipt["collaboration"]["distribution"] == pytest.approx([0.2119, 0.5761, 0.2119], abs=1e-4)
        assert [line["purpose"] for line in receipt["experts"]] == ["score", "score"]
        pieces, _ = await streamed(running, moe2={"mode": "vote", "choices": ["red", "blue"]})
        assert pieces == ["blue"]


async def test_an_enum_is_answered_with_the_json_that_the_client_expects(tmp_path: Path) -> None:
    """A vote over the documents that the schema allows."""
    argv = (*FAKE_EXPERT, "--prefers", '{"answer": "no"}')
    schema = {"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=argv) as running:
        body = await asked(running, response_format=form, moe2={"mode": "auto"})
        assert (json.loads(text_of(body)), body["moe2"]["mode"]) == ({"answer": "no"}, "vote")


async def test_choices_alone_are_scored_by_one_expert(tmp_path: Path) -> None:
    """Which `auto` finds cheapest without a gate; with a parameter that a vote cannot honour one is written."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        body = await asked(running, moe2={"choices": ["one", "two"]})
        assert [line["purpose"] for line in body["moe2"]["experts"]] == ["score"]
        body = await asked(running, temperature=0.5, moe2={"choices": ["one", "two"]})
        assert [line["purpose"] for line in body["moe2"]["experts"]] == ["answer"]


async def test_ranking_has_members_write_and_score(tmp_path: Path) -> None:
    """Identical experts write the same, so there is one candidate and nothing to score."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        body = await asked(running, max_tokens=3, moe2={"mode": "rank"})
        assert text_of(body) == "one two three "
        assert [line["purpose"] for line in body["moe2"]["experts"]] == ["candidate"] * 2
        [candidate] = body["moe2"]["collaboration"]["candidates"]
        assert len(candidate["experts"]) == 2


async def test_mixing_streams_what_one_expert_writes(tmp_path: Path) -> None:
    """Two identical experts, greedily: token by token the same as either alone."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        alone = text_of(await asked(running, temperature=0, max_tokens=5))
        pieces, receipt = await streamed(running, temperature=0, max_tokens=5, moe2={"mode": "mix"})
        assert pieces == ["one ", "two ", "three ", "one ", "two "]
        assert "".join(pieces) == alone
        assert receipt["mode"] == "mix"
        assert [line["purpose"] for line in receipt["experts"]] == ["follow"] * 2
        assert receipt["tokens"]["decoded"] == 5
        await running.quiet()


async def test_a_mix_goes_on_without_a_member_that_dies(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """The client reads the whole answer, and the receipt names who was lost."""
    async with fleet(tmp_path, agents=("steady",)) as running:
        await running.start_agent("shaky", engine_argv=controlled)
        await running.until(ready=2)
        asking = asyncio.create_task(asked(running, temperature=0, max_tokens=4, moe2={"mode": "mix"}))
        (await control.next_phase()).answer()
        (await control.next_phase()).answer("crash")
        body = await asking
        assert text_of(body) == "one two three one "
        collaboration = body["moe2"]["collaboration"]
        assert [share["weight"] for share in collaboration["members"]] == [1.0]
        assert len(collaboration["dropped"]) == 1
        assert sorted(line["outcome"] for line in body["moe2"]["experts"]) == ["answered", "failed"]


async def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path) -> None:
    """And a mode that this fleet cannot serve is a 422."""
    async with fleet(tmp_path, agents=("one", "two")) as running:
        error = await refused(running, 400, moe2={"mode": "vote"})
        assert error["param"] == "moe2.mode"
        error = await refused(running, 400, temperature=1, moe2={"mode": "vote", "choices": ["a", "b"]})
        assert error["param"] == "temperature"
        tool = {"type": "function", "function": {"name": "f"}}
        for mode in ("vote", "rank", "mix"):
            error = await refused(running, 400, tools=[tool], moe2={"mode": mode})
            assert error["param"] == "tools"
        error = await refused(running, 400, response_format={"type": "json_object"}, moe2={"mode": "mix"})
        assert error["param"] == "response_format"


async def test_a_client_that_leaves_a_mix_stops_all_its_members(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """In the middle of a token; everything is accounted, and both experts serve the next request."""
    async with fleet(tmp_path, agents=("one", "two"), engine_argv=controlled) as running:
        asking = asyncio.create_task(asked(running, temperature=0, max_tokens=9, moe2={"mode": "mix"}))
        for _ in range(3):
            (await control.next_phase()).answer()
        await control.next_phase()
        asking.cancel()
        control.release()
        await running.quiet()
        assert running.coordinator.status().requests_cancelled == 1
        body = await asked(running, temperature=0, max_tokens=2, moe2={"mode": "mix"})
        assert text_of(body) == "one two "
        assert len(body["moe2"]["collaboration"]["members"]) == 2


@pytest.mark.slow
async def test_a_vote_does_not_wait_for_a_member_that_hangs(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Once the other has answered, patience is bounded; the receipt names who was late."""
    async with fleet(tmp_path, agents=("steady",)) as running:
        await running.start_agent("stuck", engine_argv=controlled)
        await running.until(ready=2)
        asking = asyncio.create_task(asked(running, moe2={"mode": "vote", "choices": ["a", "b"]}))
        step = await control.next_phase()
        body = await asking
        [dropped] = body["moe2"]["collaboration"]["dropped"]
        assert "late" in dropped["reason"]
        step.answer()
        await running.quiet()


# --- Consensus --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def three_models(root: Path) -> AsyncIterator[Fleet]:
    """A fleet of three agents, each with a model of its own that echoes the prompt."""
    async with fleet(root, agents=()) as running:
        for name in ("one", "two", "three"):
            model = f"{name}-7b"
            models = [{"name": model, "path": model_file(root, model), "slots": 2}]
            await running.start_agent(name, engine_argv=FAKE_EXPERT, models=models)
        await running.until(ready=3)
        yield running


async def test_a_consensus_stops_when_the_outcome_is_certain(tmp_path: Path) -> None:
    """Two of three say the same: the third is not asked, and the receipt has each answer with its weight."""
    async with three_models(tmp_path) as running:
        body = await asked(running, "42 END", **COMPLETE, moe2={"mode": "consensus", "answer": "number"})
        assert text_of(body).strip() == "42"
        receipt = body["moe2"]
        assert receipt["mode"] == "consensus"
        together = receipt["collaboration"]
        assert [member["answer"] for member in together["members"]] == ["42", "42"]
        assert (together["settled"], len(together["not_asked"])) == ("cannot_lose", 1)
        assert [line["purpose"] for line in receipt["experts"]] == ["candidate", "candidate"]
        assert 0 < together["probability"] < 1


async def test_each_of_several_answers_has_its_own_collaboration(tmp_path: Path) -> None:
    """The receipt of a request for three tells of each how its members voted, in the order of the answers."""
    async with three_models(tmp_path) as running:
        body = await asked(running, "42 END", **COMPLETE, n=3, moe2={"mode": "consensus", "answer": "number"})
        receipt = body["moe2"]
        assert len(body["choices"]) == len(receipt["collaborations"]) == 3
        assert all(each["members"] for each in receipt["collaborations"])
        assert receipt["collaborations"][0] == receipt["collaboration"]


async def test_a_consensus_of_one_says_why(tmp_path: Path) -> None:
    """A client that asks for a vote and gets one member's answer reads the reason in the receipt."""
    async with three_models(tmp_path) as running:
        wish = {"mode": "consensus", "answer": "number", "max_experts": 1}
        together = (await asked(running, "42 END", **COMPLETE, moe2=wish))["moe2"]["collaboration"]
        assert [member["answer"] for member in together["members"]] == ["42"]
        assert "within the request's limits" in together["note"]


async def test_a_streamed_consensus_comments_and_then_delivers(tmp_path: Path) -> None:
    """A waiting client reads comments, which SSE clients leave out, and then the winner's text in one chunk."""
    async with three_models(tmp_path) as running:
        fields = {**COMPLETE, "moe2": {"mode": "consensus", "answer": "number"}}
        async with await running.chat("42 END", stream=True, **fields) as answer:
            lines = [line.decode().strip() async for line in answer.content]
        comments = [line for line in lines if line.startswith(":")]
        assert comments[0] == ": 1 of at most 3 members have answered"
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        assert [text for text in texts if text] == ["42 "]
        assert lines.index(comments[0]) < next(n for n, line in enumerate(lines) if line.startswith("data:"))
        assert chunks[-1]["moe2"]["collaboration"]["settled"] == "cannot_lose"


async def test_prose_has_no_final_answer_to_vote_on(tmp_path: Path) -> None:
    """One expert's text is the answer, and a note says so."""
    async with three_models(tmp_path) as running:
        words = " ".join(f"word{n}" for n in range(20))
        body = await asked(running, words, max_tokens=20, moe2={"mode": "consensus", "answer": "text"})
        assert text_of(body).split() == words.split()
        assert body["moe2"]["collaboration"]["note"]


async def test_what_only_a_consensus_has_is_refused_elsewhere(tmp_path: Path) -> None:
    """`answer` and `confidence` mean nothing in other modes, and values out of range are named."""
    async with three_models(tmp_path) as running:
        for wish in ({"mode": "rank", "answer": "text"}, {"mode": "route", "confidence": 0.9}, {"confidence": 1.5}):
            error = await refused(running, 400, moe2=wish)
            assert error["param"] in ("moe2.answer", "moe2.confidence")
