"""Secrets in files: read where they are, or where systemd hands them over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from moe2.common.errors import ConfigError


def read_secret(path: Path, *, environment: Mapping[str, str] = os.environ) -> str:
    """The secret in a file, without surrounding white space. Raises `ConfigError` if there is none.

    A file that is root's alone may be handed over by systemd: `LoadCredential=NAME:PATH`, with the file's name as NAME.
    """
    path = secret_path(path, environment=environment)
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: the token cannot be read: {error}."]) from None
    if not secret:
        raise ConfigError([f"{path}: the token file is empty."])
    # It travels in an HTTP header.
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError([f"{path}: the token must be one line of printable ASCII characters."])
    return secret


def secret_path(path: Path, *, environment: Mapping[str, str] = os.environ) -> Path:
    """Returns where to read a secret file: at its path if that is allowed, else systemd's copy if there is one.

    In this order, because the copy is as old as the process, systemd.exec(5), and the file may have changed.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if folder and not os.access(path, os.R_OK) and _has_content(copy := Path(folder, path.name)):
        return copy
    return path


def _has_content(path: Path) -> bool:
    """False also for white space, which a unit gives for a file that need not exist."""
    try:
        return bool(path.read_bytes().strip())
    except OSError:
        return False
