"""The page on the paper's claims is whole: each claim has its parts, and its commands can be run."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
CLAIMS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:] if "- **In the code:**" in part)
PARTS = ("In the code", "Shown by", "Measured", "Differs")
_PLACE = re.compile(r"`(?:agent|benchmarks|common|coordinator)/[\w/]+\.py(?::[\w.]+)?`")


def test_the_abstract_has_nine_claims() -> None:
    """As the page divides it; none is left out in passing."""
    assert len(CLAIMS) == 9


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_has_its_parts(claim: str) -> None:
    """Where it is, how it is shown, what was measured and what differs, in this order."""
    assert re.findall(r"^- \*\*([\w ]+):\*\*", CLAIMS[claim], flags=re.MULTILINE) == list(PARTS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_names_its_code_and_a_command(claim: str) -> None:
    """A place in the code, and what can be run."""
    parts = dict(zip(PARTS, re.split(r"^- \*\*[\w ]+:\*\*", CLAIMS[claim], flags=re.MULTILINE)[1:], strict=True))
    assert _PLACE.search(parts["In the code"])
    assert re.search(r"`(python -m|moe2-(coordinator|agent)|\./install\.sh) ", parts["Shown by"])


def test_every_module_that_is_run_exists() -> None:
    """A benchmark that was renamed is not sent for."""
    named = set(re.findall(r"python -m ([\w.]+)", PAGE))
    assert len(named) >= 5
    assert [name for name in sorted(named) if find_spec(name) is None] == []
