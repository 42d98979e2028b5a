"""The documentation is built, and knows every health warning."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from moe2.common.link.enrolment import Refusal
from moe2.common.tls.fault import TlsFault

ROOT = Path(__file__).parent.parent


def warning_codes() -> Iterator[str]:
    """Codes of warnings as the source has them: the first argument of what makes one, or its `code`."""
    for room in ("agent", "common", "coordinator"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    if node.func.id == "HealthWarning":
                        yield from _constants(next(word.value for word in node.keywords if word.arg == "code"))
                    elif node.func.id == "_degraded":
                        yield from _constants(node.args[0])


def _constants(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


@pytest.mark.slow
def test_every_warning_has_its_section() -> None:
    """Who looks up a code finds it."""
    described = set(re.findall(r"^### `(\w+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE))
    codes = set(warning_codes())
    assert len(codes) > 10
    assert (codes | {*Refusal, *TlsFault}) - described == set()


def test_every_described_warning_exists() -> None:
    """No section is left of a warning that nobody raises any more."""
    described = re.findall(r"^### `(\w+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    source = "".join(
        path.read_text() for room in ("agent", "common", "coordinator") for path in (ROOT / room).rglob("*.py")
    )
    dynamic = {"sensor_denied", "sensor_broken"}
    assert [code for code in described if f'"{code}"' not in source and code not in dynamic] == []
    assert len(described) == len(set(described))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed (moe2[docs])")
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    """Strictly: a page that is missing or linked wrongly fails."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "https://fonts" not in (tmp_path / "site" / "index.html").read_text()
