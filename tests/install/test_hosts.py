"""install.sh on a host: what it writes and never overwrites, what it does twice, and how it fails.

Slow, because each test runs the whole script several times.
"""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from moe2.common.health import HealthWarning, Severity
from moe2.common.terminal.parts import warning_line
from tests.install.fakehost import FakeHost, changed

pytestmark = pytest.mark.slow


def configuration(host: FakeHost, role: str) -> dict[str, Any]:
    return tomllib.loads((host.root / f"etc/moe2/{role}.toml").read_text())


def mode(host: FakeHost, path: str) -> int:
    return stat.S_IMODE((host.root / path).stat().st_mode)


# --- Installing -------------------------------------------------------------------------------------------------------


def test_a_coordinator_gets_a_token_that_only_root_can_read(host: FakeHost) -> None:
    """A fresh one, and the summary says how to bring it to the agents."""
    installed = host.install("coordinator")
    assert installed.returncode == 0, installed.stderr
    token = (host.root / "etc/moe2/agent-token").read_text().strip()
    assert len(token) >= 40
    assert mode(host, "etc/moe2/agent-token") == 0o600
    assert "bring /etc/moe2/agent-token over" in installed.stdout
    assert "--coordinator wss://edge-01:8081 --ca-file ca.pem --token-file agent-token" in installed.stdout
    assert token not in installed.stdout


def test_two_coordinators_have_different_tokens(host: FakeHost) -> None:
    """Made of random bytes, not of a constant."""
    host.install("coordinator")
    path = host.root / "etc/moe2/agent-token"
    first = path.read_text()
    path.unlink()
    host.install("coordinator")
    assert path.read_text() != first


def test_an_agent_is_configured_as_told(host: FakeHost) -> None:
    """Its coordinator, name, simulated host and models; the rest is the packaged example."""
    second = host.model("Other Model.GGUF")
    installed = host.install_agent(second, "--name", "edge", "--profile", "agx-orin-maxn")
    assert installed.returncode == 0, installed.stderr
    found = configuration(host, "agent")
    assert found["coordinator"]["url"] == "ws://10.0.0.1:8081"
    assert found["agent"]["name"] == "edge"
    assert found["sensors"]["profile"] == "agx-orin-maxn"
    assert [model["name"] for model in found["models"]] == ["tiny.q4_k_m", "other-model"]
    assert (host.root / "etc/moe2/agent-token").read_text() == "from-the-coordinator\n"
    assert mode(host, "etc/moe2/agent-token") == 0o600


def test_the_coordinator_s_ca_goes_where_the_agent_can_read_it(host: FakeHost) -> None:
    """A certificate is no secret, but a home folder is not seen by the service."""
    ca = host.file("srv/ca.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n")
    assert host.install_agent("--ca-file", ca).returncode == 0
    assert configuration(host, "agent")["coordinator"]["ca_file"] == "/etc/moe2/ca.pem"
    assert (host.root / "etc/moe2/ca.pem").read_text() == ca.read_text()
    assert mode(host, "etc/moe2/ca.pem") == 0o644


def test_a_model_that_the_service_would_not_see_is_copied(host: FakeHost) -> None:
    """The units hide /tmp and home folders; the test's files are below one of these."""
    host.install_agent()
    [model] = configuration(host, "agent")["models"]
    if model["path"] == str(host.root / "srv/tiny.Q4_K_M.gguf"):
        pytest.skip("this test's folder is neither below /tmp nor a home folder")
    assert model["path"] == "/var/lib/moe2-agent/models/tiny.Q4_K_M.gguf"
    assert (host.root / "var/lib/moe2-agent/models/tiny.Q4_K_M.gguf").read_bytes() == b"GGUF and more"


def test_models_go_to_the_gpu_where_llama_cpp_has_it(host: FakeHost) -> None:
    """All layers; the example's default is none."""
    host.jetson()
    host.cuda()
    assert host.install_agent().returncode == 0
    assert configuration(host, "agent")["models"][0]["gpu_layers"] == -1


def test_the_units_are_enabled_and_started(host: FakeHost) -> None:
    """After systemd was told about them."""
    host.install_agent()
    calls = [call for call in host.calls() if call.startswith("systemctl")]
    assert calls == [
        "systemctl: daemon-reload",
        "systemctl: enable moe2-agent.service",
        "systemctl: restart moe2-agent.service",
    ]


def test_only_groups_that_exist_are_given_to_the_agent(host: FakeHost) -> None:
    """A group that does not would keep the unit from starting."""
    host.install_agent()
    dropin = (host.root / "etc/systemd/system/moe2-agent.service.d/10-groups.conf").read_text()
    assert "SupplementaryGroups=video\n" in dropin


def test_an_older_systemd_is_not_told_what_it_does_not_know(host: FakeHost) -> None:
    """It would complain at every reload. The back-off came with 254."""
    host.install("coordinator")
    unit = (host.root / "etc/systemd/system/moe2-coordinator.service").read_text()
    assert "\nRestartSec=" in unit
    assert "\nRestartSteps=" not in unit


def test_the_systemd_of_jetpack_5_is_not_told_of_credentials(host: FakeHost) -> None:
    """245 has none; the token is the group's there, so that the daemons can read it."""
    host.program("systemctl", 'case "$*" in --version) echo "systemd 245 (245.4)";; *) exit 0;; esac')
    host.program("chgrp", 'echo "chgrp: $*" >> "$CALLS"')
    host.install("coordinator")
    unit = (host.root / "etc/systemd/system/moe2-coordinator.service").read_text()
    keys = {line.split("=")[0] for line in unit.splitlines() if "=" in line and not line.startswith("#")}
    assert not keys & {"LoadCredential", "SetCredential", "ProtectProc", "ProcSubset", "PrivateIPC", "RestartSteps"}
    assert {"ProtectSystem", "NoNewPrivileges", "User"} <= keys
    assert mode(host, "etc/moe2/agent-token") == 0o640


def test_wheels_from_a_folder_need_no_network(host: FakeHost) -> None:
    """pip looks nowhere else, and llama.cpp is not compiled."""
    wheels = host.file("srv/wheels/llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl", "").parent
    assert host.install_agent("--wheels", wheels).returncode == 0
    calls = [call for call in host.calls() if call.startswith("pip: ")]
    [installing] = [call for call in calls if "pip install" in call]
    assert f"--no-index --find-links {wheels}" in installing
    assert not [call for call in calls if "pip wheel" in call]


def test_both_daemons_share_one_release(host: FakeHost) -> None:
    """The second one's installation brings the extras of both, and starts the first one again with it."""
    host.install("coordinator")
    host.calls()
    assert host.install_agent().returncode == 0
    calls = host.calls()
    assert any(".[coordinator,agent]" in call for call in calls)
    assert "systemctl: restart moe2-coordinator.service" in calls


# --- Twice ------------------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(host: FakeHost) -> None:
    """No file is written, nothing is installed, nothing started again."""
    host.install("coordinator")
    host.install_agent()
    host.calls()
    kept = [path for path in host.files() if not path.endswith("install.log") and (host.root / path).is_file()]
    before = {path: (host.root / path).read_bytes() for path in kept}
    again = host.install("coordinator")
    assert again.returncode == 0
    assert "nothing; everything was as it should be" in again.stdout
    assert host.calls() == []
    assert {path: (host.root / path).read_bytes() for path in before} == before


def test_configuration_is_never_overwritten(host: FakeHost) -> None:
    """Neither by another installation nor by an upgrade; options that come too late are told to be."""
    host.install_agent()
    mine = "# mine\n" + (host.root / "etc/moe2/agent.toml").read_text()
    host.file("etc/moe2/agent.toml", mine)
    host.file("etc/moe2/agent-token", "mine\n")
    again = host.install_agent("--name", "other")
    changed(host)
    assert host.install("upgrade").returncode == 0
    assert "is kept as it is: --coordinator, --ca-file, --model, --name and --profile have no effect" in again.stderr
    assert "is another than" in again.stderr
    assert (host.root / "etc/moe2/agent.toml").read_text() == mine
    assert (host.root / "etc/moe2/agent-token").read_text() == "mine\n"


def test_an_agent_goes_on_without_the_token_that_it_no_longer_needs(host: FakeHost) -> None:
    """Enrolled, its operator has removed the file; another run is no reason to ask for it."""
    host.install_agent()
    (host.root / "etc/moe2/agent-token").unlink()
    assert host.install("agent").returncode == 0
    assert not (host.root / "etc/moe2/agent-token").exists()


# --- What can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--coordinator", "http://a:1"), "name the coordinator: --coordinator ws://HOST:8081"),
        (("--coordinator", "ws://a:1"), "name what to serve: --model FILE.gguf"),
        (("--coordinator", "ws://a:1", "--model", "/none.gguf"), "name the coordinator's enrolment token"),
        (("--model",), "--model needs a value"),
        (("--modle", "a"), "agent does not know --modle"),
        (("--purge",), "agent does not know --purge"),
    ],
)
def test_a_mistaken_option_is_named(host: FakeHost, arguments: tuple[str, ...], message: str) -> None:
    """Before anything is changed."""
    before = host.files()
    refused = host.install("agent", *arguments)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert host.files() == before


def test_a_file_that_is_no_model_is_refused(host: FakeHost) -> None:
    """A page with an error message is downloaded easily."""
    page = host.file("srv/page.gguf", "<html>")
    refused = host.install_agent("--model", page)
    assert refused.returncode == 1
    assert "is no GGUF file" in refused.stderr


def test_a_first_configuration_that_is_refused_is_not_kept(host: FakeHost) -> None:
    """An option was mistaken, such as a simulated host that does not exist; the next try has another."""
    host.fault("agent-check-config")
    failed = host.install_agent()
    assert failed.returncode == 1
    assert "✗ Writing /etc/moe2/agent.toml failed" in failed.stderr
    assert not list((host.root / "etc/moe2").glob("agent.toml*"))
    (host.faults / "agent-check-config").unlink()
    assert host.install_agent().returncode == 0


def test_a_failing_step_is_told_with_its_last_words(host: FakeHost) -> None:
    """Which step, what it said, where the whole log is."""
    host.fault("pip")
    failed = host.install("coordinator")
    assert failed.returncode == 1
    assert "✗ Installing moe2[coordinator] 0.1.0 failed" in failed.stderr
    assert "No matching distribution" in failed.stderr
    assert "opt/moe2/install.log" in failed.stderr


def test_an_installation_that_failed_can_be_done_again(host: FakeHost) -> None:
    """What is left of the first try is no obstacle."""
    host.fault("pip")
    host.install("coordinator")
    (host.faults / "pip").unlink()
    assert host.install("coordinator").returncode == 0


# --- Upgrade ----------------------------------------------------------------------------------------------------------


def test_an_upgrade_needs_something_to_upgrade(host: FakeHost) -> None:
    """And says how to begin."""
    refused = host.install("upgrade")
    assert refused.returncode == 1
    assert "begin with ./install.sh coordinator" in refused.stderr


def test_an_upgrade_puts_a_new_release_beside_the_old_one(host: FakeHost) -> None:
    """The daemon is started again; the former release stays, older ones go."""
    host.install("coordinator")
    releases = [host.release()]
    for version in ("0.2.0", "0.3.0"):
        changed(host, version)
        assert host.install("upgrade").returncode == 0
        releases.append(host.release())
    assert [release.split("-")[0] for release in releases] == ["0.1.0", "0.2.0", "0.3.0"]
    assert sorted(path.name for path in (host.root / "opt/moe2/releases").iterdir()) == sorted(releases[1:])
    assert host.calls()[-1] == "systemctl: restart moe2-coordinator.service"


def test_an_upgrade_that_does_not_come_up_is_taken_back(host: FakeHost) -> None:
    """The former release and its unit are in use again, and the message says why."""
    host.install("coordinator")
    former = host.release()
    unit = host.root / "etc/systemd/system/moe2-coordinator.service"
    before = unit.read_text()
    changed(host)
    with (host.checkout / "systemd/moe2-coordinator.service").open("a") as file:
        file.write("# new\n")
    # The new release's name is not known before: it is found out by a dry run.
    name = host.install("upgrade", "--dry-run").stdout.split("/releases/")[1].split()[0]
    host.fault(f"start-releases/{name}")
    failed = host.install("upgrade")
    assert failed.returncode == 1
    assert "does not come up with the new release, so the former one is in use again" in failed.stderr
    assert host.release() == former
    assert unit.read_text() == before


def test_an_upgrade_that_refuses_the_configuration_is_not_put_to_use(host: FakeHost) -> None:
    """Nothing is stopped for it."""
    host.install("coordinator")
    former = host.release()
    changed(host)
    host.fault("coordinator-check-config")
    host.calls()
    failed = host.install("upgrade")
    assert failed.returncode == 1
    assert "the configuration is refused; nothing was changed" in failed.stderr
    assert host.release() == former
    assert not [call for call in host.calls() if call.startswith("systemctl")]


# --- Uninstall --------------------------------------------------------------------------------------------------------


def test_uninstalling_leaves_configuration_and_state(host: FakeHost) -> None:
    """These, an administrator's drop-in included, and nothing else."""
    before = host.files()
    host.install("coordinator")
    host.file("var/lib/moe2-coordinator/feedback.jsonl", "{}\n")
    host.file("etc/systemd/system/moe2-coordinator.service.d/override.conf", "[Service]\n")
    removed = host.install("uninstall")
    assert removed.returncode == 0
    assert host.files() - before == {
        "etc/moe2/agent-token",
        "etc/moe2/coordinator.toml",
        "etc/systemd/system/moe2-coordinator.service.d/override.conf",
        "var/lib/moe2-coordinator/feedback.jsonl",
    }
    assert "uninstall --purge removes them as well" in removed.stdout
    assert not [call for call in host.calls() if "userdel" in call]


def test_purging_leaves_nothing(host: FakeHost) -> None:
    """No file, no folder, no user."""
    before = set(host.root.rglob("*"))
    host.install("coordinator")
    host.install_agent()
    host.program("getent", "exit 0")
    host.calls()
    assert host.install("uninstall", "--purge").returncode == 0
    left = {str(path.relative_to(host.root)) for path in set(host.root.rglob("*")) - before if not path.is_dir()}
    assert left == {"srv/token", "srv/tiny.Q4_K_M.gguf"}
    assert not list(host.root.rglob("*moe2*"))
    calls = host.calls()
    assert {"userdel: moe2-agent", "userdel: moe2-coordinator", "groupdel: moe2"} <= set(calls)


# --- The right to suspend ---------------------------------------------------------------------------------------------

RULE = "etc/polkit-1/rules.d/50-moe2-agent.rules"
PKLA = "etc/polkit-1/localauthority/50-local.d/50-moe2-agent.pkla"


def may_suspend(host: FakeHost, *folders: str) -> None:
    """An installed agent whose configuration wants to suspend its host, which has these folders of polkit's."""
    for folder in folders:
        (host.root / folder).mkdir(parents=True)
    host.install_agent()
    path = host.root / "etc/moe2/agent.toml"
    path.write_text(path.read_text().replace("# allow_suspend = false", "allow_suspend = true"))


def test_without_being_asked_no_agent_may_suspend_its_host(host: FakeHost) -> None:
    """The configuration says so, or it is not."""
    (host.root / RULE).parent.mkdir(parents=True)
    assert host.install_agent().returncode == 0
    assert not (host.root / RULE).exists()


def test_an_agent_that_may_suspend_gets_a_rule_for_that_alone(host: FakeHost) -> None:
    """For its user and one action; polkit's folder keeps its rights, and a second run changes nothing."""
    may_suspend(host, str(Path(RULE).parent))
    (host.root / RULE).parent.chmod(0o700)
    installed = host.install_agent()
    assert "may suspend this host" in installed.stdout
    text = (host.root / RULE).read_text()
    assert re.findall(r"org\.[a-z0-9.-]+", text) == ["org.freedesktop.login1.suspend"]
    assert 'subject.user == "moe2-agent"' in text
    assert text.count("polkit.Result.YES") == 1
    assert (mode(host, str(Path(RULE).parent)), mode(host, RULE)) == (0o700, 0o644)
    assert "may suspend this host" not in host.install_agent().stdout


def test_an_older_polkit_gets_a_rule_that_it_can_read(host: FakeHost) -> None:
    """Ubuntu 22.04's, and so JetPack 6's, knows no rules in JavaScript."""
    may_suspend(host, str(Path(PKLA).parent))
    host.install_agent()
    lines = (host.root / PKLA).read_text().splitlines()
    assert "Identity=unix-user:moe2-agent" in lines
    assert [line for line in lines if line.startswith("Action=")] == ["Action=org.freedesktop.login1.suspend"]


def test_a_host_without_polkit_is_told_what_to_install(host: FakeHost) -> None:
    """The agent runs all the same, and refuses to suspend."""
    may_suspend(host)
    installed = host.install_agent()
    assert installed.returncode == 0
    assert "apt-get install polkitd" in installed.stdout


@pytest.mark.parametrize("how", ["configuration", "uninstall"])
def test_the_right_to_suspend_is_taken_back(host: FakeHost, how: str) -> None:
    """When the configuration no longer wants it, and with the rest."""
    may_suspend(host, str(Path(RULE).parent))
    host.install_agent()
    assert (host.root / RULE).exists()
    if how == "configuration":
        path = host.root / "etc/moe2/agent.toml"
        path.write_text(path.read_text().replace("allow_suspend = true", "allow_suspend = false"))
        host.install_agent()
    else:
        host.install("uninstall")
    assert not (host.root / RULE).exists()


# --- Doctor -----------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_a_good_installation_good(host: FakeHost) -> None:
    """Exit status 0."""
    host.install("coordinator")
    found = host.install("doctor")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "✓ moe2-coordinator.service is running and healthy" in found.stdout


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("etc/moe2/coordinator.toml", "./install.sh coordinator writes a new one"),
        ("etc/moe2/agent-token", "bring it from the coordinator's host"),
    ],
)
def test_the_doctor_says_what_to_do_about_what_is_missing(host: FakeHost, path: str, remedy: str) -> None:
    """Exit status 1, and the remedy."""
    host.install("coordinator")
    (host.root / path).unlink()
    (host.state / "moe2-coordinator.service").unlink()
    found = host.install("doctor")
    assert found.returncode == 1
    assert remedy in found.stdout


def test_the_doctor_says_that_a_unit_is_not_running(host: FakeHost) -> None:
    """And where its log is."""
    host.install("coordinator")
    (host.state / "moe2-coordinator.service").unlink()
    found = host.install("doctor")
    assert found.returncode == 1
    assert "journalctl -u moe2-coordinator.service" in found.stdout


@pytest.mark.parametrize("severity", ["notice", "degraded"])
def test_the_doctor_tells_every_health_warning_with_its_remedy(host: FakeHost, severity: str) -> None:
    """A notice is nothing to mend, but worth knowing; what a shell would have to quote is shown as it is."""
    host.install("coordinator")
    warning = HealthWarning(
        code="keys_plaintext", severity=Severity(severity), message='Keys pass "in the clear".', remedy="Set [api.tls]."
    )
    host.says("coordinator-status", f"coordinator id=x\n{warning_line(warning)}\nagent name=edge\n")
    found = host.install("doctor")
    assert '  ! keys_plaintext: Keys pass "in the clear".\n      → Set [api.tls].\n' in found.stdout
    assert "name=edge" not in found.stdout
    assert found.returncode == (severity == "degraded"), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("usable", "line", "code"),
    [
        ("true", "✓ the agent's service can use the GPU", 0),
        ("false", "✗ the agent's service cannot use the GPU", 1),
        ("null", None, 0),
    ],
)
def test_the_doctor_counts_what_the_agents_service_says_of_the_gpu(
    host: FakeHost, usable: str, line: str | None, code: int
) -> None:
    """What its own doctor finds with the service's rights; a host without a GPU is not told about one."""
    host.install_agent()
    host.says("agent-doctor", f'{{\n  "gpu_usable": {usable}\n}}\n')
    found = host.install("doctor")
    assert found.returncode == code, found.stdout + found.stderr
    told = [shown for shown in found.stdout.splitlines() if "the agent's service can" in shown]
    assert told == ([] if line is None else [line])
