"""Which host serves what, changed from the coordinator while requests come: real daemons, fake engines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import time
from typing import Any

import pytest

from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library, LibraryFile
from moe2.common.localclient import RefusedError
from moe2.common.status import AgentRow, ModelOrderRow
from moe2.coordinator.http.paths import ORDERS_PATH
from tests.fakes.fleet import Fleet, fleet
from tests.gguf import write_gguf

pytestmark = pytest.mark.slow

TAKES = {"coordinator": True}


def stock(root: Path, agent: str, name: str, body: bytes = b"one", *, architecture: str = "llama") -> Path:
    """Puts a model into an agent's folder, as pull does."""
    state = root / agent
    library = Library(state)
    path = write_gguf(library.ready() / name, architecture, body=body)
    sha256 = ChecksumStore(state).sha256(path)
    library.add(
        LibraryFile(name=name, size_bytes=path.stat().st_size, sha256=sha256, origin="test", added_unix_s=time())
    )
    return path


async def order(running: Fleet, verb: str, name: str, *hosts: str, **fields: Any) -> list[ModelOrderRow]:
    """Gives an order over the local socket, and waits until every host has answered."""
    answer = await running.tell(ORDERS_PATH, verb=verb, name=name, hosts=hosts, **fields)
    given = {one["command_id"] for one in answer["orders"]}

    def ended() -> list[ModelOrderRow]:
        rows = running.coordinator.status().model_orders
        return [row for row in rows if row.command_id in given and row.state != "running"]

    await running.until_status(lambda _: len(ended()) == len(given))
    return ended()


async def refusal(running: Fleet, verb: str, name: str, *hosts: str, **fields: Any) -> str:
    """Why an order is not given."""
    with pytest.raises(RefusedError) as refused:
        await running.tell(ORDERS_PATH, verb=verb, name=name, hosts=hosts, **fields)
    return refused.value.message


def row_of(running: Fleet, name: str = "one") -> AgentRow:
    """An agent as the coordinator sees it."""
    return next(row for row in running.coordinator.status().agents if row.agent_name == name)


def served(running: Fleet, name: str = "one") -> dict[str, int]:
    """What an agent serves, with the slots."""
    return {expert.model: expert.slots for expert in row_of(running, name).experts}


async def stocked(running: Fleet, name: str, file: str) -> None:
    """Waits until the coordinator has heard of a file."""

    def told(_: object) -> bool:
        row = row_of(running, name)
        return row.models is not None and any(one.name == file for one in row.models.files)

    await running.until_status(told)


async def test_a_model_is_added_changed_and_removed_without_a_restart(tmp_path: Path) -> None:
    """Each step is seen in the fleet, and the file in the agent's state says the same."""
    stock(tmp_path, "one", "new.gguf")
    stock(tmp_path, "one", "other.gguf", b"two")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "other.gguf")
        [added] = await order(running, "add", "new", "one", slots=2)
        assert (added.state, added.message) == ("done", None)
        assert served(running) == {"fake": 4, "new": 2}
        async with await running.chat("Hi", model="new") as answer:
            assert answer.status == 200
        [changed] = await order(running, "set", "new", "one", slots=3)
        assert changed.state == "done"
        assert served(running) == {"fake": 4, "new": 3}
        await _a_file_is_one_model_in_the_books(running)
        assert json.loads((tmp_path / "one/served.json").read_text())["new"]["slots"] == 3
        [removed] = await order(running, "remove", "new", "one")
        assert removed.state == "done"
        assert served(running) == {"fake": 4}
        assert json.loads((tmp_path / "one/served.json").read_text()) == {}


async def _a_file_is_one_model_in_the_books(running: Fleet) -> None:
    """Answers of "new", of its file under another name, and of another file as "new": sums are by file."""
    await order(running, "add", "also", "one", file="new.gguf")
    for model in ("also", "new"):
        async with await running.chat("Hi", model=model) as answer:
            assert answer.status == 200
    await order(running, "remove", "also", "one")
    await order(running, "set", "new", "one", file="other.gguf")
    async with await running.chat("Hi", model="new") as answer:
        assert answer.status == 200
    async with running.http.get("/v1/moe2/ledger?by=model") as answer:
        rows = (await answer.json())["sums"]
    checksums = {file.name: file.sha256 for file in row_of(running).models.files}  # type: ignore[union-attr]
    assert [(row["group"], row["file_sha256"], row["n_requests"]) for row in rows] == [
        ("also, new", checksums["new.gguf"], 3),
        ("new", checksums["other.gguf"], 1),
    ]
    await order(running, "set", "new", "one", file="new.gguf")


async def test_what_was_said_holds_after_a_restart(tmp_path: Path) -> None:
    """An agent comes back with the models of its file and those of its state."""
    stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")
        await order(running, "add", "new", "one", slots=2)
        running.agents["one"].stop()
        await running.agent_tasks["one"]
        await running.start_agent("one", models_from=TAKES)
        await running.until(ready=2)
        assert served(running) == {"fake": 4, "new": 2}


@pytest.mark.parametrize("step", ["ordered", "loading", "done"])
async def test_an_agent_killed_while_it_swaps_comes_back_with_one_of_both(tmp_path: Path, step: str) -> None:
    """Before the new model is ready the former settings hold, afterwards the new ones; never none."""
    stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")
        await order(running, "add", "new", "one", slots=2)
        await running.tell(ORDERS_PATH, verb="set", name="new", hosts=["one"], slots=3)
        agent = running.agents["one"]
        if step == "loading":
            await running.until_status(lambda _: any(name == "new@2" for name in agent.engine_pids()))
        if step == "done":
            await running.until_status(lambda _: served(running).get("new") == 3)
        running.agent_tasks["one"].cancel()
        await asyncio.wait([running.agent_tasks["one"]])
        await running.start_agent("one", models_from=TAKES)
        await running.until(ready=2)
        assert served(running)["new"] in ((3,) if step == "done" else (2, 3))


async def test_no_request_is_lost_while_models_are_swapped(tmp_path: Path) -> None:
    """Under a steady load every answer is a 200, whatever is exchanged meanwhile."""
    stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")
        await order(running, "add", "new", "one", slots=2)
        statuses: list[int] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                async with await running.chat("Hi", model="new", max_tokens=8) as answer:
                    await answer.read()
                    statuses.append(answer.status)

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        for slots in (3, 1, 2, 4):
            [changed] = await order(running, "set", "new", "one", slots=slots)
            assert changed.state == "done"
        stop.set()
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert len(statuses) > 4


async def test_requests_go_elsewhere_when_one_of_two_hosts_serves_a_model_no_longer(tmp_path: Path) -> None:
    """Removed and added again under load, on one host and then the other: every answer is a 200."""
    for agent in ("one", "two"):
        stock(tmp_path, agent, "new.gguf")
    async with fleet(tmp_path, agents=("one", "two"), models_from=TAKES) as running:
        for agent in ("one", "two"):
            await stocked(running, agent, "new.gguf")
        await order(running, "add", "new", "one", "two", slots=2)
        statuses: list[int] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                async with await running.chat("Hi", model="new", max_tokens=8) as answer:
                    await answer.read()
                    statuses.append(answer.status)

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        for host in ("one", "two"):
            assert [one.state for one in await order(running, "remove", "new", host)] == ["done"]
            assert [one.state for one in await order(running, "add", "new", host, slots=2)] == ["done"]
        stop.set()
        await asyncio.gather(*clients)
        assert set(statuses) == {200}


async def test_hosts_obey_their_own_configuration(tmp_path: Path) -> None:
    """One that takes no orders is sent none, and a model of `[[models]]` stays as it stands there."""
    async with fleet(tmp_path, agents=("one",), models_from=TAKES) as running:
        await running.start_agent("two")
        await running.until(ready=2)
        assert "Set coordinator = true in [models_from]" in await refusal(running, "remove", "fake", "two")
        [refused] = await order(running, "remove", "fake", "one")
        assert refused.state == "refused"
        assert "stands in [[models]]" in (refused.message or "")
        assert served(running) == {"fake": 4}


async def test_the_last_model_of_an_alias_stays(tmp_path: Path) -> None:
    """Without it the alias would stand for nothing; a second host's makes it free to go."""
    for agent in ("one", "two"):
        stock(tmp_path, agent, "new.gguf")
    api = {"aliases": {"best": "new"}}
    async with fleet(tmp_path, agents=("one", "two"), api=api, models_from=TAKES) as running:
        for agent in ("one", "two"):
            await stocked(running, agent, "new.gguf")
        await order(running, "add", "new", "one")
        assert "what the alias best stands for" in await refusal(running, "remove", "new", "one")
        await order(running, "add", "new", "two")
        [removed] = await order(running, "remove", "new", "one")
        assert removed.state == "done"


async def test_what_cannot_be_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Names that are paths, hosts and files that are not there, other files of one name, odd verbs."""
    stock(tmp_path, "one", "new.gguf", b"one")
    stock(tmp_path, "two", "new.gguf", b"two")
    async with fleet(tmp_path, agents=("one", "two"), models_from=TAKES) as running:
        for agent in ("one", "two"):
            await stocked(running, agent, "new.gguf")
        for name in ("../x", "", "a b", "x/y", "é"):
            assert "cannot be a model's name" in await refusal(running, "add", name, "one")
        assert "There is no host 'three'" in await refusal(running, "add", "new", "three")
        assert "no file 'other.gguf'" in await refusal(running, "add", "other", "one")
        assert "no file '../../etc/passwd'" in await refusal(running, "add", "x", "one", file="../../etc/passwd")
        assert "not the same file" in await refusal(running, "add", "new", "one", "two")
        assert "serves fake already" in await refusal(running, "add", "fake", "one")
        assert "does not serve 'nope'" in await refusal(running, "set", "nope", "one", slots=2)
        assert "There is no order 'steal'" in await refusal(running, "steal", "fake", "one")
        assert "No host is named" in await refusal(running, "add", "new")
        assert "no condition" in await refusal(running, "add", "new", matching="shoe=big")
        assert "no order about a model" in await refusal(running, "add", "new", "one", slots="many")
        [refused] = await order(running, "add", "new", "one", slots=1000)
        assert (refused.state, "slots" in (refused.message or "")) == ("refused", True)


async def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    """The answer says how much context there is room for; an unknown architecture is named."""
    stock(tmp_path, "one", "new.gguf")
    stock(tmp_path, "one", "odd.gguf", architecture="lxama")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "odd.gguf")
        [large] = await order(running, "add", "new", "one", context_tokens=16_000_000, cache_type="f16")
        [odd] = await order(running, "add", "odd", "one")
        assert (large.state, odd.state) in (("refused", "refused"), ("done", "refused"))
        assert "'lxama', which this host's llama.cpp does not know" in (odd.message or "")


async def test_a_file_that_changed_on_disk_is_noticed_before_it_is_used(tmp_path: Path) -> None:
    """The engine is not started with it, and the reason is told."""
    path = stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")
        write_gguf(path, body=b"two")
        [refused] = await order(running, "add", "new", "one")
        assert refused.state == "refused"
        assert "has the checksum" in (refused.message or "")
        write_gguf(path, body=b"one")
        await order(running, "add", "new", "one")
        write_gguf(path, body=b"two")
        running.agents["one"].stop()
        await running.agent_tasks["one"]
        await running.start_agent("one", models_from=TAKES)
        await running.until_status(
            lambda _: any("has changed on disk" in (expert.last_error or "") for expert in row_of(running).experts)
        )
        await running.until(ready=1)


async def test_over_the_network_only_a_key_may_operate(tmp_path: Path) -> None:
    """Where no keys are required, the API refuses orders; the local socket's users are the operators."""
    async with fleet(tmp_path, models_from=TAKES) as running:
        async with running.http.post(ORDERS_PATH, json={"verb": "remove", "name": "fake", "hosts": ["one"]}) as answer:
            assert answer.status == 403
            assert "with a key that may" in (await answer.json())["error"]["message"]


async def test_a_lost_host_is_no_done_order(tmp_path: Path) -> None:
    """Whoever waits for it learns that it is gone."""
    stock(tmp_path, "one", "new.gguf")
    async with fleet(tmp_path, models_from=TAKES) as running:
        await stocked(running, "one", "new.gguf")
        await running.tell(ORDERS_PATH, verb="add", name="new", hosts=["one"])
        running.agent_tasks["one"].cancel()
        await asyncio.wait([running.agent_tasks["one"]])
        await running.until_status(lambda status: status.model_orders[0].state != "running")
        [lost] = running.coordinator.status().model_orders
        assert (lost.state, "was lost" in (lost.message or "")) in (("failed", True), ("done", False))
