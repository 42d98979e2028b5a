"""A coordinator as a command whose slow level looks, decides and tries within tenths of seconds, not minutes."""

from __future__ import annotations

from moe2.coordinator.__main__ import main
from moe2.coordinator.provisioning import keeper, trials

keeper.WATCH_EVERY_S = 0.02
keeper.DECIDE_EVERY_S = 0.1
trials.TRIAL_AFTER_S = 0.2
trials.TRIAL_S = 0.5

if __name__ == "__main__":
    main()
