"""Models that hosts pull and delete because an operator says so: real daemons, and a server that speaks as the hub."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace

from moe2.common.localclient import RefusedError
from moe2.common.status import PullRow
from moe2.coordinator.http.paths import PULLS_PATH
from tests.fakes.disk import filled, small_disk
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.hub import COMMIT, FakeHub, serving
from tests.gguf import gguf, write_gguf
from tests.models import smollm2_path
from tests.scenarios.test_push import command, taking
from tests.scenarios.test_supply import TAKES, order, row_of, served, stock, stocked
from tests.scenarios.test_supply import refusal as order_refusal

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


def pulls_from(*beginnings: str) -> dict[str, Any]:
    """A host that pulls from there, and deletes, when it is told to."""
    return {**TAKES, "pull_from": list(beginnings), "delete": True}


def digest(path: Path) -> str:
    """The file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def pull(running: Fleet, source: str, *hosts: str) -> list[str]:
    """Tells hosts to pull; returns the orders' ids."""
    answer = await running.tell(PULLS_PATH, source=source, hosts=hosts)
    return [row["command_id"] for row in answer["pulls"]]


async def ended(running: Fleet, ids: list[str]) -> list[PullRow]:
    """Waits until these pulls have ended."""

    def rows() -> list[PullRow]:
        return [row for row in running.coordinator.status().pulls if row.command_id in ids]

    await running.until_status(lambda _: all(row.state in ("done", "refused", "failed") for row in rows()))
    return rows()


async def refusal(running: Fleet, source: str, *hosts: str) -> str:
    """Why a pull does not begin."""
    with pytest.raises(RefusedError) as refused:
        await pull(running, source, *hosts)
    return refused.value.message


def partial(running: Fleet, host: str, name: str) -> Path:
    """Where a file is while it comes."""
    return running.root / host / "models" / f".{name}.partial"


async def begun(running: Fleet, host: str, name: str) -> None:
    """Waits until bytes have come."""
    path = partial(running, host, name)
    await running.until_status(lambda _: path.exists() and path.stat().st_size > 0)


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeHub], None]:
    """Lets agents' processes find a hub."""

    def found(hub: FakeHub) -> None:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    return found


async def test_hosts_pull_a_real_model_from_the_hub_serve_it_and_delete_it(
    tmp_path: Path, hub_at: Callable[[FakeHub], None]
) -> None:
    """By the command line: whole, checked, listed; what is served stays, and afterwards it is gone from the disk."""
    async with serving(FakeHub({"sub/small.gguf": smollm2_path()})) as hub:
        hub_at(hub)
        async with fleet(tmp_path, agents=("one", "two"), models_from=pulls_from("hf:org/")) as running:
            await taking(running, "one", "two")
            code, output, errors = await command(running, "pull", "hf:org/repo/sub/small.gguf", "one", "two")
            assert code == 0, errors
            assert output.splitlines() == [
                f"{host} has small.gguf from hf:org/repo/sub/small.gguf." for host in ("one", "two")
            ]
            for host in ("one", "two"):
                assert (tmp_path / host / "models/small.gguf").read_bytes() == smollm2_path().read_bytes()
                store = row_of(running, host).models
                assert store is not None
                [file] = store.files
                assert (file.sha256, file.origin) == (digest(smollm2_path()), f"hf:org/repo/sub/small.gguf@{COMMIT}")
                assert (file.licence, store.pulling) == ("apache-2.0", ())
            assert (await order(running, "add", "small", "one"))[0].state == "done"
            assert "is what small is served from" in await order_refusal(running, "delete", "small.gguf", "one")
            assert (await order(running, "remove", "small", "one"))[0].state == "done"
            _, shown, _ = await command(running, "show")
            assert "when told to, pulls from hf:org/ and deletes files" in shown
            code, output, errors = await command(running, "delete", file.sha256[:8], "one", "two")
            assert (code, sorted(output.splitlines())) == (
                0,
                [f"{host} no longer has small.gguf." for host in ("one", "two")],
            ), errors
            assert [list((tmp_path / host / "models").iterdir()) for host in ("one", "two")] == [[], []]


async def test_a_link_that_breaks_in_the_middle_is_taken_up_again(tmp_path: Path) -> None:
    """The next connection asks for the rest alone, and the progress is told."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with serving(FakeHub({"big.gguf": source}, cut_after=[1_500_000])) as hub:
        async with fleet(tmp_path, models_from=pulls_from(f"{hub.storage}/")) as running:
            await taking(running, "one")
            ids = await pull(running, f"{hub.storage}/big.gguf#sha256={digest(source)}", "one")
            [row] = await ended(running, ids)
            assert (row.state, row.message) == ("done", None)
            size = source.stat().st_size
            await running.until_status(
                lambda _: (
                    [(size, size)] == [(one.done_bytes, one.size_bytes) for one in running.coordinator.status().pulls]
                )
            )
            assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()
        assert 0 < int(hub.got[-1].removeprefix("bytes=").rstrip("-")) <= 1_500_000


@pytest.mark.parametrize("kind", ["hub", "address"])
async def test_an_agent_that_was_restarted_in_the_middle_goes_on_where_it_was(
    tmp_path: Path, hub_at: Callable[[FakeHub], None], kind: str
) -> None:
    """It is told again, and fetches the rest alone."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(4_000_000))
    async with serving(FakeHub({"big.gguf": source}, stalls=True)) as hub:
        hub_at(hub)
        allowed = pulls_from("hf:", f"{hub.storage}/")
        address = f"{hub.storage}/big.gguf#sha256={digest(source)}"
        async with fleet(tmp_path, models_from=allowed) as running:
            await taking(running, "one")
            ids = await pull(running, "hf:org/repo/big.gguf" if kind == "hub" else address, "one")
            await begun(running, "one", "big.gguf")
            running.agent_tasks["one"].cancel()
            await asyncio.wait([running.agent_tasks["one"]])
            had = partial(running, "one", "big.gguf").stat().st_size
            assert 0 < had < source.stat().st_size
            hub.stalls = False
            await running.start_agent("one", models_from=allowed)
            [row] = await ended(running, ids)
            assert (row.state, row.message) == ("done", None)
            assert hub.got[-1] == f"bytes={had}-"
            assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()


async def test_a_wrong_checksum_is_told_and_thrown_away(tmp_path: Path, hub_at: Callable[[FakeHub], None]) -> None:
    """The hub's word and the address's."""
    source = write_gguf(tmp_path / "a.gguf", body=b"x" * 1000)
    async with serving(FakeHub({"a.gguf": source}, lies="cd" * 32)) as hub:
        hub_at(hub)
        async with fleet(tmp_path, models_from=pulls_from("hf:", f"{hub.storage}/")) as running:
            await taking(running, "one")
            for place in ("hf:org/repo/a.gguf", f"{hub.storage}/a.gguf#sha256={'ef' * 32}"):
                [row] = await ended(running, await pull(running, place, "one"))
                assert row.state == "failed"
                assert "thrown away" in (row.message or "")
            assert list((tmp_path / "one/models").iterdir()) == []


async def test_a_full_disk_and_a_full_folder_are_noticed_before_a_byte_travels(tmp_path: Path) -> None:
    """A small tmpfs has no room for the headroom; max_bytes bounds the folder."""
    source = write_gguf(tmp_path / "a.gguf", body=os.urandom(2_000_000))
    async with small_disk(tmp_path / "disk", "8m") as disk, serving(FakeHub({"a.gguf": source})) as hub:
        allowed = pulls_from(f"{hub.storage}/")
        async with fleet(tmp_path, agents=(), models_from=allowed) as running:
            await running.start_agent("one", models_from={**allowed, "folder": disk})
            await running.start_agent("two", models_from={**allowed, "max_bytes": 1_000_000})
            await taking(running, "one", "two")
            ids = await pull(running, f"{hub.storage}/a.gguf#sha256={digest(source)}", "one", "two")
            rows = {row.host: row for row in await ended(running, ids)}
            assert {row.state for row in rows.values()} == {"failed"}
            assert "of headroom" in (rows["one"].message or "")
            assert "models_from.max_bytes" in (rows["two"].message or "")
            assert list(disk.iterdir()) == []
        assert set(hub.got) == {"bytes=0-1048575"}


async def test_a_disk_that_fills_in_the_midst_is_told_and_a_later_pull_goes_on(tmp_path: Path) -> None:
    """Somebody else writes there while the bytes come; what has come stays."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with (
        small_disk(tmp_path / "disk", "264m") as disk,
        serving(FakeHub({"big.gguf": source}, stalls=True)) as hub,
    ):
        allowed = {**pulls_from(f"{hub.storage}/"), "folder": disk}
        address = f"{hub.storage}/big.gguf#sha256={digest(source)}"
        async with fleet(tmp_path, models_from=allowed) as running:
            await taking(running, "one")
            ids = await pull(running, address, "one")
            part = disk / ".big.gguf.partial"
            await running.until_status(lambda _: part.exists() and part.stat().st_size > 0)
            with filled(disk):
                hub.goes_on.set()
                [row] = await ended(running, ids)
            assert (row.state, "cannot be written: " in (row.message or "")) == ("failed", True), row
            had = part.stat().st_size
            assert 0 < had < source.stat().st_size
            [row] = await ended(running, await pull(running, address, "one"))
            assert (row.state, row.message) == ("done", None)
            assert (disk / "big.gguf").read_bytes() == source.read_bytes()
            assert hub.got[-1] == f"bytes={had}-"


async def test_a_split_model_comes_with_all_its_parts_and_goes_with_them(
    tmp_path: Path, hub_at: Callable[[FakeHub], None]
) -> None:
    """One order names the first part; one model stands in the folder."""
    names = [f"m-0000{at}-of-00003.gguf" for at in (1, 2, 3)]
    parts = {name: write_gguf(tmp_path / name, body=os.urandom(1000 + at)) for at, name in enumerate(names)}
    async with serving(FakeHub({f"sub/{name}": path for name, path in parts.items()})) as hub:
        hub_at(hub)
        async with fleet(tmp_path, models_from=pulls_from("hf:org/")) as running:
            await taking(running, "one")
            [row] = await ended(running, await pull(running, f"hf:org/repo/sub/{names[0]}", "one"))
            assert (row.state, row.message) == ("done", None)
            folder = tmp_path / "one/models"
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
                name: path.read_bytes() for name, path in parts.items()
            }
            await stocked(running, "one", names[0])
            store = row_of(running).models
            assert store is not None
            [file] = store.files
            assert file.size_bytes == sum(path.stat().st_size for path in parts.values())
            assert (await order(running, "delete", names[0], "one"))[0].state == "done"
            assert list(folder.iterdir()) == []


async def test_a_host_without_the_hubs_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that pulls finds none."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/huggingface_hub.py").write_text("raise ImportError(name='huggingface_hub')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    async with fleet(tmp_path, models_from=pulls_from("hf:")) as running:
        await taking(running, "one")
        [row] = await ended(running, await pull(running, "hf:org/repo/a.gguf", "one"))
        assert row.state == "failed"
        assert "needs a package that is missing (huggingface_hub)" in (row.message or "")
        assert "moe2[pull]" in (row.message or "")


async def test_what_a_host_does_not_allow_is_refused_before_a_byte_travels(tmp_path: Path) -> None:
    """By the coordinator from what the host has told, and by the agent itself whatever the coordinator says."""
    sha256 = "ab" * 32
    stock(tmp_path, "one", "a.gguf")
    async with fleet(tmp_path, models_from={**TAKES, "pull_from": ["https://models.example/llm/"]}) as running:
        await running.start_agent("two")
        await running.until(ready=2)
        await stocked(running, "one", "a.gguf")
        for source in ("hf:org/repo/a.gguf", f"http://169.254.169.254/a.gguf#sha256={sha256}"):
            assert "pulls from https://models.example/llm/ when it is told to" in await refusal(running, source, "one")
        assert "only with its checksum" in await refusal(running, "https://models.example/llm/a.gguf", "one")
        secret = f"https://me:hush@models.example/llm/a.gguf#sha256={sha256}"
        assert "hush" not in (told := await refusal(running, secret, "one"))
        assert "no name and no password" in told
        assert "its own files" in await refusal(running, "/etc/shadow.gguf", "one")
        assert "takes no models" in await refusal(running, "hf:org/repo/a.gguf", "two")
        other = f"https://models.example/llm/a.gguf#sha256={sha256}"
        assert "has another file called a.gguf" in await refusal(running, other, "one")
        assert "Set delete = true" in await order_refusal(running, "delete", "a.gguf", "one")
        assert running.coordinator.status().pulls == ()
        # As if the host had told otherwise, or the coordinator were somebody else's.
        desk = running.coordinator._supply
        store = row_of(running).models
        assert store is not None
        free = replace(store, pull_from=("http://127.0.0.1/",), deletes=True)
        rows = [replace(row_of(running), models=free)]
        desk.pulls._rows = desk.orders._rows = lambda: rows
        [row] = await ended(running, await pull(running, f"http://127.0.0.1/b.gguf#sha256={sha256}", "one"))
        assert (row.state, row.done_bytes) == ("refused", None)
        assert "models_from.pull_from" in (row.message or "")
        [deleted] = await order(running, "delete", "a.gguf", "one")
        assert (deleted.state, "models_from.delete is not set" in (deleted.message or "")) == ("refused", True)
        assert (tmp_path / "one/models/a.gguf").exists()


async def test_a_file_that_is_used_is_never_deleted(tmp_path: Path) -> None:
    """Also where a link leads to it, the coordinator believes otherwise, or another file has its name by now."""
    path = stock(tmp_path, "one", "own.gguf")
    stock(tmp_path, "one", "new.gguf")
    other = tmp_path / "link.gguf"
    other.symlink_to(path)
    models = [{"name": "mine", "path": other, "load": "on_demand"}]
    async with fleet(tmp_path, agents=(), models_from=pulls_from()) as running:
        await running.start_agent("one", models=models, models_from=pulls_from())
        await taking(running, "one")
        await stocked(running, "one", "own.gguf")
        [kept] = await order(running, "delete", "own.gguf", "one")
        assert (kept.state, "is what mine is served from" in (kept.message or "")) == ("refused", True)
        for name in ("../new.gguf", "/etc/passwd", "new", ".new.gguf"):
            assert "cannot be a model's file" in await order_refusal(running, "delete", name, "one")
        [missing] = await order(running, "delete", "absent.gguf", "one")
        assert "There is no model 'absent.gguf'" in (missing.message or "")
        path = stock(tmp_path, "one", "new.gguf", b"another one")
        [changed] = await order(running, "delete", "new.gguf", "one")
        assert (changed.state, path.exists()) == ("refused", True)
        assert "no longer the file" in (changed.message or "")
        assert served(running) == {"mine": 4}


async def test_what_is_half_there_can_be_deleted_and_what_comes_cannot(tmp_path: Path) -> None:
    """While a pull runs nobody deletes its file; afterwards what it has left is removed."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with serving(FakeHub({"big.gguf": source}, stalls=True)) as hub:
        async with fleet(tmp_path, models_from=pulls_from(f"{hub.storage}/")) as running:
            await taking(running, "one")
            await pull(running, f"{hub.storage}/big.gguf#sha256={digest(source)}", "one")
            await begun(running, "one", "big.gguf")
            [busy] = await order(running, "delete", "big.gguf", "one")
            assert (busy.state, "being fetched" in (busy.message or "")) == ("refused", True)
            running.agent_tasks["one"].cancel()
            await asyncio.wait([running.agent_tasks["one"]])
        async with fleet(tmp_path, models_from=pulls_from()) as running:
            await taking(running, "one")
            [gone] = await order(running, "delete", "big.gguf", "one")
            assert gone.state == "done"
            assert not partial(running, "one", "big.gguf").exists()


LEADS = {
    "file": "file:///etc/passwd",
    "metadata": "http://169.254.169.254/latest/a.gguf",
    "host": "http://user@127.0.0.1:9/a.gguf",
    "circle": "/ok/circle.gguf",
    "climb": "/ok/../../secret.gguf",
    "unreadable": "http://[::1/",
}
"""Where the server below leads, by the name that is asked for."""


async def _lie(request: web.Request) -> web.StreamResponse:
    """Leads elsewhere, never ends, tells sizes that are none, or gives what is no model."""
    name = request.match_info["name"]
    if name in LEADS:
        return web.Response(status=302, headers={"Location": LEADS[name]})
    size = {"huge": "9" * 15, "digits": "9" * 5000, "unknown": "*"}.get(name, "200000")
    answer = web.StreamResponse(status=206, headers={"Content-Range": f"bytes 0-9/{size}"})
    await answer.prepare(request)
    content = {"page": b"<html>" * 999, "odd": gguf("lxama"), "empty": b""}.get(name, gguf())
    with suppress(ConnectionError):
        await answer.write(content)
        while name == "endless":
            await answer.write(bytes(1 << 16))
    return answer


async def test_what_lies_is_refused_and_leaves_next_to_nothing(tmp_path: Path) -> None:
    """Redirections to other schemes and hosts, bodies without an end, sizes that are none, and what is no model."""
    app = web.Application()
    app.router.add_get("/ok/{name}.gguf", _lie)
    app.router.add_get("/{name}.gguf", _lie)
    wanted = {
        "file": "redirects to something that is no web address",
        "metadata": "redirects to http://169.254.169.254/, which this host may not ask",
        "host": "redirects to http://127.0.0.1:9/, which this host may not ask",
        "circle": "redirects again and again",
        "climb": "which this host may not ask",
        "unreadable": "redirects to something that is no web address",
        "endless": "sends more than it has said",
        "huge": "of headroom",
        "digits": "answers",
        "unknown": "does not say how large it is",
        "page": "not a GGUF file",
        "odd": "does not know",
        "empty": "not a GGUF file",
    }
    async with (
        TestServer(app) as server,
        fleet(tmp_path, models_from=pulls_from(str(server.make_url("/ok/")))) as running,
    ):
        await taking(running, "one")
        places = {name: str(server.make_url(f"/ok/{name}.gguf?token=hush")) for name in wanted}
        ids = [(await pull(running, f"{place}#sha256={'ab' * 32}", "one"))[0] for place in places.values()]
        rows = {row.file.removesuffix(".gguf"): row for row in await ended(running, ids)}
        for name, part in wanted.items():
            assert rows[name].state == "failed", name
            if name != "digits":
                assert part in (rows[name].message or ""), (name, rows[name].message)
        assert "hush" not in repr(running.coordinator.status())
        left = {path.name: path.stat().st_size for path in (tmp_path / "one/models").iterdir()}
        assert left.keys() <= {".endless.gguf.partial"}
        assert sum(left.values()) <= 200_000
