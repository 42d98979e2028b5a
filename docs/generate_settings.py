"""Writes docs/settings.md from the settings types: `PYTHONPATH=dev python docs/generate_settings.py`."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from moe2.agent.settings import ENVIRONMENT_PREFIX as AGENT_PREFIX
from moe2.agent.settings import AgentSettings
from moe2.common.config import Settings
from moe2.common.reload import is_live
from moe2.coordinator.settings import ENVIRONMENT_PREFIX as COORDINATOR_PREFIX
from moe2.coordinator.settings import CoordinatorSettings

TARGET = Path(__file__).parent / "settings.md"
INTRODUCTION = """# Settings

Generated from the settings types by `docs/generate_settings.py`; a test compares the two. Do not edit.

Each daemon reads one TOML file, checks it as a whole, and names every fault it finds (`check-config` does only that).
An environment variable overrides a key: the daemon's prefix, then section and key in capitals, joined by two
underscores, such as `{prefix}__LOG__LEVEL=debug`. Lists of tables are set in the file only.

*Live* settings are applied to a running daemon by `systemctl reload` (SIGHUP); the others need a restart, and the log
and `status` say so. A default of – means that the key may be left out.
"""
KINDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "Path": "path",
}


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION.format(prefix=AGENT_PREFIX)]
    for title, file, prefix, kind in (
        ("Agent", "agent.toml", AGENT_PREFIX, AgentSettings),
        ("Coordinator", "coordinator.toml", COORDINATOR_PREFIX, CoordinatorSettings),
    ):
        parts.append(f"## {title}\n\n`/etc/moe2/{file}`; variables begin with `{prefix}__`.\n")
        parts += _tables(kind, ())
    return "\n".join(parts)


def _tables(
    kind: type[Settings],
    path: tuple[str, ...],
    *,
    inherited: bool | None = None,
    is_list: bool = False,
) -> Iterator[str]:
    """One table per TOML table, in the file's order.

    inherited: whether the list or the named tables that this belongs to are live as a whole.
    """
    rows: list[str] = []
    inner: list[str] = []
    for name, field in kind.model_fields.items():
        section, form = _section(field.annotation)
        if section is None:
            rows.append(_row(kind, name, field, is_live(field) if inherited is None else inherited))
            continue
        whole = inherited if form in ("table", "optional") or inherited is not None else is_live(field)
        deeper = (*path, name, "NAME") if form == "named" else (*path, name)
        inner += _tables(section, deeper, inherited=whole, is_list=form == "list")
    if path:
        name = ".".join(path)
        yield f"### `[[{name}]]`\n" if is_list else f"### `[{name}]`\n"
        if lead := _lead(kind):
            yield f"{lead}\n"
        yield "| Key | Type | Default | Bounds | Live | |\n|---|---|---|---|---|---|"
        yield "\n".join(rows) + "\n"
    yield from inner


def _lead(kind: type[Settings]) -> str:
    """What a section's docstring says beyond its name."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    _, colon, rest = text.partition("]: ")
    if not colon:
        return ""
    rest = rest.split("]: ")[-1]
    return rest[0].upper() + rest[1:]


def _row(kind: type[Settings], name: str, field: FieldInfo, is_live: bool) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    told = "**required**" if default is PydanticUndefined else _value(default)
    meaning = _docstrings(kind).get(name, "").replace("|", "\\|")
    cells = (f"`{name}`", _kind(field.annotation), told, _bounds(field), "yes" if is_live else "no", meaning)
    return f"| {' | '.join(cells)} |"


def _section(annotation: Any) -> tuple[type[Settings] | None, str]:
    """The settings type that a key holds, and in which form: a table, an optional one, a list, or named ones."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, "table"
    for candidate in get_args(annotation):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            form = (
                "named" if get_origin(annotation) is dict else "list" if get_origin(annotation) is tuple else "optional"
            )
            return candidate, form
    return None, ""


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is dict:
        return f"table of {_kind(arguments[1])}"
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if type(None) in arguments:
        return " or ".join(_kind(argument) for argument in arguments if argument is not type(None))
    if hasattr(annotation, "__metadata__"):
        return _kind(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return KINDS.get(getattr(annotation, "__name__", ""), str(annotation))


def _bounds(field: FieldInfo) -> str:
    """Of a number: its least and most."""
    marks = list(field.metadata)
    inner = () if get_origin(field.annotation) is dict else get_args(field.annotation)
    for argument in (field.annotation, *inner):
        marks += getattr(argument, "__metadata__", ())
    marks = [inner for mark in marks for inner in getattr(mark, "metadata", (mark,))]
    told = []
    for mark in marks:
        match mark:
            case Gt(gt=bound):
                told.append(f"> {bound}")
            case Ge(ge=bound):
                told.append(f"≥ {bound}")
            case Lt(lt=bound):
                told.append(f"< {bound}")
            case Le(le=bound):
                told.append(f"≤ {bound}")
            case MinLen(min_length=bound):
                told.append(f"at least {bound}")
    return ", ".join(dict.fromkeys(told))


def _value(default: object) -> str:
    if default is None:
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{json.dumps(default)}`"
    if isinstance(default, str | Path):
        return f'`"{default}"`'
    return f"`{default}`"


def _docstrings(kind: type[Settings]) -> dict[str, str]:
    """The string below each field, as one line; those of inherited fields stand in the class above."""
    above = kind.__base__
    found = _docstrings(above) if above is not None and issubclass(above, Settings) and above is not Settings else {}
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    statements = definition.body if isinstance(definition, ast.ClassDef) else []
    for statement, following in pairwise(statements):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
