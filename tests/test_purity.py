"""The rooms that decide are pure: they reach no clock, no file, no network, no event loop and no random numbers."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = (
    "agent/energy/account.py",
    "agent/energy/attribution.py",
    "agent/energy/baseline.py",
    "agent/energy/comparison.py",
    "agent/energy/meter.py",
    "agent/engine/calls/*.py",
    "agent/engine/decoding/*.py",
    "agent/engine/prompt/*.py",
    "agent/engine/speculation/*.py",
    "agent/jobs/*.py",
    "common/cost.py",
    "common/energy.py",
    "common/error_codes.py",
    "common/generation.py",
    "common/link/earlier.py",
    "common/link/messages.py",
    "common/link/prompts.py",
    "common/link/reports.py",
    "common/link/session.py",
    "common/link/wire.py",
    "common/standby.py",
    "coordinator/answers/*.py",
    "coordinator/choosing/*.py",
    "coordinator/fleet/bounds.py",
    "coordinator/fleet/checks.py",
    "coordinator/fleet/report_checks.py",
    "coordinator/fleet/report_checks.py",
    "coordinator/fleet/table.py",
    "coordinator/gate/*.py",
    "coordinator/planning/*.py",
    "coordinator/provisioning/*.py",
    "coordinator/serving/**/*.py",
)
SHELLS = {
    # Of the rooms above, what acts on the decisions, with what it acts on.
    "coordinator/choosing/lengths_file.py": "reads and writes a file",
    "coordinator/gate/checkpoint.py": "reads and writes files",
    "coordinator/gate/feedback_file.py": "reads and writes a file",
    "coordinator/provisioning/keeper.py": "keeps time, sends commands, starts threads",
    "coordinator/provisioning/state_files.py": "reads and writes two files",
    "coordinator/provisioning/waking.py": "sends packets, starts processes",
    "coordinator/serving/bookkeeper.py": "asks the event loop's clock, writes the ledger",
    "coordinator/serving/exchange.py": "wakes an HTTP handler",
    "coordinator/serving/queue.py": "keeps time",
    "coordinator/serving/service.py": "sends jobs, keeps time",
}
VALUES = {
    # Imported by pure modules for the values that they define; their own imports of `pathlib` are for types of fields.
    "moe2.agent.settings",
    "moe2.common.config",
    "moe2.coordinator.serving.settings",
}
IMPURE = {
    "aiohttp",
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "random",
    "socket",
    "sqlite3",
    "structlog",
    "subprocess",
    "threading",
    "time",
    "torch",
}


def _name(path: Path) -> str:
    return ".".join(("moe2", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {_name(path): path for room in ("agent", "common", "coordinator") for path in (ROOT / room).rglob("*.py")}


def _pure() -> list[str]:
    found = {path for pattern in PURE for path in ROOT.glob(pattern)}
    return sorted(_name(path) for path in found if str(path.relative_to(ROOT)) not in SHELLS)


@cache
def _imports(name: str) -> frozenset[str]:
    """What a module imports, at its top or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _reached(name: str) -> dict[str, str]:
    """Impure modules within reach of `name`, each with the module of ours that imports it."""
    reached, seen, waiting = {}, {name} | VALUES, [name]
    while waiting:
        current = waiting.pop()
        for imported in _imports(current):
            if imported.split(".")[0] in IMPURE:
                reached[imported] = current
            elif imported in MODULES and imported not in seen:
                seen.add(imported)
                waiting.append(imported)
    return reached


@pytest.mark.parametrize("name", _pure())
def test_a_pure_module_stays_pure(name: str) -> None:
    """A module of a pure room reaches nothing of the outside world, neither itself nor through what it imports."""
    assert _reached(name) == {}


@pytest.mark.parametrize("pattern", [*PURE, *SHELLS])
def test_every_pattern_names_a_module(pattern: str) -> None:
    """A module that was renamed does not leave the list of the pure ones, or of the exceptions, unnoticed."""
    assert list(ROOT.glob(pattern)) != []


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if "PURE" in path.read_text().split('"""')[1]])
def test_a_module_that_calls_itself_pure_reaches_no_event_loop(name: str) -> None:
    """The word in a docstring is kept outside the pure rooms, too; paths and random sources may be arguments."""
    assert {impure for impure in _reached(name) if impure.split(".")[0] not in ("pathlib", "random")} == set()
