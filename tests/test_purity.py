"""The import law for pure modules: what calls itself PURE reaches no clock, no file, no network and no event loop."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_IMPURE = {
    "aiohttp",
    "asyncio",
    "logging",
    "os",
    "socket",
    "structlog",
    "subprocess",
    "threading",
    "time",
    "torch",
}


def _modules() -> dict[str, Path]:
    """All modules of the product, by import name."""
    found = {}
    for folder in ("agent", "common", "coordinator"):
        for path in (_ROOT / folder).rglob("*.py"):
            parts = path.relative_to(_ROOT).with_suffix("").parts
            found[".".join(("moe2", *parts)).removesuffix(".__init__")] = path
    return found


_MODULES = _modules()


def _is_pure(path: Path) -> bool:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return "PURE" in docstring.split("\n\n")[0]


@cache
def _imports(name: str) -> frozenset[str]:
    """What a module imports at run time, as far down as it is ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _reached(name: str) -> dict[str, str]:
    """Impure modules within reach of `name`, each with the module that imports it."""
    reached, seen, waiting = {}, {name}, [name]
    while waiting:
        current = waiting.pop()
        for imported in _imports(current):
            if imported.split(".")[0] in _IMPURE:
                reached[imported] = current
            elif imported in _MODULES and imported not in seen:
                seen.add(imported)
                waiting.append(imported)
    return reached


@pytest.mark.parametrize("name", sorted(name for name, path in _MODULES.items() if _is_pure(path)))
def test_pure_module_stays_pure(name: str) -> None:
    """Neither it nor anything of ours that it imports touches the outside world."""
    assert _reached(name) == {}
