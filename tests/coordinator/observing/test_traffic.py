"""What is counted as traffic: this coordinator's requests, and those that the others of its fleet have shipped."""

from __future__ import annotations

from pathlib import Path

from moe2.common.errors import Moe2Error
from moe2.coordinator.ledger.report import Lengths
from moe2.coordinator.observing.traffic import SHIPPED_WITHIN_S, AskedEverywhere
from moe2.coordinator.provisioning.traffic import Asked

NOW_S = 1_000_000.0


def row(at_unix_s: float) -> Lengths:
    return at_unix_s, "chat", "moe2", 10, 20


class Others:
    """The shared database: what others have shipped so far."""

    def __init__(self) -> None:
        self.shipped: list[Lengths] = []
        self.is_down = False

    async def lengths(self, since_unix_s: float) -> list[Lengths]:
        if self.is_down:
            raise Moe2Error("The database does not answer.")
        return [one for one in sorted(self.shipped) if one[0] >= since_unix_s]


async def test_every_request_of_another_coordinator_is_news_once(tmp_path: Path) -> None:
    """Also one that was long under way and is shipped after others that came later; what is old is no news."""
    others = Others()
    others.shipped = [row(NOW_S - 5000.0), row(NOW_S - 10.0)]
    asked = AskedEverywhere(tmp_path / "none.sqlite", others.lengths)
    assert [one.at_unix_s for one in await asked.earlier(0.0)] == [NOW_S - 5000.0, NOW_S - 10.0]
    others.shipped += [row(NOW_S - SHIPPED_WITHIN_S - 1.0), row(NOW_S - 200.0), row(NOW_S)]
    assert await asked.news(NOW_S) == [Asked(at, "chat", None, 10, 20) for at in (NOW_S - 200.0, NOW_S)]
    assert await asked.news(NOW_S + 60.0) == []


async def test_without_the_database_only_others_are_unknown(tmp_path: Path) -> None:
    """Nothing is raised, and what was answered meanwhile is news when it is back."""
    others = Others()
    asked = AskedEverywhere(tmp_path / "none.sqlite", others.lengths)
    others.is_down = True
    others.shipped = [row(NOW_S)]
    assert (await asked.earlier(0.0), await asked.news(NOW_S)) == ([], [])
    others.is_down = False
    assert [one.at_unix_s for one in await asked.news(NOW_S + 60.0)] == [NOW_S]


async def test_one_coordinator_has_no_others(tmp_path: Path) -> None:
    """There is no database to ask."""
    assert await AskedEverywhere(tmp_path / "none.sqlite", None).news(NOW_S) == []
