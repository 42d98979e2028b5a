"""Files that a start needs: which faults are told, and what is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.errors import ConfigError, Moe2Error
from moe2.common.terminal.needed_files import Needed, check_files


def _fails(error: Moe2Error) -> Needed:
    def load() -> None:
        raise error

    return Needed("api.tls", (None,), load)


def test_all_faults_are_told_with_their_settings() -> None:
    """Not only the first one; an error's remedy comes along."""
    with pytest.raises(ConfigError) as refused:
        check_files([_fails(Moe2Error("It is no key.", remedy="Name one.")), _fails(ConfigError(["x: y", "z: w"]))])
    assert refused.value.faults == ["api.tls: It is no key. Name one.", "x: y", "z: w"]


def test_what_may_not_be_read_is_said_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service's user may read it, so that it is no fault."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    check_files([Needed("agents.token_file", (tmp_path / "t",), lambda: pytest.fail("it was loaded"))])
    said = " ".join(capsys.readouterr().err.split())
    assert "agents.token_file: whether it can be used is not known, as you may not read" in said
