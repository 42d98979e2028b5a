"""Compiles constraints and follows them token by token. The door to llguidance.

Nothing here is bounded in time: `process` runs it where it can be stopped.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from moe2.agent.engine.structure.calls import Calls, lark_of_calls
from moe2.agent.engine.structure.constraint import Constraint, GrammarError, check_constraint
from moe2.agent.engine.structure.expansion import check_lark
from moe2.agent.engine.structure.gbnf import lark_of_gbnf
from moe2.agent.engine.structure.schema import Schema, pointer_to, schema_of, subschemas
from moe2.agent.engine.structure.toolcall import moved

MAX_PROBLEM_CHARACTERS = 400
_LOCATING_S = 0.15
"""How long the place of a schema's error is looked for."""
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written on one line, as templates write calls: where the model may choose white space, it writes a third more
tokens, small models fill answers with line ends, and little text is left that has to come (see decision 0040)."""
_UNFORCED = '%llguidance {"no_forcing": true}\n'
"""The model chooses the tokens of a text that the grammar leaves no choice about: llguidance does not have its
tokenizer."""
_OPTIONS = ("%llguidance", "x-guidance")
"""How a grammar would change what llguidance is told here."""
_ROOT = "moe2-root"
_ANSWER = "moe2-answer"
_DEAD_END = "NoExtensionBias"
"""What llguidance says where no token may come next, and the end neither."""


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a model, as answers are matched with a form.

    texts: each token's bytes as they appear in an answer; empty for those that do not. ends: tokens by which a model
    ends its answer."""

    texts: tuple[bytes, ...]
    ends: tuple[int, ...]


class Compiler:
    """Compiles constraints for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.ends:
            # llguidance needs one; nobody can draw this one.
            vocabulary = Vocabulary(texts=(*vocabulary.texts, b""), ends=(len(vocabulary.texts),))
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.ends))
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, constraint: Constraint) -> Matcher:
        """A matcher at the answer's beginning. Raises `GrammarError` that names the place."""
        check_constraint(constraint)
        if constraint.calls is not None:
            return self._beside_calls(constraint, constraint.calls)
        if constraint.syntax == "json_schema":
            return self._schema(constraint)
        return self._matcher(self._lark(constraint), what="grammar")

    def _lark(self, constraint: Constraint) -> str:
        """A grammar as Lark has it."""
        if constraint.syntax == "gbnf":
            return lark_of_gbnf(constraint.source)
        for option in _OPTIONS:
            if option in constraint.source:
                raise GrammarError(f"The grammar has {option!r}, which cannot be used.", remedy="Leave it out.")
        check_lark(constraint.source)
        return constraint.source

    def _schema(self, constraint: Constraint) -> Matcher:
        schema = schema_of(constraint.source)
        call = _written(schema)
        lark = (
            f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: {call}' if constraint.tagged else f"start: {call}"
        )
        try:
            return self._matcher(lark, what="JSON schema")
        except GrammarError:
            self._blame(schema)
            raise

    def _beside_calls(self, constraint: Constraint, calls: Calls) -> Matcher:
        """A matcher for text, of whatever form, or calls of tools."""
        arguments = {tool.name: schema_of(tool.arguments) for tool in calls.tools}
        answer, own = None, None
        if constraint.syntax == "json_schema":
            schema = schema_of(constraint.source)
            answer = _written(schema)
        elif constraint.syntax != "text":
            answer, own = f"@{_ANSWER}", self._lark(constraint)
        try:
            return self._matcher(lark_of_calls(calls, arguments, answer, written=_written), what="grammar", answer=own)
        except GrammarError:
            for name, schema in arguments.items():
                self._blame(schema, of=f" of the tool {name!r}")
            if constraint.syntax == "json_schema":
                self._blame(schema_of(constraint.source))
            raise

    def _matcher(self, lark: str, *, what: str, answer: str | None = None) -> Matcher:
        """answer: a grammar of its own that `lark` refers to."""
        grammars = [{"name": "moe2", "lark_grammar": _UNFORCED + lark}]
        if answer is not None:
            grammars.append({"name": _ANSWER, "lark_grammar": _UNFORCED + answer})
        matcher = LLMatcher(self._tokenizer, json.dumps({"grammars": grammars}), log_level=0, limits=self._limits)
        if matcher.is_error():
            problem = _first_line(matcher.get_error())
            raise GrammarError(f"The {what} is invalid: {problem}.", remedy="Check it.")
        return Matcher(matcher, what=what)

    def _blame(self, schema: Schema, *, of: str = "") -> None:
        """Raises `GrammarError` with the place at which a schema cannot be used; not where it can."""
        problem = self._problem(schema)
        if problem:
            raise self._located(schema, problem, of=of) from None

    def _problem(self, schema: Schema) -> str:
        """What llguidance says against a schema; empty if nothing."""
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(_with_options(schema)))
        return str(LLMatcher.validate_grammar(grammar, self._tokenizer, limits=self._limits))

    def _located(self, schema: Schema, problem: str, *, of: str = "") -> GrammarError:
        """The error with its keyword and place: the innermost schema that is refused by itself, and of its keywords the
        first without which it is not refused, or not for that."""
        until_s = time.perf_counter() + _LOCATING_S
        place, node = "#", schema
        for inner_place, inner in subschemas(schema):
            if time.perf_counter() > until_s:
                break
            if inner_place != "#" and len(inner_place) > len(place) and self._refuses(schema, inner_place, problem):
                place, node = inner_place, inner
        keyword = None
        if isinstance(node, dict):
            keywords = [key for key in node if key not in ("$defs", "definitions", "$schema", "$id")]
            keywords.sort(key=lambda key: key not in problem)
            keyword = next(
                (key for key in keywords if not self._refuses(_without(schema, place, key), place, problem)), None
            ) or next((key for key in keywords if key in problem), None)
        where = place if keyword is None else pointer_to(place, keyword)
        return GrammarError(
            f"The JSON schema{of} cannot be used: at {where[:MAX_PROBLEM_CHARACTERS]}: {_first_line(problem)}.",
            remedy="Leave it out, or express it by other keywords.",
        )

    def _refuses(self, schema: Schema, place: str, problem: str) -> bool:
        """Is the schema at a place refused for the same reason when it stands alone?"""
        if place == "#":
            return self._problem(schema) == problem
        here = f"#/$defs/{_ROOT}"
        alone = {"$defs": {_ROOT: moved(schema, here)}, "$ref": here + place[1:]}
        if isinstance(schema, dict) and "$schema" in schema:
            alone["$schema"] = schema["$schema"]
        return _comparable(self._problem(alone)) == _comparable(problem)


class Matcher:
    """How far an answer has come in its constraint."""

    def __init__(self, matcher: LLMatcher, *, what: str) -> None:
        self._matcher = matcher
        self._what = what

    def mask(self) -> bytes | None:
        """The tokens that may come next, one bit each, the first token's the lowest of the first byte; None where the
        answer is complete and nothing may follow. Raises `GrammarError` where nothing can, or it is too complex."""
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._failure()
        if not self._matcher.is_stopped():
            return mask
        return None

    def accept(self, token: int) -> None:
        """The answer goes on with this token. Raises `GrammarError` where it may not, or it is too complex."""
        if not self._matcher.consume_token(token):
            raise self._failure()

    def forced(self) -> bytes:
        """The text that comes next in any case; empty where there is a choice."""
        # On a copy: what goes wrong there goes wrong for the answer only if it really comes there.
        text: bytes = self._matcher.deep_copy().compute_ff_bytes()
        return text

    def along(self, tokens: Sequence[int]) -> Iterator[Matcher]:
        """How far the answer will have come after each of these tokens, if they come next, as far as they may. What is
        yielded goes on with the iteration; this matcher stays where it is."""
        ahead = Matcher(self._matcher.deep_copy(), what=self._what)
        for token in tokens:
            if not ahead._matcher.validate_tokens([token]):
                return
            ahead.accept(token)
            yield ahead

    def _failure(self) -> GrammarError:
        problem = _first_line(self._matcher.get_error())
        if problem == _DEAD_END:
            return GrammarError(f"No text can follow the {self._what} from here on.", remedy="Give it a way to end.")
        return GrammarError(f"The {self._what} is too complex: {problem}.", remedy="Simplify it.")


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = set(vocabulary.ends)
        self.eos_token_id = vocabulary.ends[0]
        self.special_token_ids = [token for token, text in enumerate(vocabulary.texts) if not text or token in ends]
        special = set(self.special_token_ids)
        # What begins with 0xff is for llguidance no text.
        self.tokens = [b"\xff<%d>" % token if token in special else text for token, text in enumerate(vocabulary.texts)]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("No text is tokenized: see no_forcing.")


def _with_options(schema: Schema) -> dict[str, Any]:
    """The schema with what llguidance is told about it."""
    rules = schema if isinstance(schema, dict) else {"allOf": [schema]}
    return {**rules, "x-guidance": {**_LAYOUT, "lenient": False}}


def _written(schema: Schema) -> str:
    """The schema in Lark."""
    return f"%json {json.dumps(_with_options(schema))}"


def _without(schema: Schema, place: str, key: str) -> Any:
    """A copy of a schema that lacks a keyword at a place."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in place.split("/")[1:]]
    return _cut(schema, [*steps, key])


def _cut(node: Any, steps: list[str]) -> Any:
    step, *rest = steps
    if isinstance(node, list):
        return [_cut(child, rest) if str(index) == step and rest else child for index, child in enumerate(node)]
    if not rest:
        return {key: value for key, value in node.items() if key != step}
    return {key: _cut(value, rest) if key == step else value for key, value in node.items()}


def _comparable(problem: str) -> str:
    """The problem without what llguidance adds where it follows a reference."""
    lines = problem.replace(f"/$defs/{_ROOT}", "").splitlines()
    return "\n".join(line for line in lines if "while processing json-schema:" not in line)


def _lines(problem: str) -> Iterator[str]:
    for line in problem.splitlines():
        if text := line.strip():
            yield text


def _first_line(problem: str) -> str:
    """What an error of llguidance says, without its quotation of the source, and with the cause that stands below."""
    lines = list(_lines(re.split(r"\n\s+1 \| |\n<state>", problem)[0]))
    cause = next((line for line in lines[1:] if line.startswith("error: ")), None)
    said = lines[0] if lines else "it cannot be used"
    if cause is not None:
        said = f"{said.rstrip(':')} ({cause.removeprefix('error: ')})"
    return said[:MAX_PROBLEM_CHARACTERS].rstrip(".")
