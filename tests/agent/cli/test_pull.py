"""`moe2-agent pull` and `remove` as processes of their own, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.fakes.certificates import Authority
from tests.fakes.hub import COMMIT, FakeHub, serving
from tests.gguf import write_gguf
from tests.models import smollm2_path

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow


def configured(root: Path, more: str = "") -> Path:
    """An agent's configuration; its state is in `root/state`."""
    state = root / "state"
    state.mkdir(exist_ok=True)
    path = root / "agent.toml"
    path.write_text(
        f'[agent]\nstate_dir = "{state}"\n[coordinator]\nurl = "ws://127.0.0.1:1"\n{more}\n'
        f'[[models]]\nname = "other"\npath = "{root / "other.gguf"}"\n'
    )
    return path


async def started(root: Path, command: str, *words: str, **environment: str) -> asyncio.subprocess.Process:
    """`moe2-agent COMMAND` as it runs."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moe2.agent", command, *words, "--config", str(root / "agent.toml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
    )


async def moe2_agent(root: Path, command: str, *words: str, **environment: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of `moe2-agent COMMAND`."""
    process = await started(root, command, *words, **environment)
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


def index(root: Path) -> dict[str, dict[str, object]]:
    """What the library knows."""
    found: dict[str, dict[str, object]] = json.loads((root / "state/library.json").read_text())
    return found


async def test_a_model_comes_from_the_hub_whole_and_checked(tmp_path: Path) -> None:
    """The real SmolLM2 arrives; the index says of which commit, and the licence is told."""
    configured(tmp_path)
    async with serving(FakeHub({"sub/small.gguf": smollm2_path()})) as hub:
        code, output, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/sub/small.gguf", HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert "licence apache-2.0" in output
    entry = index(tmp_path)["small.gguf"]
    assert entry["sha256"] == hashlib.sha256(smollm2_path().read_bytes()).hexdigest()
    assert entry["origin"] == f"hf:org/repo/sub/small.gguf@{COMMIT}"
    assert (tmp_path / "state/models/small.gguf").read_bytes() == smollm2_path().read_bytes()
    assert sorted(path.name for path in (tmp_path / "state/models").iterdir()) == ["small.gguf"]


async def test_parts_of_a_split_model_come_together(tmp_path: Path) -> None:
    """Naming the first file brings all of them, as one model."""
    configured(tmp_path)
    parts = {
        f"m-0000{number}-of-00002.gguf": write_gguf(tmp_path / f"p{number}.gguf", body=bytes([number]) * 999)
        for number in (1, 2)
    }
    async with serving(FakeHub(dict(parts))) as hub:
        code, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/m-00001-of-00002.gguf", HF_ENDPOINT=hub.url)
        later, _, refusal = await moe2_agent(tmp_path, "pull", "hf:org/repo/m-00002-of-00002.gguf", HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert list(index(tmp_path)) == ["m-00001-of-00002.gguf"]
    assert {path.name for path in (tmp_path / "state/models").iterdir()} == set(parts)
    assert (later, "Name m-00001-of-00002.gguf" in refusal) == (1, True)


async def test_a_download_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    """The next connection asks for the rest alone."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    async with serving(FakeHub({"big.gguf": source}, cut_after=[1_500_000])) as hub:
        address = f"{hub.storage}/big.gguf#sha256={digest}"
        code, _, errors = await moe2_agent(tmp_path, "pull", address)
    assert code == 0, errors
    started = int(hub.got[-1].removeprefix("bytes=").partition("-")[0])
    assert 0 < started <= 1_500_000
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()


async def test_a_pull_over_tls_trusts_the_authorities_of_the_environment(tmp_path: Path) -> None:
    """SSL_CERT_FILE holds for addresses and for the hub; without it either says that the certificate is not trusted."""
    configured(tmp_path)
    authority = Authority(tmp_path)
    source = write_gguf(tmp_path / "a.gguf", body=os.urandom(1_500_000))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    trusted = {"SSL_CERT_FILE": str(authority.ca_file)}
    async with serving(FakeHub({"a.gguf": source}, pair=authority.issue())) as hub:
        for place in (f"{hub.storage}/a.gguf#sha256={digest}", "hf:org/repo/a.gguf"):
            refused, _, why = await moe2_agent(tmp_path, "pull", place, HF_ENDPOINT=hub.url)
            assert (refused, "certificate" in why, "SSL_CERT_FILE" in why) == (1, True, True), why
            code, _, errors = await moe2_agent(tmp_path, "pull", place, HF_ENDPOINT=hub.url, **trusted)
            assert code == 0, errors
            assert (tmp_path / "state/models/a.gguf").read_bytes() == source.read_bytes()
            await moe2_agent(tmp_path, "remove", "a.gguf")


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_hubs_file_goes_on_where_it_was_or_begins_again(tmp_path: Path, ranges: bool) -> None:
    """A connection is cut twice; a storage that ignores ranges sends the whole file anew, and it is still right."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(25_000_000))
    hub = FakeHub({"big.gguf": source}, cut_after=[12_000_000, 11_000_000], ranges=ranges)
    async with serving(hub):
        code, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/big.gguf", HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()
    starts = [int(wanted.removeprefix("bytes=").partition("-")[0] or 0) for wanted in hub.got[1:]]
    assert starts[0] == 0 < starts[1] <= 12_000_000


@pytest.mark.parametrize("place", ["hf:org/repo/big.gguf", "{storage}/big.gguf#sha256={digest}"])
async def test_a_killed_pull_goes_on_where_it_was(tmp_path: Path, place: str) -> None:
    """What had come stays on the disk, also of a hub's file, and the rest alone is fetched."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    partial = tmp_path / "state/models/.big.gguf.partial"
    async with serving(FakeHub({"big.gguf": source}, stalls=True)) as hub:
        address = place.format(storage=hub.storage, digest=digest)
        process = await started(tmp_path, "pull", address, HF_ENDPOINT=hub.url)
        await hub.stalled.wait()
        async with asyncio.timeout(60):
            while not partial.exists() or partial.stat().st_size == 0:
                await asyncio.sleep(0.01)
        process.kill()
        await process.communicate()
        had = partial.stat().st_size
        hub.stalls = False
        code, _, errors = await moe2_agent(tmp_path, "pull", address, HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert hub.got[-1] == f"bytes={had}-"
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()
    assert [path.name for path in (tmp_path / "state/models").iterdir() if path.suffix != ".lock"] == ["big.gguf"]


async def test_what_a_proxy_cuts_off_comes_with_the_next_connection(tmp_path: Path) -> None:
    """The answer says that it is whole and is not."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    hub = FakeHub({"big.gguf": source}, shortened=[1000])
    async with serving(hub):
        code, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/big.gguf", HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert hub.got[-1] == f"bytes={source.stat().st_size - 1000}-"
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()


async def test_a_file_that_the_hub_changes_meanwhile_comes_anew(tmp_path: Path) -> None:
    """What had come of the former one is no part of it, and does not stay on the disk."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    (tmp_path / "state/models").mkdir()
    (tmp_path / "state/models/.big.gguf.partial").write_bytes(b"of another file" * 1000)
    async with serving(FakeHub({"big.gguf": source})) as hub:
        code, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/big.gguf", HF_ENDPOINT=hub.url)
    assert code == 0, errors
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()
    assert [path.name for path in (tmp_path / "state/models").iterdir()] == ["big.gguf"]


async def test_a_file_that_nobody_has_pulled_is_not_written_over(tmp_path: Path) -> None:
    """It may be the sysadmin's own; one that has the right checksum is entered as it is."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "a.gguf", body=b"new")
    own = tmp_path / "state/models/a.gguf"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    async with serving(FakeHub({"a.gguf": source})) as hub:
        refused, _, why = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_ENDPOINT=hub.url)
        assert (refused, "nobody has pulled it" in why, own.read_bytes()) == (1, True, b"mine")
        own.write_bytes(source.read_bytes())
        code, output, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_ENDPOINT=hub.url)
    assert (code, "here already" in output) == (0, True), errors
    assert index(tmp_path)["a.gguf"]["origin"] == f"hf:org/repo/a.gguf@{COMMIT}"


@pytest.mark.parametrize("place", ["hf:org/repo/big.gguf", "{storage}/big.gguf#sha256={digest}"])
async def test_an_interrupted_pull_ends_at_once_and_goes_on_later(tmp_path: Path, place: str) -> None:
    """Ctrl-C in the midst of a download without an end; what came can be removed, and the file pulled later."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(25_000_000))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    async with serving(FakeHub({"big.gguf": source}, stalls=True)) as hub:
        address = place.format(storage=hub.storage, digest=digest)
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "3600"}
        process = await started(tmp_path, "pull", address, **environment)
        await hub.stalled.wait()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (130, b"")
        removed, output, why = await moe2_agent(tmp_path, "remove", "big.gguf")
        assert (removed, "are free again" in output) == (0, True), why
        assert list((tmp_path / "state/models").iterdir()) == []
        hub.stalls = False
        code, _, told = await moe2_agent(tmp_path, "pull", address, **environment)
    assert code == 0, told
    assert (tmp_path / "state/models/big.gguf").read_bytes() == source.read_bytes()


async def test_a_wrong_checksum_is_thrown_away(tmp_path: Path) -> None:
    """Neither the hub's word nor an address's is taken for the file's."""
    configured(tmp_path)
    source = write_gguf(tmp_path / "a.gguf", body=b"x" * 1000)
    async with serving(FakeHub({"a.gguf": source}, lies="cd" * 32)) as hub:
        code, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_ENDPOINT=hub.url)
        other, _, _ = await moe2_agent(tmp_path, "pull", f"{hub.storage}/a.gguf#sha256={'ef' * 32}")
    assert (code, other) == (1, 1)
    assert "thrown away" in errors
    assert list((tmp_path / "state/models").iterdir()) == []


async def test_a_gated_model_needs_the_token_of_a_file_which_the_storage_never_sees(tmp_path: Path) -> None:
    """Without it the remedy names the option."""
    configured(tmp_path)
    (tmp_path / "token").write_text("hf_secret\n")
    source = write_gguf(tmp_path / "a.gguf")
    async with serving(FakeHub({"a.gguf": source}, token="hf_secret")) as hub:
        refused, _, errors = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_ENDPOINT=hub.url)
        code, _, why = await moe2_agent(
            tmp_path, "pull", "hf:org/repo/a.gguf", "--token-file", str(tmp_path / "token"), HF_ENDPOINT=hub.url
        )
    assert (refused, "--token-file" in errors) == (1, True)
    assert code == 0, why
    assert not hub.storage_saw_token


async def test_offline_says_so_and_names_the_other_way(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is no network failure; a hub that is not there is one. Both lead to push."""
    configured(tmp_path)
    _, _, offline = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_HUB_OFFLINE="1")
    _, _, unreachable = await moe2_agent(tmp_path, "pull", "hf:org/repo/a.gguf", HF_ENDPOINT="http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE is set" in offline
    assert "could not be reached" in unreachable
    assert "models push" in offline
    assert "models push" in unreachable


async def test_what_cannot_be_served_is_refused_before_it_comes(tmp_path: Path) -> None:
    """No GGUF file, and an architecture that llama.cpp does not know: the storage is asked for heads alone."""
    configured(tmp_path)
    (tmp_path / "page.gguf").write_bytes(b"<html>" * 400_000)
    write_gguf(tmp_path / "odd.gguf", "lxama", body=b"x" * 2_000_000)
    async with serving(FakeHub({name: tmp_path / name for name in ("page.gguf", "odd.gguf")})) as hub:
        page, _, no_gguf = await moe2_agent(tmp_path, "pull", "hf:org/repo/page.gguf", HF_ENDPOINT=hub.url)
        odd, _, unknown = await moe2_agent(tmp_path, "pull", "hf:org/repo/odd.gguf", HF_ENDPOINT=hub.url)
    assert (page, odd) == (1, 1)
    assert "not a GGUF file" in no_gguf
    assert "'lxama', which this host's llama.cpp does not know" in unknown
    assert hub.got == ["bytes=0-1048575"] * 2


async def test_a_copy_that_broke_off_is_refused(tmp_path: Path) -> None:
    """Of a file of this host the whole header is read: it says how long the file must be."""
    configured(tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_path().read_bytes()[:90_000_000])
    code, _, errors = await moe2_agent(tmp_path, "pull", str(cut))
    assert (code, "cut.gguf is cut off: it has 90000000 of" in errors) == (1, True)
    assert not (tmp_path / "state/models").exists()


async def test_a_full_disk_is_noticed_before_it_starts(tmp_path: Path) -> None:
    """A small tmpfs has no room for the model and the headroom."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder))
    if await mount.wait() != 0:
        pytest.skip("this container may not mount")
    try:
        configured(tmp_path, f'[models_from]\nfolder = "{folder}"\n')
        code, _, errors = await moe2_agent(tmp_path, "pull", str(smollm2_path()))
        assert code == 1
        assert "of headroom" in errors
        assert "models_from.folder" in errors
        assert list(folder.iterdir()) == []
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(folder))).wait()


async def test_a_served_model_is_not_removed(tmp_path: Path) -> None:
    """One that `[[models]]` names stays; another one goes with its files."""
    configured(tmp_path)
    for name in ("used.gguf", "spare.gguf"):
        code, _, errors = await moe2_agent(tmp_path, "pull", str(write_gguf(tmp_path / name)))
        assert code == 0, errors
    folder = tmp_path / "state/models"
    (tmp_path / "agent.toml").write_text(
        (tmp_path / "agent.toml").read_text() + f'[[models]]\nname = "it"\npath = "{folder / "used.gguf"}"\n'
    )
    kept, _, why = await moe2_agent(tmp_path, "remove", "used.gguf")
    removed, output, _ = await moe2_agent(tmp_path, "remove", "spare.gguf")
    missing, _, unknown = await moe2_agent(tmp_path, "remove", "../agent.toml")
    assert (kept, removed, missing) == (1, 0, 1)
    assert "is what it is served from" in why
    assert "free again" in output
    assert "cannot be a model's file" in unknown
    assert [path.name for path in folder.iterdir()] == ["used.gguf"]
