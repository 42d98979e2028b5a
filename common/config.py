"""Settings from one TOML file and the environment, validated as a whole: every fault at once, each with its place.

An environment variable overrides a key: prefix, then the path joined by two underscores, in capitals
(`MOE2_AGENT__COORDINATOR__URL` overrides `url` in `[coordinator]`). Lists of tables are set in the file only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe2.common.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings type: frozen, and no key is accepted that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Applies(Enum):
    """When a changed setting takes effect in a running daemon; a mark in the annotation of a field of `Settings`.

    A field without a mark needs a restart.
    """

    LIVE = "live"


LIVE: Final = Applies.LIVE
S = TypeVar("S", bound=Settings)
Path_ = tuple[str | int, ...]


def load_settings(kind: type[S], path: Path, *, environment: Mapping[str, str], prefix: str) -> S:
    """Read and validate. Raises `ConfigError` with one line per fault: file or variable, key, what is wrong."""
    content = _read_toml(path)
    from_environment = _overlay(content, environment, prefix + "__")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError([_fault(fault, path, from_environment) for fault in error.errors()]) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file. Name the configuration with --config FILE."]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}."]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}."]) from None


def _overlay(content: dict[str, Any], environment: Mapping[str, str], prefix: str) -> dict[Path_, str]:
    """Write the environment's values over the file's; returns which variable set which key."""
    names: dict[Path_, str] = {}
    for name in sorted(environment):
        if not name.startswith(prefix):
            continue
        keys = tuple(name.removeprefix(prefix).lower().split("__"))
        table = content
        for depth, key in enumerate(keys[:-1], start=1):
            if key not in table:
                table[key] = {}
                names[keys[:depth]] = name
            inner = table[key]
            if not isinstance(inner, dict):
                raise ConfigError([f"{name}: {key!r} cannot be set through the environment, only in the file."])
            table = inner
        table[keys[-1]] = environment[name]
        names[keys] = name
    return names


def _fault(fault: Any, path: Path, from_environment: Mapping[Path_, str]) -> str:
    where = from_environment.get(fault["loc"]) or str(path)
    key = ".".join(str(part) for part in fault["loc"])
    match fault["type"]:
        case "extra_forbidden":
            problem = "unknown key; remove it or correct its spelling"
        case "missing":
            problem = "required, but not set"
        case "value_error":
            problem = str(fault["ctx"]["error"])
        case _:
            problem = f"{fault['msg']} (got {fault['input']!r})"
    return f"{where}: {key}: {problem}." if key else f"{where}: {problem}."


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535)]
