"""The parameters that say how experts work together: `moe2.mode` and `moe2.choices`. PURE.

A mode that cannot honour one of the request's parameters is refused with the parameter's name, never served halfway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from moe2.common.generation import NEUTRAL_SAMPLING, Generation, Sampling
from moe2.coordinator.choosing.request import Ballot, Mode, Wish
from moe2.coordinator.http.body.tools import FREE, Structure
from moe2.coordinator.http.errors import invalid, unsupported
from moe2.coordinator.serving.modes.token_mixture import MIXED_SAMPLING

MAX_CHOICES = 64
MAX_CHOICE_BYTES = 4096
_WEIGHING = (*(name for name in Sampling.__struct_fields__ if name != "seed"), "stop")
"""Parameters that have no meaning in a vote: the most likely choice is the answer, and nothing is written."""
_UNMIXED = tuple(
    (name, getattr(NEUTRAL_SAMPLING, name)) for name in Sampling.__struct_fields__ if name not in MIXED_SAMPLING
)
"""Parameters that the coordinator's own sampling of a mixture's tokens does not support, and what changes nothing."""


def ballot_of(wish: Wish, structure: Structure) -> tuple[Ballot | None, Structure]:
    """Returns the choices that the answer is one of, and the form of an answer that one expert writes."""
    normalised = bool(wish.length_normalised)
    if wish.choices is not None:
        if structure is not FREE:
            raise invalid(f"Set 'moe2.choices' or '{structure.param}', not both.", param="moe2.choices")
        choices = _checked(wish.choices)
        return Ballot(choices, normalised), Structure("moe2.choices", Generation(grammar=_grammar(choices)))
    has_schema = structure.form.json_schema is not None and structure.form.tool_rules is None
    texts = _enumerated(structure.form.json_schema or "") if has_schema else None
    if texts is None:
        if wish.length_normalised is not None:
            raise invalid("'moe2.length_normalised' needs 'moe2.choices'.", param="moe2.length_normalised")
        return None, structure
    return Ballot(texts, normalised), structure


def modes_of(
    fields: Mapping[str, Any],
    wish: Wish,
    generation: Generation,
    ballot: Ballot | None,
    *,
    structured_by: str | None,
    for_one: str | None,
) -> frozenset[Mode]:
    """Returns the modes that can serve the request. Raises `ApiError` (400) where it asks for another one.

    fields: the body's own, which tell what was set. structured_by: the parameter that asked for the answer's form.
    for_one: the parameter that only one expert alone can honour; None if there is none.
    """
    obstacles = {
        Mode.VOTE: for_one or _against_vote(fields, ballot, generation.logprobs),
        Mode.RANK: for_one,
        Mode.CONSENSUS: for_one,
        Mode.MIX: for_one or structured_by or _against_mix(generation.sampling),
    }
    for name in ("answer", "confidence"):
        if getattr(wish, name) is not None and wish.mode not in (None, Mode.AUTO, Mode.CONSENSUS):
            raise invalid(f"'moe2.{name}' needs 'moe2.mode': \"consensus\" or \"auto\".", param=f"moe2.{name}")
    if wish.mode in obstacles and (param := obstacles[wish.mode]):
        if param == "moe2.choices" and ballot is None:
            hint = "It needs 'moe2.choices', or a 'response_format' whose JSON schema is an enum."
            raise invalid(f"'moe2.mode': \"vote\" has nothing to vote on. {hint}", param="moe2.mode")
        raise unsupported(param, hint=f"'moe2.mode': \"{wish.mode}\" does not go with it.")
    return frozenset({Mode.ROUTE}) | {mode for mode, param in obstacles.items() if param is None}


def _against_vote(fields: Mapping[str, Any], ballot: Ballot | None, logprobs: int | None) -> str | None:
    """Returns the parameter that a vote cannot honour; None if there is none."""
    if ballot is None:
        return "moe2.choices"
    if logprobs is not None:
        return "logprobs"
    return next((name for name in _WEIGHING if fields.get(name) not in (None, 0, {}, [])), None)


def _against_mix(sampling: Sampling) -> str | None:
    """Returns the parameter that mixing cannot honour; None if there is none.

    Members send only the tokens that they find likely themselves, and would have to follow a grammar in step.
    """
    if sampling.logit_bias and max(sampling.logit_bias.values()) > 0:
        return "logit_bias"
    for name, neutral in _UNMIXED:
        if getattr(sampling, name) not in (None, neutral):
            return name
    return None


def _checked(choices: tuple[str, ...]) -> tuple[str, ...]:
    where = "moe2.choices"
    if not 2 <= len(choices) <= MAX_CHOICES or len(set(choices)) < len(choices):
        raise invalid(f"'{where}' must be 2 to {MAX_CHOICES} different texts.", param=where)
    for choice in choices:
        if not choice or len(choice.encode("utf-8", "replace")) > MAX_CHOICE_BYTES:
            raise invalid(f"Each of '{where}' must have 1 to {MAX_CHOICE_BYTES} bytes.", param=where)
    return choices


def _grammar(choices: tuple[str, ...]) -> str:
    """Returns a GBNF grammar of the choices; its string literals escape as JSON's do, where it matters."""
    return "root ::= " + " | ".join(msgspec.json.encode(choice).decode() for choice in choices)


def _enumerated(schema: str) -> tuple[str, ...] | None:
    """Returns the JSON texts that a schema allows, if it is an enum or an object whose one field is one; else None."""
    rules = msgspec.json.decode(schema)
    values = _enum(rules)
    key = None
    if values is None:
        properties = rules.get("properties")
        if not isinstance(properties, dict) or len(properties) != 1 or rules.get("required") != list(properties):
            return None
        ((key, inner),) = properties.items()
        values = _enum(inner) if isinstance(inner, dict) else None
    if values is None or not 2 <= len(values) <= MAX_CHOICES:
        return None
    texts = tuple(_json(value if key is None else {key: value}) for value in values)
    return texts if len(set(texts)) == len(texts) else None


def _enum(rules: Mapping[str, Any]) -> list[Any] | None:
    """Returns the values of a schema that says nothing but an enum; None for any other."""
    if not set(rules) <= {"enum", "type", "title", "description"} or not isinstance(rules.get("enum"), list):
        return None
    values: list[Any] = rules["enum"]
    return values if all(isinstance(value, str | int | float | bool) for value in values) else None


def _json(value: Any) -> str:
    """Encodes a value as models write JSON, with a space after each colon."""
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()
