"""install.sh and the units in a system that was really booted: from nothing to an answer, an upgrade, and back.

The tests go in order: each finds what those before it left. One system serves all of them, because booting and
installing take a minute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.install.machine import CHECKOUT_INSIDE as CHECKOUT
from tests.install.machine import MODEL_INSIDE as MODEL
from tests.install.machine import WHEELS_OPTION as WHEELS
from tests.install.machine import Machine, prepared_machine

pytestmark = [pytest.mark.slow, pytest.mark.systemd, pytest.mark.timeout(1800)]

UNITS = ("moe2-coordinator", "moe2-agent")
# Asks the API inside, where there is no curl.
ASK = """
import json, urllib.request
body = {"model": "moe2", "max_tokens": 16, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with prepared_machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    return files(machine)


@pytest.fixture(scope="module")
def installed(machine: Machine, before: set[str]) -> Machine:
    """With a coordinator and an agent, as a sysadmin would do it."""
    assert before
    install(machine, "coordinator")
    agent = ("agent", "--coordinator", "ws://127.0.0.1:8081", "--token-file", "/etc/moe2/agent-token")
    install(machine, *agent, "--model", MODEL, "--name", "edge", "--profile", "agx-orin-maxn")
    machine.wait_for('moe2-coordinator status --json | grep -q \'"state":"ready"\'')
    return machine


def files(machine: Machine) -> set[str]:
    """Everything on the machine's disk that could be left behind; journal and user database are the system's."""
    found = machine.shell("find /etc /opt /usr /var /run /root /home -xdev -not -path '/var/log/journal/*'")
    passing = re.compile(r"/run/|/var/tmp/systemd-private|/etc/(passwd|group|shadow|gshadow)-?$")
    return {path for path in found.splitlines() if not passing.match(path)}


def install(machine: Machine, command: str, *arguments: str, checkout: str = CHECKOUT) -> str:
    return machine.output(f"{checkout}/install.sh", command, *arguments, *WHEELS)


def shown(machine: Machine, unit: str, name: str) -> str:
    return machine.output("systemctl", "show", "--property", name, "--value", unit)


def answer(machine: Machine) -> dict[str, Any]:
    machine.wait_for('moe2-coordinator status --json | grep -q \'"state":"ready"\'')
    told: dict[str, Any] = json.loads(machine.output("python3", "-c", ASK))
    return told


def identity(machine: Machine) -> str:
    status: dict[str, str] = json.loads(machine.output("moe2-agent", "status", "--json"))
    return status["agent_id"]


def test_both_units_are_active_and_start_at_boot(installed: Machine) -> None:
    """As systemd sees it, with nothing failed."""
    for unit in UNITS:
        assert shown(installed, unit, "ActiveState") == "active"
        assert shown(installed, unit, "UnitFileState") == "enabled"
        assert shown(installed, unit, "NRestarts") == "0"
    assert installed.output("systemctl", "is-system-running") == "running"


def test_a_prompt_is_answered(installed: Machine) -> None:
    """Through the coordinator's API, by the real model, with a receipt."""
    told = answer(installed)
    assert told["choices"][0]["message"]["content"]
    assert told["usage"]["completion_tokens"] > 0
    assert told["moe2"]["energy"]["joules"] > 0


def test_the_status_of_both_is_read(installed: Machine) -> None:
    """By the commands in PATH, with exit status 0: healthy."""
    assert "name=edge" in installed.output("moe2-agent", "status")
    assert "agent name=edge connected=yes" in installed.output("moe2-coordinator", "status")


def test_the_group_moe2_may_read_the_status_and_others_may_not(installed: Machine) -> None:
    """The local socket's rights; who is refused is told what to do."""
    for unit in UNITS:
        assert installed.command(unit, "status", user="nobody", group="moe2").returncode == 0
        refused = installed.command(unit, "status", user="nobody")
        assert refused.returncode == 2
        assert "Join the group moe2" in refused.stderr


def test_the_daemons_run_as_users_of_their_own(installed: Machine) -> None:
    """With no capability, and with the token as a credential: the file is root's alone."""
    for unit in UNITS:
        status = installed.shell(f"cat /proc/$(systemctl show -P MainPID {unit})/status")
        uid = installed.output("id", "--user", unit)
        assert re.search(rf"^Uid:\s+{uid}\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert installed.output("stat", "--format=%U %a", "/etc/moe2/agent-token") == "root 600"


def test_what_root_does_in_the_coordinators_state_stays_the_daemons(installed: Machine) -> None:
    """Keys, tokens and the ledger, beside the running daemon and while it is stopped."""
    for action in ("stop", "start"):
        for command in ("keys create", "agents enrol-token create"):
            installed.shell(f"moe2-coordinator {command} {action}")
        assert "sum group=" in installed.shell("moe2-coordinator ledger")
        installed.shell(f"systemctl {action} moe2-coordinator")
    assert installed.shell("moe2-coordinator keys list").count("state=active") == 2
    assert installed.shell("find /var/lib/moe2-coordinator/ ! -user moe2-coordinator") == ""
    assert answer(installed)["choices"]


@pytest.mark.parametrize(("unit", "most"), [("moe2-coordinator", 2.0), ("moe2-agent", 3.5)])
def test_the_exposure_of_the_running_unit_is_low(installed: Machine, unit: str, most: float) -> None:
    """systemd's own measure, of the unit as it is loaded, drop-ins included."""
    rated = installed.output("systemd-analyze", "security", "--no-pager", unit)
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", rated)
    assert level is not None
    assert float(level[1]) <= most


def test_the_journal_has_priorities_and_fields(installed: Machine) -> None:
    """A warning is found by its priority; its message is one JSON object."""
    started = installed.output("journalctl", "-u", "moe2-agent", "-o", "json", "-p", "info", "--grep", "agent_started")
    entry = json.loads(started.splitlines()[-1])
    assert entry["PRIORITY"] == "6"
    assert entry["SYSLOG_IDENTIFIER"] == "moe2-agent"
    assert json.loads(entry["MESSAGE"])["agent_name"] == "edge"
    installed.shell("main=$(systemctl show -P MainPID moe2-agent); kill -9 $(cat /proc/$main/task/*/children)")
    installed.wait_for("journalctl -u moe2-agent -p warning --grep engine_exited --quiet >/dev/null")


@pytest.mark.parametrize("unit", UNITS)
def test_a_killed_daemon_is_started_again(installed: Machine, unit: str) -> None:
    """kill -9, and it answers as before."""
    pid, restarts = shown(installed, unit, "MainPID"), int(shown(installed, unit, "NRestarts"))
    installed.shell(f"kill -9 {pid}")
    installed.wait_for(f"[ $(systemctl show -P NRestarts {unit}) = {restarts + 1} ] && systemctl is-active -q {unit}")
    assert shown(installed, unit, "MainPID") != pid
    assert answer(installed)["choices"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_daemon_that_hangs_is_started_again(installed: Machine, unit: str) -> None:
    """The watchdog sees that nobody feeds it."""
    # Half a minute is for hosts; here it would only make the test slower.
    installed.shell(
        f"mkdir -p /run/systemd/system/{unit}.service.d;"
        f"printf '[Service]\\nWatchdogSec=4s\\n' >/run/systemd/system/{unit}.service.d/watchdog.conf;"
        f"systemctl daemon-reload; systemctl restart {unit}"
    )
    installed.shell(f"kill -STOP $(systemctl show -P MainPID {unit})")
    installed.wait_for(f"[ $(systemctl show -P NRestarts {unit}) != 0 ] && systemctl is-active -q {unit}")
    installed.output("journalctl", "-u", unit, "--grep", "Watchdog timeout", "--quiet")
    installed.shell(f"rm -r /run/systemd/system/{unit}.service.d; systemctl daemon-reload; systemctl restart {unit}")


def test_a_reload_applies_a_changed_setting(installed: Machine) -> None:
    """systemctl reload, and the same process goes on with it."""
    for unit, role in zip(UNITS, ("coordinator", "agent"), strict=True):
        pid = shown(installed, unit, "MainPID")
        installed.shell(f"sed -i 's/^# level = .*/level = \"debug\"/' /etc/moe2/{role}.toml; systemctl reload {unit}")
        installed.wait_for(f"journalctl -u {unit} --grep debug.*configuration_reloaded --quiet >/dev/null")
        assert shown(installed, unit, "MainPID") == pid


def test_a_missing_token_is_told_by_the_daemon_and_not_tried_again(installed: Machine) -> None:
    """systemd starts it without the credential, and its exit status says that its configuration is at fault."""
    installed.output("mv", "/etc/moe2/agent-token", "/root/agent-token")
    assert installed.command("systemctl", "restart", "moe2-coordinator").returncode != 0
    assert shown(installed, "moe2-coordinator", "ExecMainStatus") == "78"
    assert shown(installed, "moe2-coordinator", "NRestarts") == "0"
    installed.output("journalctl", "-u", "moe2-coordinator", "--grep", "/etc/moe2/agent-token", "--quiet")
    installed.shell("mv /root/agent-token /etc/moe2/agent-token; systemctl restart moe2-coordinator")


def test_the_agents_user_may_suspend_and_nothing_else_where_its_configuration_wants_it(installed: Machine) -> None:
    """By polkit's own word on the running agent, which can ask logind from within its sandbox."""
    installed.shell("sed -i 's/^# allow_suspend = false/allow_suspend = true/' /etc/moe2/agent.toml")
    install(installed, "upgrade")
    installed.shell("systemctl restart moe2-agent")
    installed.wait_for("moe2-agent status --json | grep -q suspend_fault")
    # A container cannot be suspended, and logind says so: the agent has reached it.
    fault = json.loads(installed.shell("moe2-agent status --json || true"))["standby"]["suspend_fault"]
    assert "firmware or kernel" in fault
    pid = installed.shell("systemctl show -p MainPID --value moe2-agent").strip()
    asked = "pkcheck --process {} --action-id org.freedesktop.login1.{} && echo yes || echo no"
    answers = {
        action: installed.shell(asked.format(pid, action)).split()[-1]
        for action in (
            "suspend",
            "suspend-multiple-sessions",
            "suspend-ignore-inhibit",
            "hibernate",
            "power-off",
            "reboot",
        )
    }
    assert answers.pop("suspend") == "yes"
    assert set(answers.values()) == {"no"}
    installed.shell("sed -i 's/^allow_suspend = true/# allow_suspend = false/' /etc/moe2/agent.toml")
    install(installed, "upgrade")
    installed.shell("systemctl restart moe2-agent")


def test_installing_again_changes_nothing(installed: Machine) -> None:
    """The daemons are not even started again."""
    pids = [shown(installed, unit, "MainPID") for unit in UNITS]
    assert "nothing; everything was as it should be" in install(installed, "coordinator")
    assert "nothing; everything was as it should be" in install(installed, "agent")
    assert [shown(installed, unit, "MainPID") for unit in UNITS] == pids


def test_the_doctor_finds_nothing_to_mend(installed: Machine) -> None:
    """Exit status 0."""
    installed.wait_for("moe2-coordinator status >/dev/null && moe2-agent status >/dev/null")
    assert "✗" not in installed.output(f"{CHECKOUT}/install.sh", "doctor")


def test_an_upgrade_keeps_configuration_and_identity(installed: Machine) -> None:
    """A newer checkout, the same agent."""
    known = identity(installed)
    configuration = installed.shell("sha256sum /etc/moe2/*")
    new = installed.add_checkout("/srv/newer") / "common/__init__.py"
    new.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.0.0"', new.read_text()))
    install(installed, "upgrade", checkout="/srv/newer")
    assert installed.output("moe2-agent", "--version") == "moe2-agent 99.0.0"
    assert json.loads(installed.output("moe2-coordinator", "status", "--json"))["version"] == "99.0.0"
    assert identity(installed) == known
    assert installed.shell("sha256sum /etc/moe2/*") == configuration
    assert answer(installed)["choices"]


def test_an_upgrade_that_does_not_come_up_is_taken_back(installed: Machine) -> None:
    """A release that dies when it should say that it is ready; the former one answers again."""
    broken = installed.add_checkout("/srv/broken") / "common/sdnotify.py"
    with broken.open("a") as file:
        file.write(
            "\n\ndef _broken(*_: object) -> None:\n    raise RuntimeError('broken')\n\n\nNotifier.notify = _broken\n"
        )
    failed = installed.command("/srv/broken/install.sh", "upgrade", *WHEELS)
    assert failed.returncode == 1
    assert "the former one is in use again" in failed.stderr
    assert installed.output("moe2-agent", "--version") == "moe2-agent 99.0.0"
    for unit in UNITS:
        assert shown(installed, unit, "ActiveState") == "active"
    assert answer(installed)["choices"]


def test_uninstalling_leaves_configuration_and_state_alone(installed: Machine, before: set[str]) -> None:
    """No program, no unit; what the next installation will find."""
    installed.output(f"{CHECKOUT}/install.sh", "uninstall")
    left = files(installed) - before
    assert left
    assert all(path.startswith(("/etc/moe2", "/var/lib/moe2-")) for path in left)
    assert "/etc/moe2/agent.toml" in left
    assert "/var/lib/moe2-agent/agent-id" in left
    assert not installed.command("systemctl", "cat", "moe2-agent").stdout


def test_purging_leaves_nothing(installed: Machine, before: set[str]) -> None:
    """No file, no user, no group, no failed unit."""
    installed.output(f"{CHECKOUT}/install.sh", "uninstall", "--purge")
    assert files(installed) - before == set()
    assert "moe2" not in installed.shell("getent passwd; getent group")
    assert installed.output("systemctl", "is-system-running") == "running"
