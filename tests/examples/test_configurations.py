"""The shipped configurations show the settings as they are: every key, the real defaults, nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic_core import PydanticUndefined

from moe2.agent.settings import AgentSettings
from moe2.common.config import Settings, load_settings
from moe2.coordinator.settings import CoordinatorSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
SHIPPED = [("agent.toml", AgentSettings), ("coordinator.toml", CoordinatorSettings)]
KEY = re.compile(r"^# (?=\w+ = |\[)")

each_example = pytest.mark.parametrize(("name", "kind"), SHIPPED, ids=[name for name, _ in SHIPPED])


def as_shipped(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLES / name).read_text(encoding="utf-8"))


def uncommented(name: str) -> dict[str, Any]:
    """The file with every commented key and table switched on."""
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    return tomllib.loads("\n".join(KEY.sub("", line) for line in lines))


def defaults(kind: type[Settings]) -> dict[tuple[str, ...], Any]:
    """Every key by its path, with its default; `PydanticUndefined` where it must be set.

    Of tables that the user names, the example shows the one named `default`.
    """
    found: dict[tuple[str, ...], Any] = {}
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            found[(name,)] = field.get_default(call_default_factory=True, validated_data={})
        else:
            place = (name, "default") if get_origin(field.annotation) is dict else (name,)
            inner = defaults(section)
            if field.get_default(call_default_factory=False) in ((), None):
                # A list that may stay empty, or a table that may be left out: what it must set, the file need not.
                inner = {path: None if default is PydanticUndefined else default for path, default in inner.items()}
            found |= {(*place, *path): default for path, default in inner.items()}
    return found


def _section(annotation: Any) -> type[Settings] | None:
    """The settings type of a table, or of each table in a list of tables."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
    return None


def keys(content: dict[str, Any], *, is_section: bool = False) -> dict[tuple[str, ...], Any]:
    """Every key by its path, with its value; a list of tables counts by its first table.

    is_section: whether this is a section's content, in which an empty table is the value of its key.
    """
    found: dict[tuple[str, ...], Any] = {}
    for name, value in content.items():
        table = value[0] if isinstance(value, list) and value else value
        if isinstance(table, dict) and (table or not is_section):
            found |= {(name, *path): inner for path, inner in keys(table, is_section=True).items()}
        else:
            found[(name,)] = value
    return found


@each_example
def test_the_example_is_accepted_as_it_is(name: str, kind: type[Settings]) -> None:
    """A copied example is a valid configuration."""
    load_settings(kind, EXAMPLES / name, environment={}, prefix="X")


@each_example
def test_the_example_shows_every_key_and_no_other(name: str, kind: type[Settings]) -> None:
    """A setting without documentation, or documentation without a setting, fails here."""
    assert set(keys(uncommented(name))) == set(defaults(kind))


@each_example
def test_only_what_must_be_set_is_set(name: str, kind: type[Settings]) -> None:
    """A key that has a default is commented out."""
    required = {path for path, default in defaults(kind).items() if default is PydanticUndefined}
    assert set(keys(as_shipped(name))) == required


def as_toml(value: object) -> object:
    """A default as a TOML file would hold it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@each_example
def test_commented_values_are_the_defaults(name: str, kind: type[Settings]) -> None:
    """What the file says is the default is the default; a default of None is shown by an example value."""
    optional = {path: value for path, value in defaults(kind).items() if value not in (None, PydanticUndefined)}
    said = {path: value for path, value in keys(uncommented(name)).items() if path in optional}
    assert said == {path: as_toml(value) for path, value in optional.items()}
