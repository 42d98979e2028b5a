"""The error codes: each has one status and one remedy, and is documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.common.errors import JobErrorCode

ROOT = Path(__file__).parents[3]
CODE_FIRST = {"Failed", "NoExpert", "refused"}
TAKES_CODE = CODE_FIRST | {"ApiError", "JobFailed"}


def documented() -> set[tuple[int, str, str]]:
    """Returns status, code and remedy of each code in the table of docs/api.md."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = text.split("## Errors", 1)[1].split("\n## ", 1)[0]
    found = set()
    for status, codes, remedy in re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \|$", section, re.MULTILINE):
        if codes.startswith("`"):
            found |= {(int(status), code, remedy) for code in re.findall(r"`(\w+)`", codes)}
    return found


def test_the_documented_codes_are_those_that_exist() -> None:
    """docs/api.md names every code that a client can see, with its status and its remedy, and no other."""
    assert documented() == {(code.status, code.shown, code.remedy) for code in ErrorCode}


@pytest.mark.parametrize("code", JobErrorCode)
def test_every_code_of_a_job_has_its_answer(code: JobErrorCode) -> None:
    """Every code that a job can fail with has a status for the request that ends with it."""
    assert ErrorCode.of(code).value == code.value


def test_a_word_that_nobody_should_have_said_is_an_internal_error() -> None:
    """An unknown code becomes an internal error, so that the labels of metrics are a closed set."""
    assert ErrorCode.of("made-up") is ErrorCode.INTERNAL


def test_one_shown_code_has_one_status() -> None:
    """Causes that are shown as the same code have the same status."""
    shown: dict[str, set[tuple[int, str]]] = {}
    for code in ErrorCode:
        shown.setdefault(code.shown, set()).add((code.status, code.kind))
    assert [code for code, answers in shown.items() if len(answers) > 1] == []


@pytest.mark.slow
def test_no_code_is_a_literal_elsewhere() -> None:
    """`ApiError`, `Failed` and `NoExpert` take their codes from the enumeration, not from literals."""
    literals = []
    for path in (ROOT / "coordinator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TAKES_CODE:
                given = [word.value for word in node.keywords if word.arg == "code"]
                if node.func.id in CODE_FIRST:
                    given += node.args[:1]
                literals += [f"{path.name}:{arg.lineno}" for arg in given if isinstance(arg, ast.Constant)]
    assert literals == []
