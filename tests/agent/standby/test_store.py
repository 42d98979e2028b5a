"""What is kept of waiting."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from moe2.agent.energy.account import HostAccount
from moe2.agent.energy.comparison import AsleepPower
from moe2.agent.standby.keeper import Allowed, StandbyKeeper
from moe2.agent.standby.store import FILE_NAME, MAX_KEPT_S, StoredIdle, StoredStandby, load_standby, store_standby
from moe2.agent.standby.transitions import Measured, Transition
from moe2.common.energy import Quality, Scope
from moe2.common.errors import Moe2Error
from moe2.common.standby import IdlePower

NOW = 1_800_000_000.0
IDLE = StoredIdle(power_mode="MAXN", idle=IdlePower(power_w=52.0, models=("m",)), at_unix_s=NOW)
LOAD = Measured(transition=Transition.LOAD, model="m", duration_s=4.0, energy_j=180.0, at_unix_s=NOW)


def keeper(folder: Path, **allowed: float) -> StandbyKeeper:
    return StandbyKeeper(folder, Allowed(**allowed), wall=lambda: NOW + 60.0)  # type: ignore[arg-type]


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    """Idle powers and transitions, exactly."""
    stored = StoredStandby(idle=(IDLE,), transitions=(LOAD,))
    store_standby(tmp_path, stored)
    assert load_standby(tmp_path, NOW) == stored


def test_nothing_is_stored_on_a_new_host(tmp_path: Path) -> None:
    """That is no fault."""
    assert load_standby(tmp_path, NOW) == StoredStandby()


def test_what_is_too_old_is_forgotten(tmp_path: Path) -> None:
    """The host has been updated since."""
    store_standby(tmp_path, StoredStandby(idle=(IDLE,), transitions=(LOAD,)))
    assert load_standby(tmp_path, NOW + MAX_KEPT_S + 1) == StoredStandby()


@pytest.mark.parametrize(("measured_unix_s", "now_unix_s"), [(NOW, 1000.0), (NOW, 4_102_444_800.0), (1000.0, NOW)])
def test_a_clock_that_is_wrong_forgets_nothing(tmp_path: Path, measured_unix_s: float, now_unix_s: float) -> None:
    """A board without a battery starts in 1970, or in 2100; what it measures then, and what it had, is kept."""
    stored = StoredStandby(transitions=(msgspec.structs.replace(LOAD, at_unix_s=measured_unix_s),))
    store_standby(tmp_path, stored)
    assert load_standby(tmp_path, now_unix_s) == stored


@pytest.mark.parametrize(
    "content", ["", "[]", '{"idle": 3}', "x" * 2_000_000, '{"transitions": [{"transition": "fly"}]}']
)
def test_a_file_that_cannot_be_read_is_told_and_gone_without(tmp_path: Path, content: str) -> None:
    """The agent runs, and measures again."""
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(Moe2Error, match=r"standby\.json .*Remove it"):
        load_standby(tmp_path, NOW)
    restored = keeper(tmp_path)
    restored.restore()
    assert restored.report(HostAccount((), why_unmeasured=""), "MAXN").idle == ()


def test_a_restarted_agent_reports_what_was_measured_with_its_age(tmp_path: Path) -> None:
    """In the power mode that it was measured in, and no other."""
    store_standby(tmp_path, StoredStandby(idle=(IDLE,), transitions=(LOAD,)))
    restored = keeper(tmp_path)
    restored.restore()
    account = HostAccount((), why_unmeasured="")
    [idle] = restored.report(account, "MAXN").idle
    assert (idle.power_w, idle.models, idle.age_s) == (52.0, ("m",), 60.0)
    assert restored.report(account, "MODE_30W").idle == ()


def test_the_operators_watts_of_a_sleeping_host_are_an_estimate(tmp_path: Path) -> None:
    """No sensor of the host can measure them."""
    [idle] = keeper(tmp_path, asleep_w=2.5).report(HostAccount((), why_unmeasured=""), None).idle
    assert (idle.asleep, idle.power_w, idle.quality) == (True, 2.5, Quality.ESTIMATED)


def test_what_a_plug_measured_of_a_sleep_replaces_what_was_written(tmp_path: Path) -> None:
    """A measurement at the wall, with its doubt and its age, instead of the operator's estimate."""
    kept = keeper(tmp_path, asleep_w=2.5)
    kept.measured_asleep(AsleepPower(power_w=1.8, doubt_w=0.1, slept_s=3600.0))
    [idle] = kept.report(HostAccount((), why_unmeasured=""), None).idle
    assert (idle.power_w, idle.spread_w, idle.quality) == (1.8, 0.1, Quality.MEASURED_COUNTER)
    assert (idle.asleep, idle.scope) == (True, Scope.WALL)


def test_watts_of_a_file_that_was_replaced_are_forgotten(tmp_path: Path) -> None:
    """They count where the file is the same or unknown, and no longer once a name stands for another one."""
    stored = msgspec.structs.replace(IDLE, files={"m": "ab"})
    store_standby(tmp_path, StoredStandby(idle=(stored,)))
    files: dict[str, str | None] = {"m": None}
    kept = StandbyKeeper(tmp_path, Allowed(), file_of=files.get, wall=lambda: NOW + 60.0)
    kept.restore()
    account = HostAccount((), why_unmeasured="")

    def watts() -> list[float]:
        return [idle.power_w for idle in kept.report(account, "MAXN").idle]

    assert watts() == [52.0]
    files["m"] = "ab"
    kept.follow(frozenset(), frozenset({"m"}), account)
    assert watts() == [52.0]
    files["m"] = "cd"
    assert watts() == []
    files["m"] = "ab"
    assert watts() == []
