"""Secrets in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.errors import ConfigError
from moe2.common.secretfile import read_secret


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_a_secret_is_the_files_content_without_white_space(path: Path) -> None:
    """An editor's last newline is no part of a token."""
    path.write_text("  s3cret-token \n")
    assert read_secret(path) == "s3cret-token"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff", "cannot be read"),
        (b"one\ntwo", "one line"),
        (b"one\x00two", "one line"),
        ("tokén".encode(), "one line"),
    ],
    ids=["absent", "empty", "blank", "no utf-8", "two lines", "NUL", "not ASCII"],
)
def test_a_secret_that_cannot_be_used_is_refused_with_its_path(path: Path, content: bytes | None, problem: str) -> None:
    """It travels in an HTTP header, so it is one line of printable ASCII; the secret itself is never shown."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_secret(path)
    assert str(path) in str(raised.value)
    assert problem in str(raised.value)
    assert "two" not in str(raised.value)


def credentials(folder: Path, **content: str) -> dict[str, str]:
    """What systemd would tell a service that has these credentials."""
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_a_secret_that_systemd_hands_over_is_read_from_there(tmp_path: Path) -> None:
    """By the file's name, where the file itself cannot be read."""
    environment = credentials(tmp_path / "credentials", token="from-systemd\n")
    assert read_secret(tmp_path / "etc" / "token", environment=environment) == "from-systemd"


def test_a_secret_file_that_can_be_read_goes_before_the_copy(tmp_path: Path) -> None:
    """It may have changed since the service was started."""
    (tmp_path / "token").write_text("changed\n")
    environment = credentials(tmp_path / "credentials", token="as-it-was\n")
    assert read_secret(tmp_path / "token", environment=environment) == "changed"


def test_a_credential_without_content_stands_for_a_file_that_is_missing(tmp_path: Path) -> None:
    """The error names the file that the operator knows."""
    environment = credentials(tmp_path / "credentials", token="\n")
    with pytest.raises(ConfigError) as raised:
        read_secret(tmp_path / "etc" / "token", environment=environment)
    assert str(tmp_path / "etc" / "token") in str(raised.value)
