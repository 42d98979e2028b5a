"""The threat model claims nothing that no test shows."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_DOCUMENT = _ROOT / "docs" / "security.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _rows() -> list[str]:
    """The rows of all tables of threats, without their heads."""
    sections = re.split(r"^## ", _DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    threats = [section for section in sections if section.startswith("Threats")]
    lines = [line for section in threats for line in section.splitlines() if line.startswith("|")]
    return [line for line in lines if not re.match(r"\|[-|]+\|$|\| Threat ", line)]


@cache
def _tests_in(path: Path) -> frozenset[str]:
    """Names of the test functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in found if node.name.startswith("test_"))


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_threat_names_its_defence_and_tests_that_exist(row: str) -> None:
    """Threat, defence, at least one test; each of them is there."""
    threat, defence, shown_by = (cell.strip() for cell in row.strip("|").split("|"))
    assert threat
    assert defence
    tests = _TEST.findall(shown_by)
    assert len(tests) == shown_by.count("::") > 0
    for file, name in tests:
        assert name in _tests_in(_ROOT / file), f"{file} has no {name}"


def test_every_listener_and_the_host_have_their_threats() -> None:
    """A table that was moved or renamed would not be checked any more."""
    headings = re.findall(r"^## (Threats .*)$", _DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == ["Threats to the API listener", "Threats to the agents' listener", "Threats on the host"]
    assert len(_rows()) > 30
