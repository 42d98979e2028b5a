"""install.sh: which Python it takes where the host's own is too old, and what it says where none can be had."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from tests.install.fakehost import FakeHost

pytestmark = pytest.mark.slow

ARCHIVE = "cpython-3.12.11+20250612-x86_64-unknown-linux-gnu-install_only.tar.gz"


def old(host: FakeHost, version: str = "3.8.10") -> None:
    """The host's Python is as old as JetPack's, and nothing can be reached but by what a test adds."""
    host.program(
        "python3",
        f"""case "$*" in
  *releaselevel*) exit 1;;
  *python_version*) echo {version};;
  *"(3, 8)"*) exit 0;;
  *urllib*) exit 1;;
esac""",
    )
    host.program("curl", "exit 22")


def apt(host: FakeHost, **candidates: str) -> None:
    """apt with these candidates, by package; installing python3.12 makes it."""
    cases = "".join(
        f"  {name.replace('_', '.')}-venv) echo '  Candidate: {found}';;\n" for name, found in candidates.items()
    )
    host.program(
        "apt-cache",
        f"for name; do :; done\ncase $name in\n  python3) echo '  Candidate: 3.8.2-0ubuntu2';;\n{cases}esac",
    )
    host.program("apt-get", 'echo "apt-get: $*" >> "$CALLS"')


def recent(host: FakeHost) -> str:
    """A program that is a recent Python to install.sh, as text."""
    return f"""#!/bin/sh
case "$*" in
  "-m venv "*) for folder; do :; done; mkdir -p "$folder/bin"; cp "{host.bin}/venv-python" "$folder/bin/python";;
  *base_prefix*) ;;
  *) exec {sys.executable} "$@";;
esac
"""


def archive(host: FakeHost, name: str = ARCHIVE, program: str | None = None) -> Path:
    """A folder of wheels with a standalone CPython in it, or another program in its place."""
    folder = host.root / "srv/wheels"
    folder.mkdir(parents=True, exist_ok=True)
    content = (program or recent(host)).encode()
    with tarfile.open(folder / name, "w:gz") as tar:
        entry = tarfile.TarInfo("python/bin/python3")
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("version", ["3.8.10", "3.10.12", "3.11.0rc1"])
def test_a_host_where_none_can_be_had_is_told_at_once(host: FakeHost, version: str, dry: bool) -> None:
    """Before anything is changed, what it has, what was tried, and what to bring; a dry run says the same and fails."""
    old(host, version)
    apt(host)
    before = host.files()
    refused = host.install("coordinator", *(["--dry-run"] if dry else []))
    assert refused.returncode == 1
    assert f"this host has {version}, moe2 needs a released 3.11 or newer" in refused.stderr
    assert "cpython-3.12.*-x86_64-unknown-linux-gnu-install_only.tar.gz" in refused.stderr
    assert "--wheels FOLDER" in refused.stderr
    assert "apt-get: install" not in "".join(host.calls())
    assert host.files() == before


def test_a_release_candidate_of_apt_is_not_taken(host: FakeHost) -> None:
    """Ubuntu 22.04's python3.11 is one of 2022."""
    old(host, "3.10.12")
    apt(host, python3_11="3.11.0~rc1-1~22.04")
    refused = host.install("coordinator", "--dry-run")
    assert refused.returncode == 1
    assert "apt has none that is released" in refused.stderr


def test_a_released_one_of_apt_is_taken(host: FakeHost) -> None:
    """With its venv module."""
    old(host)
    apt(host, python3_11="3.11.0~rc1-1~22.04", python3_12="3.12.3-1ubuntu0.7")
    planned = host.install("coordinator", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "apt has python3.12 python3.12-venv" in planned.stdout
    assert "apt-get install -y --no-install-recommends python3.12 python3.12-venv" in planned.stdout


def test_one_that_was_brought_along_needs_no_network(host: FakeHost) -> None:
    """An archive among the wheels is unpacked under /opt/moe2/python, and the release runs with it."""
    old(host)
    installed = host.install("coordinator", "--wheels", archive(host))
    assert installed.returncode == 0, installed.stderr
    assert "Python: taken from" in installed.stdout
    [python] = (host.root / "opt/moe2/python").glob("cpython-3.12.11*/bin/python3")
    assert python.stat().st_mode & 0o005 == 0o005
    assert (host.root / "opt/moe2/current/bin/python").exists()


def test_one_that_was_brought_along_is_kept(host: FakeHost) -> None:
    """The next run finds it without the folder, and changes nothing; uninstalling takes it along."""
    old(host)
    host.install("coordinator", "--wheels", archive(host))
    for arguments in ((), ("--wheels", archive(host))):
        again = host.install("coordinator", *arguments)
        assert again.returncode == 0, again.stderr
        assert "nothing; everything was as it should be" in again.stdout
    host.install("uninstall")
    assert not (host.root / "opt/moe2").exists()


def test_one_that_was_brought_along_comes_before_the_hosts_own(host: FakeHost) -> None:
    """The wheels beside it were built for it."""
    host.install("coordinator", "--wheels", archive(host))
    assert list((host.root / "opt/moe2/python").glob("cpython-3.12.11*/bin/python3"))


def test_a_folder_with_a_python_does_as_well(host: FakeHost) -> None:
    """As it is after unpacking such an archive."""
    old(host)
    program = host.file("srv/wheels/python/bin/python3", recent(host))
    program.chmod(0o755)
    installed = host.install("coordinator", "--wheels", host.root / "srv/wheels")
    assert installed.returncode == 0, installed.stderr
    assert (host.root / "opt/moe2/python/python/bin/python3").exists()


@pytest.mark.parametrize(
    "name",
    [
        "cpython-3.12.11+20250612-aarch64-unknown-linux-gnu-install_only.tar.gz",
        "cpython-3.10.18+20250612-x86_64-unknown-linux-gnu-install_only.tar.gz",
        "cpython-3.14.0rc1+20250801-x86_64-unknown-linux-gnu-install_only.tar.gz",
        "cpython-3.12.11+20250612-x86_64-unknown-linux-musl-install_only.tar.gz",
    ],
)
def test_an_archive_for_another_host_is_none(host: FakeHost, name: str) -> None:
    """Of another processor, too old, no release, of another C library."""
    old(host)
    refused = host.install("coordinator", "--dry-run", "--wheels", archive(host, name))
    assert refused.returncode == 1
    assert "holds none for x86_64" in refused.stderr


@pytest.mark.parametrize("dry", [True, False])
def test_an_archive_that_is_damaged_is_told_at_once(host: FakeHost, dry: bool) -> None:
    """Before anything is changed."""
    old(host)
    folder = archive(host)
    (folder / ARCHIVE).write_bytes((folder / ARCHIVE).read_bytes()[:60])
    before = host.files()
    refused = host.install("coordinator", "--wheels", folder, *(["--dry-run"] if dry else []))
    assert refused.returncode == 1
    assert "is damaged, or no archive of a standalone CPython" in refused.stderr
    assert host.files() == before


def test_one_that_does_not_run_here_is_not_kept(host: FakeHost) -> None:
    """As one that is named for this processor and is for another; the next try may bring a better one."""
    old(host)
    broken = archive(host, program="#!/bin/sh\necho cannot execute >&2; exit 126\n")
    failed = host.install("coordinator", "--wheels", broken)
    assert failed.returncode == 1
    assert "It does not run here as a released Python of 3.11 or newer." in failed.stderr
    assert "cannot execute" in failed.stderr
    assert list((host.root / "opt/moe2/python").iterdir()) == []
    assert host.install("coordinator", "--wheels", archive(host)).returncode == 0


def test_a_download_that_fails_ends_the_installation(host: FakeHost) -> None:
    """With uv's own words, and before a release is begun."""
    old(host)
    apt(host)
    host.program("curl", "exit 0")
    host.program("uv", "echo 'error: no network' >&2; exit 2")
    failed = host.install("coordinator")
    assert failed.returncode == 1
    assert "error: no network" in failed.stderr
    assert not (host.root / "opt/moe2/releases").exists()


def test_uv_fetches_one_where_it_can_be_reached(host: FakeHost) -> None:
    """Into /opt/moe2/python and nowhere else; what comes from where is told before."""
    old(host)
    apt(host)
    host.program("curl", "exit 0")
    source = host.file("srv/python3", recent(host))
    host.program(
        "uv",
        f"""echo "uv: $*" >> "$CALLS"; target="$UV_PYTHON_INSTALL_DIR/cpython-3.12.11-linux-x86_64-gnu/bin"
mkdir -p "$target"; cp "{source}" "$target/python3"; chmod 755 "$target/python3\"""",
    )
    installed = host.install("coordinator")
    assert installed.returncode == 0, installed.stderr
    assert "CPython 3.12 is fetched by uv into /opt/moe2/python, from https://github.com/astral-sh" in installed.stdout
    assert "uv: python install --no-config 3.12" in host.calls()


def test_uv_is_installed_for_it_where_it_is_not_there(host: FakeHost) -> None:
    """From PyPI, with the host's old Python; a dry run names the step and does not take it."""
    old(host)
    apt(host)
    host.program("curl", "exit 0")
    planned = host.install("coordinator", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "· Fetching CPython 3.12 with uv" in planned.stdout
    assert not (host.root / "opt").exists()


def test_a_python_that_is_named_must_be_recent(host: FakeHost) -> None:
    """It is not replaced by another one."""
    old(host)
    host.program("old-python", "exit 1")
    refused = host.install("coordinator", "--dry-run", environment={"PYTHON": "old-python"})
    assert refused.returncode == 1
    assert "PYTHON=old-python is not a released Python of 3.11 or newer" in refused.stderr


@pytest.mark.parametrize("has_venv", [True, False])
def test_the_systems_own_comes_before_another_one_of_the_path(host: FakeHost, has_venv: bool) -> None:
    """As it is the faster build; but not where the system would first have to be given its venv module."""
    refusal = "" if has_venv else '\n*"ensurepip, venv"*) exit 1;;'
    for name, path in (("system", "usr/bin/python3"), ("path", "srv/python3")):
        said = f'case "$*" in *"-m venv "*) echo "{name}: $*" >> "$CALLS";;{refusal} esac\n'
        program = host.file(path, recent(host).replace("#!/bin/sh\n", f"#!/bin/sh\n{said}"))
        program.chmod(0o755)
        refusal = ""
    (host.bin / "python3").unlink()
    (host.bin / "python3").symlink_to(program)
    installed = host.install("coordinator")
    assert installed.returncode == 0, installed.stderr
    taken = [call.partition(":")[0] for call in host.calls() if "-m venv " in call]
    assert taken == ["system" if has_venv else "path"]


def test_the_doctor_says_how_to_get_one(host: FakeHost) -> None:
    """Where the host's is too old."""
    old(host)
    told = host.install("doctor")
    assert told.returncode == 1
    assert "no released Python 3.11 or newer" in told.stdout
