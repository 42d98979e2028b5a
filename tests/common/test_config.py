"""Settings from a file and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError, field_validator

from moe2.common.config import Settings, load_settings
from moe2.common.errors import ConfigError


class Inner(Settings):
    port: Annotated[int, Field(ge=1)] = 8080
    name: str = "inner"

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if len(name) > 5:
            raise ValueError("too long a name")
        return name


class Outer(Settings):
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    needed: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def load(path: Path, content: str, **environment: str) -> Outer:
    path.write_text(content)
    return load_settings(Outer, path, environment=environment, prefix="APP")


def faults(path: Path, content: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, content, **environment)
    return raised.value.faults


def test_a_file_sets_what_it_names_and_leaves_the_rest(path: Path) -> None:
    """Keys that are not in the file have their defaults."""
    assert load(path, "needed = 1\n[inner]\nport = 9\n") == Outer(needed=1, inner=Inner(port=9))


def test_settings_cannot_be_changed_afterwards(path: Path) -> None:
    """A daemon runs on what was validated."""
    settings = load(path, "needed = 1")
    with pytest.raises(ValidationError, match="frozen"):
        settings.needed = 2


def test_all_faults_are_told_at_once_with_file_and_key(path: Path) -> None:
    """Nobody has to start a daemon five times to find five typing errors."""
    assert faults(path, 'extra = 1\n[inner]\nport = "many"\nname = "far too long"\n[[rows]]\nport = 0\n') == [
        f"{path}: inner.port: Input should be a valid integer, unable to parse string as an integer (got 'many').",
        f"{path}: inner.name: too long a name.",
        f"{path}: rows.0.port: Input should be greater than or equal to 1 (got 0).",
        f"{path}: needed: required, but not set.",
        f"{path}: extra: unknown key; remove it or correct its spelling.",
    ]


def test_the_error_prints_one_fault_a_line(path: Path) -> None:
    """What the user sees is the list."""
    with pytest.raises(ConfigError) as raised:
        load(path, "a = 1\nb = 2\nneeded = 1")
    assert str(raised.value).splitlines() == raised.value.faults


def test_the_environment_overrides_the_file(path: Path) -> None:
    """Prefix and path in capitals, joined by two underscores."""
    assert load(path, "needed = 1\n[inner]\nport = 9", APP__INNER__PORT="10", APP__NEEDED="2") == Outer(
        needed=2, inner=Inner(port=10)
    )


def test_the_environment_sets_what_the_file_does_not_name(path: Path) -> None:
    """Also in a table that the file does not have."""
    assert load(path, "", APP__INNER__NAME="x", APP__NEEDED="2") == Outer(needed=2, inner=Inner(name="x"))


def test_variables_of_others_are_left_alone(path: Path) -> None:
    """Only the exact prefix counts."""
    assert load(path, "needed = 1", APPLE__NEEDED="2", APP_NEEDED="3", HOME="/") == Outer(needed=1)


def test_a_fault_in_a_variable_names_the_variable(path: Path) -> None:
    """The file is not to blame for it."""
    assert faults(path, "needed = 1", APP__INNER__PORT="0", APP__INNER__PROT="1") == [
        "APP__INNER__PORT: inner.port: Input should be greater than or equal to 1 (got '0').",
        "APP__INNER__PROT: inner.prot: unknown key; remove it or correct its spelling.",
    ]


def test_a_variable_cannot_reach_into_a_list(path: Path) -> None:
    """Tables of a list are set in the file only, and the error says so."""
    [fault] = faults(path, "needed = 1\n[[rows]]\nport = 1", APP__ROWS__0__PORT="2")
    assert fault == "APP__ROWS__0__PORT: 'rows' cannot be set through the environment, only in the file."


def test_a_missing_file_says_how_to_name_one(path: Path) -> None:
    """The first thing that a new user meets."""
    with pytest.raises(ConfigError, match=r"no such file\. Name the configuration with --config FILE") as raised:
        load_settings(Outer, path, environment={}, prefix="APP")
    assert str(path) in str(raised.value)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    """Every reason not to be able to read is told with the path."""
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be read: Is a directory"):
        load_settings(Outer, tmp_path, environment={}, prefix="APP")


@pytest.mark.parametrize("content", [b"needed = ", b"\xff\xfe", b"a = 1\na = 2"], ids=["cut", "no utf-8", "twice"])
def test_invalid_toml_is_told_with_the_file(path: Path, content: bytes) -> None:
    """The parser's own words say where."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}: not valid TOML"):
        load_settings(Outer, path, environment={}, prefix="APP")
