"""The Grafana dashboard asks only for what the daemons serve."""

from __future__ import annotations

import json
import re
from pathlib import Path

from moe2.agent.observing.metrics import AgentMetrics
from moe2.common.energy import NEVER_RAN
from moe2.coordinator.observing.metrics import CoordinatorMetrics
from tests.agent.observing.test_metrics import STATUS
from tests.coordinator.receipts import agent_row, status

DASHBOARD = json.loads((Path(__file__).parents[1] / "dashboards" / "grafana.json").read_text())
_FAMILY = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
_NAME = re.compile(r"\bmoe2_[a-z0-9_]+")


def served() -> set[str]:
    """Names of all samples that both daemons can serve."""
    expositions = (
        CoordinatorMetrics(lambda: status(agent_row()), stale_s=1.0).exposition(""),
        AgentMetrics(lambda: STATUS, lambda: NEVER_RAN).exposition(""),
    )
    names: set[str] = set()
    for body, _ in expositions:
        for name, kind in _FAMILY.findall(body.decode()):
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            names |= {name + suffix for suffix in suffixes}
    return names


def test_every_query_names_a_metric_that_exists() -> None:
    """A renamed metric must not leave an empty panel behind."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 30
    asked = {name for query in queries for name in _NAME.findall(query)}
    assert asked - served() == set()


def test_panels_do_not_overlap() -> None:
    """Each cell of the grid belongs to one panel."""
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for grid in (panel["gridPos"],)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
