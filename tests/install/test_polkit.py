"""The rule that lets the agent's user suspend the host, as a real polkit takes it, on a bus and a /etc of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.install.fakehost import CHECKOUT

pytestmark = pytest.mark.slow

POLKITD = next((path for path in ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd") if Path(path).exists()), None)
POLICY = Path("/usr/share/polkit-1/actions/org.freedesktop.login1.policy")
TOOLS = ("unshare", "setpriv", "dbus-daemon", "busctl", "pkcheck")
SUSPEND = "org.freedesktop.login1.suspend"

# In a mount namespace of its own: nothing of this machine's polkit, bus or users changes.
ASK = """
set -eu
folder=$1 rule=$2 polkitd=$3; shift 3
chmod 755 "$folder"; mkdir "$folder/rules"; cp "$rule" "$folder/rules/50-moe2-agent.rules"
cp /etc/passwd "$folder/passwd"
printf 'moe2-agent:x:4242:4242::/:/bin/false\\nsomebody:x:4243:4243::/:/bin/false\\n' >>"$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/rules" /etc/polkit-1/rules.d
dbus-daemon --config-file="$folder/bus.conf" --nofork --nopidfile 2>/dev/null & bus=$!
agent= other= polkit=
trap 'kill $bus $polkit $agent $other 2>/dev/null || true' EXIT
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$folder/bus
until [ -S "$folder/bus" ]; do kill -0 $bus; done
"$polkitd" --no-debug & polkit=$!
until busctl --system status org.freedesktop.PolicyKit1 >/dev/null 2>&1; do kill -0 $polkit; done
setpriv --reuid=4242 --regid=4242 --clear-groups sleep infinity & agent=$!
setpriv --reuid=4243 --regid=4243 --clear-groups sleep infinity & other=$!
for action; do
  if pkcheck --action-id "$action" --process $agent >/dev/null 2>&1; then echo "agent $action"; fi
  if pkcheck --action-id "$action" --process $other >/dev/null 2>&1; then echo "somebody $action"; fi
done
"""
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={folder}/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/>
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that polkit's own user can enter, as pytest's is not."""
    with TemporaryDirectory(prefix="moe2-polkit-") as made:
        yield Path(made)


def test_polkit_lets_the_agents_user_suspend_and_nothing_else(folder: Path) -> None:
    """Of all that logind can be asked for, by this user and by another one."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    if POLKITD is None or not POLICY.exists() or any(shutil.which(tool) is None for tool in TOOLS):
        pytest.skip(f"needs polkitd with logind's actions, and {', '.join(TOOLS)}")
    (folder / "bus.conf").write_text(BUS.format(folder=folder))
    actions = re.findall(r'<action id="([^"]+)"', POLICY.read_text())
    # Actions that everybody may, or may while at the machine, are not what the rule is about.
    assert SUSPEND in actions
    assert len(actions) > 20
    asked = subprocess.run(
        [
            "unshare",
            "--mount",
            "bash",
            "-c",
            ASK,
            "ask",
            folder,
            CHECKOUT / "systemd/polkit.rules",
            POLKITD,
            *actions,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "Operation not permitted" in asked.stderr and not asked.stdout:
        pytest.skip(f"no mount namespace can be made here: {asked.stderr.strip()}")
    allowed: dict[str, set[str]] = {who: set() for who in ("agent", "somebody")}
    for line in asked.stdout.splitlines():
        who, action = line.split()
        allowed[who].add(action)
    assert allowed["agent"] - allowed["somebody"] == {SUSPEND}, asked.stderr
