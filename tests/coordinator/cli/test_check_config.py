"""`moe2-coordinator check-config`: what a start would miss beside the configuration."""

from __future__ import annotations

from pathlib import Path
from time import time
from typing import Any

import pytest

from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.standby import IdlePower, Standby
from moe2.common.status import AgentRow
from moe2.coordinator.__main__ import main
from moe2.coordinator.provisioning.figures import fleet_of
from moe2.coordinator.provisioning.state_files import FleetFile
from tests.coordinator.receipts import agent_row


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[agents]\ntoken_file = "{folder}/token"', "{folder}/token: the token cannot be read"),
        ('[api.tls]\ncertificate = "{folder}/a.pem"\nkey = "{folder}/a.key"', "api.tls: "),
        ('[selection]\ngate = "{folder}/gate.safetensors"', "selection.gate: "),
    ],
)
def test_a_file_without_which_it_would_not_start_is_a_fault(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, and is no fault in the configuration of another host."""
    config = tmp_path / "coordinator.toml"
    config.write_text(f'[coordinator]\nstate_dir = "{tmp_path}"\n' + text.format(folder=tmp_path))
    argv = ["moe2-coordinator", "check-config", "--config", str(config)]
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78
    assert told.format(folder=tmp_path) in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*argv, "--without-files"])
    with pytest.raises(SystemExit) as good:
        main()
    assert not good.value.code


def host(name: str, power_w: float | None) -> AgentRow:
    """A host that draws so much while it waits with its model in memory."""
    idle = () if power_w is None else (IdlePower(power_w=power_w, models=("llama",)),)
    expert = ExpertReport(model="llama", state=ExpertState.READY, context_tokens=64, slots=1)
    return agent_row(agent_id=f"id-of-{name}", agent_name=name, experts=(expert,), standby=Standby(idle=idle))


@pytest.mark.parametrize(
    ("hosts", "limits", "told"),
    [
        (
            (("pc", 52.0),),
            "average_power_w = 40",
            "awake draws 52 W while nobody asks, and 40 W are allowed. Allow 52 W.",
        ),
        ((("pc", 52.0), ("blind", None)), "average_power_w = 40", "What blind draws is unmeasured, and comes on top."),
        ((("pc", None),), "average_power_w = 40", "whether 40 W are enough is not known: what pc draws"),
        ((("pc", 52.0),), 'pinned = ["pd"]', "no agent is called pd"),
        ((("pc", 52.0),), 'average_power_w = 60\npinned = ["pc"]', None),
        (None, "average_power_w = 40", "whether the fleet keeps these limits is not known: no coordinator runs"),
        (None, "", None),
    ],
)
def test_limits_on_who_is_awake_are_judged_by_what_was_known_last(
    hosts: Any, limits: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """While no coordinator runs: what contradicts, with its correction, and what nobody knows; else it is good."""
    config = tmp_path / "coordinator.toml"
    folder = f'state_dir = "{tmp_path}"\nsocket = "{tmp_path}/socket"'
    config.write_text(f"[coordinator]\n{folder}\n[provisioning]\n{limits}\n")
    if hosts is not None:
        rows = tuple(host(*one) for one in hosts)
        FleetFile(tmp_path).write(fleet_of(rows, lambda _: {}), rows, time() - 7200.0)
    monkeypatch.setenv("COLUMNS", "600")
    argv = ["moe2-coordinator", "check-config", "--without-files", "--config", str(config)]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr()
    assert (": good. " in said.out) == (told is None)
    assert (told or "") in said.err
    assert bool(said.err) == (told is not None)
    if hosts is not None and told is not None:
        assert "By what a coordinator knew 2 h 0 min ago." in said.err
