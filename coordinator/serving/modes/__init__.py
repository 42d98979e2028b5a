"""How experts answer together, one file a mode; may import `serving.life` and what that imports."""

from __future__ import annotations

from collections.abc import Mapping

from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.serving.life import MakeRun
from moe2.coordinator.serving.modes.consensus import Consensus
from moe2.coordinator.serving.modes.mix import Mix
from moe2.coordinator.serving.modes.rank import Rank
from moe2.coordinator.serving.modes.route import Route
from moe2.coordinator.serving.modes.vote import Vote

MODES: Mapping[Mode, MakeRun] = {
    Mode.ROUTE: Route,
    Mode.VOTE: Vote,
    Mode.RANK: Rank,
    Mode.CONSENSUS: Consensus,
    Mode.MIX: Mix,
}
"""How the lifecycle begins each mode that a choice can be made in."""
