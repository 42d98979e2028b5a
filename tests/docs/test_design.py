"""What the documentation says of the code is so: rooms, floors, functions, contracts and paths."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
PAPER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
}
SIDES = {"The coordinator": "coordinator", "The agent": "agent", "What is common": "common"}
FLOORS = {"The coordinator": "the coordinator's floors", "The agent": "the agent's floors"}
STATIC = {"page"}
"""Rooms without Python, which import-linter does not see."""
# A decision record tells of the day it was made; the changelog of the day of its release.
PAGES = (
    "CONTRIBUTING.md",
    "README.md",
    "examples/agent.toml",
    "examples/coordinator.toml",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
    "docs/decisions/0016-one-request-one-shape.md",
    "docs/decisions/0017-the-next-house.md",
)
_PLACE = re.compile(r"`((?:agent|benchmarks|common|coordinator)/[\w/]+\.py):([\w.]+)`")
_PATH = re.compile(
    r"`((?:agent|benchmarks|common|coordinator|dashboards|dev|docs|examples|install|systemd|tests)/[\w./-]*)"
)


def _section(title: str) -> str:
    """The text below a heading of the third level, up to the next heading."""
    _, _, rest = DESIGN.partition(f"\n### {title}\n")
    return re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in _section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _rooms(title: str) -> list[str]:
    """Folders (with a slash at the end) and modules that a section's table names."""
    return [room for row in _rows(title) for room in re.findall(r"`([^`]+)`", row[-2])]


@cache
def _definitions(path: Path) -> frozenset[str]:
    """Classes and functions of a module, each with the classes around it: `Hub.send`."""
    found = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return frozenset(found)


@pytest.mark.parametrize("title", SIDES)
def test_every_room_is_listed_once_and_no_other(title: str) -> None:
    """Folders of a side, and the modules that stand loose beside them, are those that the page lists."""
    side = ROOT / SIDES[title]
    folders = {f"{path.relative_to(side)}/" for path in side.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    loose = {path.name for path in side.glob("*.py")} - {"__init__.py"}
    assert sorted(_rooms(title)) == sorted(folders | loose)


@pytest.mark.parametrize("title", FLOORS)
def test_floors_are_those_that_the_linter_holds(title: str) -> None:
    """From the top down, with the same rooms side by side."""
    rows = [(row[0], re.findall(r"`([\w/]+?)(?:\.py|/)`", row[1])) for row in _rows(title)]
    drawn = [
        {room.split("/")[0] for _, rooms in floor for room in rooms} - STATIC
        for _, floor in groupby(rows, key=lambda row: row[0])
    ]
    held = [{room.strip() for room in layer.split("|")} for layer in CONTRACTS[FLOORS[title]]["layers"]]
    assert drawn == held
    assert [int(number) for number, _ in groupby(rows, key=lambda row: row[0])] == list(range(len(held), 0, -1))


@pytest.mark.parametrize("place", sorted(set(_PLACE.findall(DESIGN + PAPER))), ids=":".join)
def test_every_function_that_is_named_exists(place: tuple[str, str]) -> None:
    """A path through the code does not lead to what was renamed or moved."""
    file, name = place
    assert name in _definitions(ROOT / file)


def test_the_paths_have_their_steps() -> None:
    """A request's path has ten steps, and each step of each path names a function or a file."""
    steps = {
        title: re.findall(r"^\d+\. .*(?:\n   .*)*", text, flags=re.MULTILINE)
        for title, text in (part.split("\n", 1) for part in DESIGN.split("\n## ")[1:])
        if title.endswith("path")
    }
    assert {title: len(found) for title, found in steps.items()} == {
        "A request's path": 10,
        "A joule's path": 8,
        "An outcome's path": 7,
    }
    assert [step for found in steps.values() for step in found if not _PLACE.search(step)] == []


def test_every_contract_that_is_named_exists() -> None:
    """A rule's check is a contract of import-linter by its very name."""
    tables = DESIGN.partition("## Ten principles")[2].partition("\n## ")[0]
    named = {name for row in tables.splitlines() if "contract" in row for name in re.findall(r'"([^"]+)"', row)}
    assert len(named) >= 7
    assert named - CONTRACTS.keys() == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page: str) -> None:
    """A page does not send its readers to a file that was moved."""
    named = {path.rstrip(".") for path in _PATH.findall((ROOT / page).read_text(encoding="utf-8"))}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_decision_is_in_the_list() -> None:
    """With its own title, in order."""
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(
        r"^\| \[(\d{4})\]\(([\w-]+\.md)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    titles = {path.name: path.read_text().partition("\n")[0] for path in sorted(folder.glob("0*.md"))}
    assert {file: f"# {number}: {title}" for number, file, title in listed} == titles
    assert [file for _, file, _ in listed] == sorted(titles)
