"""`moe2-coordinator evaluate`: what is wrong with its arguments is told before PyTorch is waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moe2.coordinator import __main__ as program


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--outcomes", "none.jsonl"), "none.jsonl"),
        (("--answers", "none.jsonl"), "none.jsonl"),
        (("--outcomes", "none.jsonl", "--fifth", "first"), "--fifth first"),
        (("--outcomes", "none.jsonl", "--fifth", "all"), "--fifth all"),
        (("--outcomes", "none.jsonl", "--seeds", "0"), "--seeds"),
        (("--outcomes", "none.jsonl", "--hosts", "a"), "--hosts"),
    ],
)
def test_a_wrong_argument_is_told_without_pytorch(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What needs PyTorch cannot be imported here, and is not missed."""
    for name in ("study", "consensus"):
        monkeypatch.setitem(sys.modules, f"moe2.coordinator.training.evaluate.{name}", None)
    monkeypatch.setattr(sys, "argv", ["moe2-coordinator", "evaluate", *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert told in said
    assert "package" not in said
