"""PURE: what a forced tool call must look like, as a JSON schema and as GBNF.

A call is `{"name": NAME, "arguments": OBJECT}`; models whose template says so write it between <tool_call> tags (the
form that Hermes and Qwen models were trained on).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from moe2.agent.engine.request import invalid
from moe2.common.messages import Tool

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_ROOT = re.compile(r"^root ::=", re.MULTILINE)


def schema_of_call(tools: Sequence[Tool], names: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of one call of one of the tools with these names. Raises `RequestError` for an unknown name."""
    known = {tool.name: tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise invalid(f"The tool {missing[0]!r} is to be called, but is not among the tools.")
    definitions: dict[str, Any] = {}
    calls = []
    for place, name in enumerate(names):
        here = f"#/$defs/tool{place}"
        parameters = json.loads(known[name].parameters) or _ANY_ARGUMENTS
        definitions[f"tool{place}"] = _moved(parameters, here)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": here}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": definitions}


def tagged(gbnf: str) -> str:
    """A grammar whose root is put between tool call tags."""
    inner = _ROOT.sub("tagged-call ::=", gbnf)
    return f'root ::= "<tool_call>\\n" tagged-call "\\n</tool_call>"\n{inner}'


def _moved(node: Any, here: str) -> Any:
    """A schema that is no longer its document's root: references to its own parts follow it."""
    if isinstance(node, dict):
        return {
            key: here + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, here)
            for key, value in node.items()
        }
    return [_moved(value, here) for value in node] if isinstance(node, list) else node
