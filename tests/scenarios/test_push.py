"""Models sent from the coordinator to hosts: real daemons, real HTTP, links that break."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.common.link.supply import FILES_PATH, TICKET_HEADER
from moe2.common.localclient import RefusedError
from moe2.common.status import PushRow
from moe2.coordinator.http.paths import PUSHES_PATH
from tests.fakes.fleet import Fleet, fleet
from tests.gguf import write_gguf
from tests.scenarios.test_supply import TAKES, order, row_of, served

pytestmark = pytest.mark.slow

OPEN = {"port": 0}


async def push(running: Fleet, path: Path, *hosts: str, **fields: Any) -> list[str]:
    """Begins to send a file; returns the orders' ids."""
    answer = await running.tell(PUSHES_PATH, path=str(path), hosts=hosts, **fields)
    return [row["command_id"] for row in answer["pushes"]]


async def ended(running: Fleet, ids: list[str]) -> list[PushRow]:
    """Waits until these pushes have ended."""

    def rows() -> list[PushRow]:
        return [row for row in running.coordinator.status().pushes if row.command_id in ids]

    await running.until_status(lambda _: all(row.state in ("done", "refused", "failed") for row in rows()))
    return rows()


async def refusal(running: Fleet, path: object, *hosts: str, **fields: Any) -> str:
    """Why a push does not begin."""
    with pytest.raises(RefusedError) as refused:
        await running.tell(PUSHES_PATH, path=str(path), hosts=hosts, **fields)
    return refused.value.message


async def taking(running: Fleet, *names: str) -> None:
    """Waits until the coordinator has heard that these hosts take models."""

    def told(_: object) -> bool:
        rows = {row.agent_name: row for row in running.coordinator.status().agents}
        return all(name in rows and rows[name].models and rows[name].models.free_bytes for name in names)  # type: ignore[union-attr]

    await running.until_status(told)


async def test_a_model_reaches_several_hosts_and_is_served_there(tmp_path: Path) -> None:
    """Whole, checked and listed; then one order serves it on all of them."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=TAKES) as running:
        await taking(running, "one", "two")
        rows = await ended(running, await push(running, source, "one", "two"))
        assert {(row.host, row.state, row.done_bytes) for row in rows} == {
            (host, "done", source.stat().st_size) for host in ("one", "two")
        }
        for host in ("one", "two"):
            assert (tmp_path / host / "models/big.gguf").read_bytes() == source.read_bytes()
            store = row_of(running, host).models
            assert store is not None
            [file] = store.files
            assert file.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
            assert file.origin == f"coordinator:{source}"
        added = await order(running, "add", "big", "one", "two")
        assert {one.state for one in added} == {"done"}
        assert "big" in served(running, "two")


async def test_parts_come_together_and_a_file_that_is_there_is_not_sent_again(tmp_path: Path) -> None:
    """The second push of the same bytes is done at once."""
    for number in (1, 2):
        write_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", body=os.urandom(10_000))
    source = tmp_path / "m-00001-of-00002.gguf"
    async with fleet(tmp_path, push=OPEN, models_from=TAKES) as running:
        await taking(running, "one")
        assert "Name m-00001-of-00002.gguf" in await refusal(running, tmp_path / "m-00002-of-00002.gguf", "one")
        [first] = await ended(running, await push(running, source, "one"))
        [again] = await ended(running, await push(running, source, "one"))
        assert (first.state, again.state) == ("done", "done")
        assert sorted(path.name for path in (tmp_path / "one/models").iterdir()) == [
            "m-00001-of-00002.gguf",
            "m-00002-of-00002.gguf",
        ]


async def test_a_host_that_was_away_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its agent is killed halfway; started again, it fetches the rest alone."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(4_000_000))
    async with fleet(tmp_path, push={**OPEN, "max_bytes_per_s": 1_500_000}, models_from=TAKES) as running:
        await taking(running, "one")
        ids = await push(running, source, "one")
        await running.until_status(lambda status: status.pushes[0].done_bytes > 1_000_000)
        running.agent_tasks["one"].cancel()
        await asyncio.wait([running.agent_tasks["one"]])
        partial = tmp_path / "one/models/.big.gguf.partial"
        had = partial.stat().st_size
        assert 0 < had < source.stat().st_size
        await running.start_agent("one", models_from=TAKES)
        await running.until_status(lambda _: partial.exists() and partial.stat().st_size >= had)
        [row] = await ended(running, ids)
        assert row.state == "done"
        assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()


async def test_only_so_many_hosts_at_a_time(tmp_path: Path) -> None:
    """With one place, the second host waits, and is served when the first is done."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(1_000_000))
    options = {**OPEN, "max_hosts": 1, "max_bytes_per_s": 1_000_000}
    async with fleet(tmp_path, agents=("one", "two"), push=options, models_from=TAKES) as running:
        await taking(running, "one", "two")
        ids = await push(running, source, "one", "two")
        seen: set[tuple[str, ...]] = set()

        def done(status: Any) -> bool:
            seen.add(tuple(sorted(row.state for row in status.pushes)))
            return all(row.state == "done" for row in status.pushes)

        await running.until_status(done)
        assert {row.state for row in await ended(running, ids)} == {"done"}
        assert ("sending", "sending") not in seen


async def test_a_ticket_opens_nothing_twice_or_for_anybody_else(tmp_path: Path) -> None:
    """The listener wants an agent's credential and that agent's own ticket."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    async with fleet(
        tmp_path, agents=("one", "two"), push={**OPEN, "max_bytes_per_s": 400_000}, models_from=TAKES
    ) as run:
        await taking(run, "one", "two")
        pushes, one, two = run.coordinator._supply.pushes, run.agents["one"], run.agents["two"]
        one_id = row_of(run, "one").agent_id
        url = f"http://127.0.0.1:{pushes.port}{FILES_PATH}"
        ids = await push(run, source, "one")
        await run.until_status(lambda status: status.pushes[0].done_bytes > 0)
        pushes._tickets.issue("mine", one_id, ids[0], 0, asyncio.get_running_loop().time())

        async def status(agent: Any, ticket: str, **more: str) -> int:
            headers = {**(agent._papers.headers() if agent else {}), TICKET_HEADER: ticket, **more}
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
                return answer.status

        assert await status(None, "mine") == 401
        assert await status(two, "mine") == 403
        assert await status(one, "guessed") == 403
        assert await status(one, "mine", Range="bytes=9-8") == 416
        assert await status(one, "mine") == 403


async def test_what_a_host_would_not_take_is_refused_before_a_byte_travels(tmp_path: Path) -> None:
    """No GGUF, no listener, a name that is there with other bytes, too little room, a host that takes nothing."""
    good = write_gguf(tmp_path / "good.gguf", body=b"x" * 1000)
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:100])
    async with fleet(tmp_path, push=OPEN, models_from={**TAKES, "max_bytes": 500}) as running:
        await running.start_agent("two")
        await running.until(ready=2)
        await taking(running, "one")
        assert "not a GGUF file" in await refusal(running, tmp_path / "page.gguf", "one")
        assert "is cut off" in await refusal(running, tmp_path / "cut.gguf", "one")
        assert "cannot be read" in await refusal(running, tmp_path / "absent.gguf", "one")
        assert "not an absolute path" in await refusal(running, tmp_path / "\0" / "good.gguf", "one")
        assert "not an absolute path" in await refusal(running, "good.gguf", "one")
        assert "at most 500 B" in await refusal(running, good, "one")
        assert "takes no models" in await refusal(running, good, "two")
        assert "There is no host" in await refusal(running, good, "three")
        assert running.coordinator.status().pushes == ()


async def test_without_a_listener_nothing_is_sent(tmp_path: Path) -> None:
    """The remedy names the setting."""
    async with fleet(tmp_path, models_from=TAKES) as running:
        assert "Set push.port" in await refusal(running, write_gguf(tmp_path / "a.gguf"), "one")


async def test_an_unknown_architecture_is_refused_by_the_host_before_a_byte_travels(tmp_path: Path) -> None:
    """The host's own llama.cpp says so."""
    source = write_gguf(tmp_path / "odd.gguf", "lxama", body=b"x" * 100_000)
    async with fleet(tmp_path, push=OPEN, models_from=TAKES) as running:
        await taking(running, "one")
        [row] = await ended(running, await push(running, source, "one"))
        assert (row.state, row.done_bytes) == ("failed", 0)
        assert "does not know" in (row.message or "")


async def test_a_file_that_changes_while_it_is_sent_is_thrown_away(tmp_path: Path) -> None:
    """What arrives is compared with what was promised."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    async with fleet(tmp_path, push={**OPEN, "max_bytes_per_s": 2_000_000}, models_from=TAKES) as running:
        await taking(running, "one")
        ids = await push(running, source, "one")
        await running.until_status(lambda status: status.pushes[0].done_bytes > 0)
        with source.open("r+b") as file:
            file.seek(1_900_000)
            file.write(b"other")
        [row] = await ended(running, ids)
        assert row.state == "failed"
        assert "thrown away" in (row.message or "")
        assert list((tmp_path / "one/models").iterdir()) == []


async def test_over_the_api_only_files_of_the_folder_are_sent(tmp_path: Path) -> None:
    """Names of it, no paths; and only for a key that may operate."""
    async with fleet(tmp_path, push=OPEN, models_from=TAKES) as running:
        pushes = running.coordinator._supply.pushes
        for text in ("/etc/passwd", "../a.gguf", "a.gguf"):
            with pytest.raises(Exception, match=r"push\.folder"):
                pushes._path(text, is_local=False)
        pushes._folder = tmp_path
        for text in ("/etc/passwd", "../a.gguf", ".a.gguf", "a\n.gguf"):
            with pytest.raises(Exception, match="not the name of a file"):
                pushes._path(text, is_local=False)
        assert pushes._path("a.gguf", is_local=False) == tmp_path / "a.gguf"


async def command(running: Fleet, *words: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of `moe2-coordinator models`."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "moe2.coordinator",
            "models",
            *words,
            "--socket",
            str(running.root / "coordinator.sock"),
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_the_command_line_pushes_adds_shows_and_removes(tmp_path: Path) -> None:
    """As an operator does it, with words that tell what became of each step."""
    source = write_gguf(tmp_path / "new.gguf", body=os.urandom(10_000))
    async with fleet(tmp_path, push=OPEN, models_from=TAKES) as running:
        await taking(running, "one")
        assert await command(running, "push", str(source), "one") == (
            0,
            f"one has new.gguf, sha256 {hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.\n",
            "",
        )
        assert await command(running, "add", "new", "--all-matching", "name=one", "--slots", "2") == (
            0,
            "one serves new.\n",
            "",
        )
        async with running.http.get("/metrics") as answer:
            samples = (await answer.text()).splitlines()
        of_one = f'{{agent="one",agent_id="{row_of(running).agent_id}"}}'
        assert f"moe2_fleet_models{of_one} 1.0" in samples
        assert f"moe2_fleet_models_fetching_bytes{of_one} 0.0" in samples
        _, shown, _ = await command(running, "show")
        assert "one: takes models from here; free: " in shown
        assert "has new.gguf: " in shown
        assert "served as new" in shown
        assert (await command(running, "remove", "new", "one"))[:2] == (0, "one no longer serves new.\n")
        code, _, errors = await command(running, "remove", "new", "one")
        assert (code, "does not serve 'new'" in errors) == (1, True)
