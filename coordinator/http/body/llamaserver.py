"""The bodies of llama-server's own routes: their types, and the text completion that asks for the same. PURE.

The shapes are those of https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (`POST /completion`,
`POST /infill`). What completions have, too, is checked in one place: `body.parse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from moe2.common.generation import TokenId
from moe2.coordinator.http.body.neutral import Idle, only
from moe2.coordinator.http.body.requests import MAX_PROMPT_IDS, Closed, CommonRequest, JsonSchema, Text
from moe2.coordinator.http.errors import invalid

MAX_SNIPPETS = 1024
MAX_FIELDS = 64
CHARACTERS_PER_TOKEN = 2
"""Fewer than source code has on average, so that the text around a gap fits a context that it is cut to. Snippets count
one token for each character: figures and signs have no longer ones."""
_END_OF_FILE = "\n"
"""What follows a gap that nothing follows: with a text behind it the model knows that it is to fill a gap."""
_OWN_NAMES = ("n_predict", "json_schema", "response_fields", "input_prefix", "input_suffix", "input_extra")


class LlamaServerRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /completion`. response_fields: what the answer is to have, such as `timings/prompt_n`."""

    prompt: Text | Annotated[list[TokenId], Meta(max_length=MAX_PROMPT_IDS)] = ""
    n: Annotated[Any, only(1)] = None
    json_schema: JsonSchema | None = None
    response_fields: Annotated[list[Text], Meta(max_length=MAX_FIELDS)] | None = None


class Snippet(Closed, frozen=True, kw_only=True):
    """A part of another file, or of another place in the same one, that the model is to know."""

    text: Text
    filename: Text = ""
    time: Idle = None


class InfillRequest(LlamaServerRequest, frozen=True, kw_only=True):
    """The body of `POST /infill`. prompt: what stands between `input_prefix` and the gap."""

    prompt: Text = ""
    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: Annotated[list[Snippet], Meta(max_length=MAX_SNIPPETS)] | None = None


def completion_fields(request: LlamaServerRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the text completion that asks for the same. fields: the body's own, which tell what was
    set. No tokens at all are no limit there: who asks for none is answered otherwise."""
    text = {name: value for name, value in fields.items() if name not in _OWN_NAMES}
    limit = request.max_tokens if request.n_predict is None else request.n_predict
    text |= {"prompt": request.prompt, "max_tokens": limit or None}
    if request.json_schema is not None:
        if request.response_format is not None:
            raise invalid("Set 'json_schema' or 'response_format', not both.", param="json_schema")
        text["response_format"] = {"type": "json_schema", "schema": request.json_schema}
    return text


def infill_fields(
    request: InfillRequest, fields: Mapping[str, Any], *, context_tokens: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the fields of the text completion that fills the gap, and the parameters of which something was cut off.

    context_tokens: of the expert with the largest; None where nobody knows, and nothing is cut. Editors send more than
    fits: snippets give way first, the oldest before others, then what is far from the gap.
    """
    before, after, snippets = request.input_prefix + request.prompt, request.input_suffix, request.input_extra or []
    cut: list[str] = []
    if context_tokens is not None:
        room = CHARACTERS_PER_TOKEN * max(1, context_tokens - max(0, request.n_predict or 0))
        if len(before) + len(after) > room:
            after = after[: max(room // 4, room - len(before))]
            cut += ["input_suffix"] if len(after) < len(request.input_suffix) else []
            cut += ["input_prefix"] if len(before) > room - len(after) else []
            before = before[max(0, len(before) - (room - len(after))) :]
        kept = _latest(snippets, room // CHARACTERS_PER_TOKEN - len(before) - len(after))
        cut += ["input_extra"] if len(kept) < len(snippets) else []
        snippets = kept
    text = completion_fields(request, fields)
    text["prompt"] = "".join(map(_shown, snippets)) + before
    text["suffix"] = after or _END_OF_FILE
    return text, tuple(cut)


def _latest(snippets: Sequence[Snippet], n_characters: int) -> list[Snippet]:
    """Returns as many of the last snippets as there is room for."""
    kept: list[Snippet] = []
    for snippet in reversed(snippets):
        n_characters -= len(_shown(snippet))
        if n_characters < 0:
            break
        kept.append(snippet)
    return kept[::-1]


def _shown(snippet: Snippet) -> str:
    """Returns a snippet as it stands before the text, in the form that llama-server has for models without a mark."""
    return f"--- {snippet.filename or 'snippet'} ---\n{snippet.text}\n\n"
