"""Grammars that an answer must follow: GBNF as it stands, or made from a JSON schema. A door to llama.cpp.

A grammar is checked against one drawn token first; only where that token breaks it is the whole vocabulary filtered,
which is far slower (llama.cpp's own server does the same).
"""

from __future__ import annotations

import ctypes
import json
import re
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as llama
from llama_cpp.llama_grammar import json_schema_to_gbnf

from moe2.agent.engine.model import Model, recent_error
from moe2.agent.engine.request import RequestError
from moe2.common.errors import JobErrorCode

_ANY_OBJECT = '{"type": "object"}'
_MOST_BYTES = 65_536
_DEEPEST_NESTING = 64
_MOST_REPETITIONS = 1_000
"""A larger count makes a grammar of millions of rules, which neither memory nor patience would survive."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarError(RequestError):
    """A grammar or schema that cannot be used."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, code=JobErrorCode.INVALID_GRAMMAR, remedy=remedy)


class Grammar:
    """One job's grammar and how far its answer has come in it."""

    def __init__(self, model: Model, gbnf: str) -> None:
        """Raises `GrammarError` where llama.cpp cannot parse it."""
        _check_gbnf(gbnf)
        self._sampler = llama.llama_sampler_init_grammar(model.vocabulary, gbnf.encode(), b"root")
        if not self._sampler:
            raise GrammarError(
                f"The grammar is invalid: {recent_error() or 'llama.cpp cannot parse it'}.",
                remedy="Check it against GBNF; it needs a rule named root.",
            )

    def allows(self, token: int) -> bool:
        """May this token come next?"""
        candidates = np.array([(token, 0.0, 0.0)], _CANDIDATE)
        array = candidate_array(candidates)
        self.restrict(array)
        return bool(np.isfinite(candidates["logit"][0]))

    def restrict(self, array: llama.llama_token_data_array) -> None:
        """Set the logit of every candidate that may not come next to minus infinity."""
        llama.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def accept(self, token: int) -> None:
        """The answer goes on with this token, which must be allowed."""
        llama.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        llama.llama_sampler_free(self._sampler)


def candidate_array(candidates: np.ndarray[Any, Any]) -> llama.llama_token_data_array:
    """llama.cpp's view of candidates; valid as long as `candidates` lives."""
    return llama.llama_token_data_array(
        data=candidates.ctypes.data_as(llama.llama_token_data_p), size=len(candidates), selected=-1, sorted=False
    )


def candidates_of(
    logits: np.ndarray[Any, np.dtype[np.float32]], tokens: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """These tokens as candidates; all of the vocabulary if none are given."""
    candidates = np.zeros(len(logits) if tokens is None else len(tokens), _CANDIDATE)
    candidates["id"] = np.arange(len(logits), dtype=np.int32) if tokens is None else tokens
    candidates["logit"] = logits if tokens is None else logits[tokens]
    return candidates


def gbnf_of_schema(schema: str) -> str:
    """A JSON schema, as JSON text, to GBNF; an empty schema is any JSON object. Raises `GrammarError`."""
    if len(schema.encode()) > _MOST_BYTES:
        raise GrammarError(f"The JSON schema has more than {_MOST_BYTES} bytes.", remedy="Make it smaller.")
    try:
        content = json.loads(schema)
        _check_schema(content, depth=0)
        gbnf: str = json_schema_to_gbnf(schema if content else _ANY_OBJECT)
    except GrammarError:
        raise
    except RecursionError as error:
        raise GrammarError("The JSON schema is nested too deeply or without end.") from error
    except (ValueError, AssertionError, LookupError, TypeError, AttributeError) as error:
        raise GrammarError(
            f"The JSON schema cannot be made into a grammar: {type(error).__name__}: {error}.",
            remedy="Check it, and leave out remote $refs and unusual keywords.",
        ) from error
    return gbnf


def _check_schema(node: Any, *, depth: int) -> None:
    if depth == 0 and not isinstance(node, dict):
        raise GrammarError("The JSON schema is not an object.")
    if depth > _DEEPEST_NESTING:
        raise GrammarError(f"The JSON schema is nested more than {_DEEPEST_NESTING} deep.", remedy="Flatten it.")
    if isinstance(node, dict):
        for name in _COUNTS:
            count = node.get(name)
            if isinstance(count, int) and count > _MOST_REPETITIONS:
                raise GrammarError(f"The JSON schema has {name} {count}, more than {_MOST_REPETITIONS}.")
        pattern = node.get("pattern")
        if isinstance(pattern, str) and any(
            int(count) > _MOST_REPETITIONS for count in re.findall(r"\d+(?=[,}])", pattern)
        ):
            raise GrammarError(f"A pattern of the JSON schema repeats more than {_MOST_REPETITIONS} times.")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_schema(child, depth=depth + 1)


def _check_gbnf(gbnf: str) -> None:
    """llama.cpp's parser recurses with the nesting, on a stack that ends."""
    if len(gbnf.encode()) > 4 * _MOST_BYTES:
        raise GrammarError(f"The grammar has more than {4 * _MOST_BYTES} bytes.", remedy="Make it smaller.")
    if not gbnf.strip():
        raise GrammarError("The grammar is empty.", remedy="Leave it out, or give it a rule named root.")
    if "\0" in gbnf:
        raise GrammarError("The grammar contains a NUL character.", remedy="Remove it.")
    depth = deepest = 0
    for character in gbnf:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > _DEEPEST_NESTING:
        raise GrammarError(f"The grammar is nested more than {_DEEPEST_NESTING} deep.", remedy="Use more rules.")
    counts = [int(count) for count in re.findall(r"\d+(?=\s*[,}])", gbnf)]
    if any(count > _MOST_REPETITIONS for count in counts):
        raise GrammarError(f"The grammar repeats more than {_MOST_REPETITIONS} times.", remedy="Use * instead.")
