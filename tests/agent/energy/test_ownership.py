"""One owner for each device of a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe2.agent.energy.ownership import FOLDER, DeviceLocks

_REPOSITORY = Path(__file__).parents[3]
_HOLDER = """
import sys
from pathlib import Path
from moe2.agent.energy.ownership import DeviceLocks
print(DeviceLocks(Path(sys.argv[1]), "first").claim("gpu0"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a /run that this user may write to."""
    (tmp_path / "run").mkdir()
    return tmp_path


def test_the_second_agent_is_told_who_the_first_is(root: Path) -> None:
    """By its name, for a person to find it."""
    assert DeviceLocks(root, "first").claim("gpu0") is None
    owner = DeviceLocks(root, "second").claim("gpu0")
    assert owner == f"the agent first (process {os.getpid()})"


def test_other_devices_are_free(root: Path) -> None:
    """Two agents may share a host, each with a board of its own."""
    first, second = DeviceLocks(root, "first"), DeviceLocks(root, "second")
    assert (first.claim("GPU-1"), second.claim("GPU-2")) == (None, None)


def test_a_device_is_free_again_when_its_owner_ends(root: Path) -> None:
    """However it ended: the kernel lets go of the lock of a process that was killed."""
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY / "dev")}
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "None\n"
    second = DeviceLocks(root, "second")
    assert second.claim("gpu0") == f"the agent first (process {holder.pid})"
    holder.kill()
    holder.communicate()
    assert second.claim("gpu0") is None


def test_what_is_released_is_free(root: Path) -> None:
    """An agent that stops gives its devices back at once."""
    first = DeviceLocks(root, "first")
    first.claim("cpu")
    first.release()
    assert DeviceLocks(root, "second").claim("cpu") is None


def test_to_ask_takes_nothing(root: Path) -> None:
    """The doctor may look while no agent runs, and an agent that starts meanwhile is not refused."""
    doctor = DeviceLocks(root, "doctor")
    assert doctor.owner("cpu") is None
    assert list((root / "run").iterdir()) == []
    first = DeviceLocks(root, "first")
    assert first.claim("cpu") is None
    assert "first" in (doctor.owner("cpu") or "")


def test_an_ordinary_user_sees_a_services_lock(root: Path) -> None:
    """The service's file may be read and not written: that is enough to see the lock, and to hold it next."""
    (root / FOLDER).mkdir()
    service = DeviceLocks(root, "service")
    service.claim("gpu0")
    lock = next((root / FOLDER).iterdir())
    assert lock.stat().st_mode & 0o444 == 0o444
    lock.chmod(0o444)
    user = DeviceLocks(root, "user")
    assert "service" in (user.claim("gpu0") or "")
    service.release()
    assert user.claim("gpu0") is None
    assert service.claim("gpu0") is not None


def test_folders_that_all_may_write_to_are_the_fallback(tmp_path: Path) -> None:
    """Without /run/moe2-devices two users' agents meet in /run/lock or /tmp."""
    (tmp_path / "tmp").mkdir()
    assert DeviceLocks(tmp_path, "first").claim("gpu0") is None
    assert DeviceLocks(tmp_path, "second").claim("gpu0") is not None
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["moe2-gpu0.lock"]


def test_both_see_each_other_where_only_one_folder_is_common(tmp_path: Path) -> None:
    """The first had only /tmp; the second, for whom /run/moe2-devices was made since, looks into both."""
    (tmp_path / "tmp").mkdir()
    DeviceLocks(tmp_path, "first").claim("gpu0")
    (tmp_path / "run").mkdir()
    assert "first" in (DeviceLocks(tmp_path, "second").claim("gpu0") or "")


def test_a_host_without_any_folder_keeps_nobody_out(tmp_path: Path) -> None:
    """There is nowhere to say it, and figures are better than none."""
    assert DeviceLocks(tmp_path, "first").claim("gpu0") is None


def test_a_link_in_a_shared_folder_is_not_followed(tmp_path: Path) -> None:
    """Another user's link to a file of ours does not make us truncate it."""
    (tmp_path / "tmp").mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    (tmp_path / "tmp/moe2-gpu0.lock").symlink_to(precious)
    DeviceLocks(tmp_path, "first").claim("gpu0")
    assert precious.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("note", ["", "not json", "[]", '{"agent": 1}', "\x00" * 5000])
def test_a_lock_file_with_nonsense_in_it_is_a_lock_all_the_same(root: Path, note: str) -> None:
    """Who holds it is told as far as the kernel knows."""
    first = DeviceLocks(root, "first")
    first.claim("gpu0")
    next((root / FOLDER).iterdir()).write_text(note, encoding="utf-8")
    assert DeviceLocks(root, "second").claim("gpu0") == f"process {os.getpid()}"
