"""Links that the agent's user has put where the installer, as root, makes something."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.install.fakehost import CHECKOUT

_NOBODY = 65_534
_COPY = """set -euo pipefail
ROOT=$1 LOG=$1/log SYSTEMD_VERSION=
source install/say.sh; source install/options.sh; source install/host.sh
OWNER=(--owner 65534 --group 65534)
as_agent() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
copy_model "$1/model.gguf" "$MODEL_HOME/model.gguf"
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A system's / that any user may enter, with a model that only root may read."""
    folder = Path(mkdtemp())
    folder.chmod(0o755)
    (folder / "var/lib").mkdir(parents=True)
    model = folder / "model.gguf"
    model.write_bytes(b"GGUF")
    model.chmod(0o600)
    yield folder
    shutil.rmtree(folder)


def copy_model(root: Path) -> subprocess.CompletedProcess[str]:
    """What `install.sh agent --model` does with a model that the unit would not see."""
    return subprocess.run(
        ["bash", "-c", _COPY, "bash", root], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="acts as root and as another user"
)


@needs_root
def test_a_model_is_copied_for_the_agent_alone(root: Path) -> None:
    """Also one that the agent's user could not read where it was."""
    done = copy_model(root)
    assert done.returncode == 0, done.stderr
    copied = root / "var/lib/moe2-agent/models/model.gguf"
    assert copied.read_bytes() == b"GGUF"
    for path, mode in ((copied, 0o600), (copied.parent, 0o700), (copied.parent.parent, 0o700)):
        facts = path.stat()
        assert (facts.st_uid, facts.st_mode & 0o777) == (_NOBODY, mode)
    assert os.listdir(copied.parent) == ["model.gguf"]


@needs_root
@pytest.mark.parametrize("link", ["models", "models/model.gguf", "models/model.gguf.new"])
def test_a_link_in_the_agents_folder_gives_nothing_of_roots_away(root: Path, link: str) -> None:
    """A compromised agent waits for the next installation: root must not follow its link."""
    victim = root / "victim"
    victim.mkdir(mode=0o755)
    (victim / "file").write_text("root's")
    state = root / "var/lib/moe2-agent"
    (state / "models" if "/" in link else state).mkdir(parents=True)
    for path in (state, state / "models"):
        if path.exists():
            os.chown(path, _NOBODY, _NOBODY)
    target = victim if link == "models" else victim / ("file" if link.endswith(".new") else "new")
    (state / link).symlink_to(target)
    copy_model(root)
    assert victim.stat().st_uid == 0
    assert os.listdir(victim) == ["file"]
    assert (victim / "file").read_text() == "root's"
    assert (victim / "file").stat().st_uid == 0
