"""`moe2-coordinator check-config`: what a start would miss beside the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.coordinator.__main__ import main


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
