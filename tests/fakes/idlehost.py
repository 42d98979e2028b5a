"""What an agent with a simulated RTX 4090 has measured of waiting, so that no test waits ten idle seconds for it."""

from __future__ import annotations

import time
from pathlib import Path

from moe2.agent.energy.profiles import find_profile
from moe2.agent.standby.store import StoredIdle, StoredStandby, store_standby
from moe2.common.energy import Quality
from moe2.common.standby import IdlePower


def keep_idle_watts(state_dir: Path, model: str) -> None:
    """Leaves in an agent's state directory that its host drew 52 W with this model alone in memory."""
    idle = IdlePower(power_w=52.0, models=(model,), quality=Quality.SIMULATED)
    mode = find_profile("rtx-4090").marked_power_mode
    store_standby(state_dir, StoredStandby(idle=(StoredIdle(power_mode=mode, idle=idle, at_unix_s=time.time()),)))
