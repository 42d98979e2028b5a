"""The command `moe2-coordinator models`, as far as it needs no fleet."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.status import ModelOrderRow, PushRow
from moe2.coordinator.cli import models


@pytest.mark.parametrize("command", ["push", "order"])
def test_whoever_interrupts_a_command_is_told_that_its_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """Ctrl-C while it waits ends the command, and nothing at the coordinator."""
    push = PushRow(
        command_id="c",
        file="m.gguf",
        sha256="ab" * 32,
        agent_id="id-1",
        host="one",
        state="sending",
        done_bytes=1,
        size_bytes=2,
        given_unix_s=0.0,
    )
    given = ModelOrderRow(
        command_id="c", verb="add", model="m", agent_id="id-1", host="one", state="running", given_unix_s=0.0
    )

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_pushes", lambda *_, **__: (push,))
    monkeypatch.setattr(models, "_rows", lambda *_: (given,))
    monkeypatch.setattr("moe2.coordinator.cli.models.time.sleep", interrupted)
    wait = {
        "push": lambda: models.push_to_its_end(tmp_path, (push,)),
        "order": lambda: models.orders_to_their_ends(tmp_path, (given,)),
    }
    with pytest.raises(KeyboardInterrupt):
        wait[command]()
    assert capsys.readouterr().err == (
        "It goes on without this command; `moe2-coordinator models show` tells how far it is.\n"
    )
