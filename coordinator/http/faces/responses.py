"""The face of OpenAI's Responses API: `POST /v1/responses`, whole or streamed. PURE.

A stream's events and their order are those that the SDK's accumulators expect; each has the next sequence number. See
https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from moe2.common.error_codes import ErrorCode
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.parse import read_chat
from moe2.coordinator.http.body.responses import (
    CHAT_NAMES,
    CallItem,
    CustomCallItem,
    CustomTool,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ReferenceItem,
    ResponsesRequest,
    chat_fields,
    items_of,
    read_responses,
)
from moe2.coordinator.http.errors import ApiError, refused, renamed
from moe2.coordinator.http.faces.completions import Header, logprobs_of
from moe2.coordinator.http.faces.face import Asked, End, Incoming, Origin, Part, Text
from moe2.coordinator.http.faces.response_memory import KeptResponse, ResponseMemory
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun, input_of
from moe2.coordinator.serving.receipt import Receipt

_SCORED = Header(id="", created=0, model="", is_chat=True)
"""Log-probabilities have the shape of a chat completion's."""
NOT_KEPT = "Responses are kept in memory only, and the oldest are forgotten: send the whole conversation as 'input'."


class ResponsesFace:
    """Reads bodies of `POST /v1/responses`, with what is kept of earlier responses."""

    def __init__(self, memory: ResponseMemory) -> None:
        self._memory = memory

    def __call__(self, incoming: Incoming) -> Asked:
        """Reads a body. Raises `ApiError` (400), which names the parameter."""
        fields = json_object(incoming.body)
        request, ignored = read_responses(fields, incoming.reading)
        owner = incoming.principal.key_id
        own = self._resolved(items_of(request), owner)
        earlier = self._earlier(request.previous_response_id, owner)
        try:
            call = read_chat(chat_fields(request, fields, [*earlier, *own]), incoming.headers, incoming.reading)
        except ApiError as error:
            raise renamed(error, CHAT_NAMES) from None
        call = call.called(CHAT_NAMES)
        n_asked_bytes = len(incoming.body)
        call = replace(call, ignored=(*ignored, *call.ignored))

        def keep(answer: dict[str, Any], output: dict[str, Item]) -> None:
            if request.store:
                n_bytes = n_asked_bytes + len(msgspec.json.encode(answer))
                previous_id = request.previous_response_id
                kept = KeptResponse(answer["id"], owner, previous_id, own, output, answer, n_bytes)
                self._memory.put(kept)

        return Asked(call, ResponseEncoder(request, keep, with_logprobs=call.with_logprobs))

    def _earlier(self, previous_id: str | None, owner: str | None) -> list[Item]:
        if previous_id is None:
            return []
        earlier = self._memory.conversation(previous_id, owner)
        if earlier is None:
            text = f"The conversation up to {previous_id!r} is not kept here (any more). {NOT_KEPT}"
            raise refused(ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND, text, param="previous_response_id")
        return earlier

    def _resolved(self, items: tuple[Item, ...], owner: str | None) -> tuple[Item, ...]:
        """Returns items with what references stand for in their place."""
        return tuple(
            self._item(item.id, f"input[{index}].id", owner) if isinstance(item, ReferenceItem) else item
            for index, item in enumerate(items)
        )

    def _item(self, item_id: str, where: str, owner: str | None) -> Item:
        item = self._memory.item(item_id, owner)
        if item is None:
            text = f"The item {item_id!r} is not kept here (any more). {NOT_KEPT}"
            raise refused(ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND, text, param=where)
        return item


def usage_of(receipt: Receipt) -> dict[str, Any] | None:
    """Returns a receipt's tokens as the Responses API's usage, or None where they are not known."""
    tokens = receipt.tokens
    if tokens.prompt is None or tokens.decoded is None:
        return None
    return {
        "input_tokens": tokens.prompt,
        # Nothing is written to a cache that would be charged for.
        "input_tokens_details": {"cached_tokens": tokens.cached or 0, "cache_write_tokens": 0},
        "output_tokens": tokens.decoded,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning or 0},
        "total_tokens": tokens.prompt + tokens.decoded,
    }


class ResponseEncoder:
    """The `Encoder` of one response.

    on_end: called with the whole response, and its output as items of a next turn, before the client learns of the end.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        on_end: Callable[[dict[str, Any], dict[str, Item]], None],
        *,
        with_logprobs: bool,
    ) -> None:
        self._request = request
        self._with_logprobs = with_logprobs
        self._on_end = on_end
        self._response: dict[str, Any] = {}
        self._output: list[dict[str, Any]] = []
        self._items: dict[str, Item] = {}
        self._message: dict[str, Any] | None = None
        """The part of the message that is being written."""
        self._thought: dict[str, Any] | None = None
        """The part of the reasoning that is being written."""
        self._events: list[bytes] = []
        self._n_events = 0
        self._streams = True

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns the `response` object."""
        self._streams = False
        self.begin(origin)
        self.parts(parts)
        self.end(end)
        return self._response

    def begin(self, origin: Origin) -> bytes:
        """Returns the events `response.created` and `response.in_progress`."""
        self._response = _response_of(self._request, origin)
        self._say("response.created", response=self._response)
        self._say("response.in_progress", response=self._response)
        return self._said()

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the events for more of the answer."""
        for part in parts:
            if isinstance(part, CallBegun):
                self._close_reasoning("completed")
                self._close_message("completed")
                self._begin_call(part)
            elif isinstance(part, CallArguments):
                self._go_on_with_call(part.text)
            elif isinstance(part, ToolCall):
                self._end_call(part)
            elif part.is_reasoning:
                self._think(str(part))
            else:
                self._write(part)
        return self._said()

    def end(self, end: End) -> bytes:
        """Returns the event `response.completed`, or `response.incomplete` where the answer was cut off."""
        status = "incomplete" if end.reason == "length" else "completed"
        self._close_reasoning(status)
        if not self._output:
            self._open_message()
        self._close_message(status)
        response = self._response
        response |= {"status": status, "output": self._output, "usage": usage_of(end.receipt), "moe2": end.receipt}
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._on_end(response, self._items)
        self._say(f"response.{status}", response=response)
        return self._said()

    def error(self, error: ApiError) -> bytes:
        """Returns the event `response.failed`."""
        self._close_reasoning("incomplete")
        self._close_message("incomplete")
        failure = {"code": error.code or error.kind, "message": error.message}
        response = self._response | {"status": "failed", "output": self._output, "error": failure}
        if error.receipt is not None:
            response |= {"usage": usage_of(error.receipt), "moe2": error.receipt}
        self._say("response.failed", response=response)
        return self._said()

    def _write(self, text: Text) -> None:
        written = str(text)
        scores = logprobs_of(_SCORED, text.pieces)["content"] if self._with_logprobs else []
        if not written and not scores:
            return
        self._close_reasoning("completed")
        part = self._message or self._open_message()
        part["text"] += written
        part["logprobs"] += scores
        self._say("response.output_text.delta", **self._place(), delta=written, logprobs=scores)

    def _think(self, text: str) -> None:
        if not text:
            return
        if self._thought is None:
            self._close_message("completed")
            self._open({"id": self._item_id("rs"), "type": "reasoning", "status": "in_progress", "summary": []})
            self._thought = {"type": "reasoning_text", "text": ""}
            self._say("response.content_part.added", **self._place(), part=self._thought)
        self._thought["text"] += text
        self._say("response.reasoning_text.delta", **self._place(), delta=text)

    def _close_reasoning(self, status: str) -> None:
        part, self._thought = self._thought, None
        if part is None:
            return
        item = self._output[-1]
        self._say("response.reasoning_text.done", **self._place(), text=part["text"])
        self._say("response.content_part.done", **self._place(), part=part)
        item |= {"status": status, "content": [part]}
        self._close(ReasoningItem(content=[ReasoningText(text=part["text"])], id=item["id"]))

    def _open_message(self) -> dict[str, Any]:
        item = {"id": self._item_id("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
        self._open({**item, "content": []})
        self._message = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._say("response.content_part.added", **self._place(), part=self._message)
        return self._message

    def _close_message(self, status: str) -> None:
        part, self._message = self._message, None
        if part is None:
            return
        item = self._output[-1]
        self._say("response.output_text.done", **self._place(), text=part["text"], logprobs=part["logprobs"])
        self._say("response.content_part.done", **self._place(), part=part)
        item |= {"status": status, "content": [part]}
        self._close(MessageItem(role="assistant", content=[OutputText(text=part["text"])], id=item["id"]))

    def _begin_call(self, call: CallBegun) -> None:
        tool = next((tool for tool in self._request.tools if tool.name == call.name), None)
        is_custom = isinstance(tool, CustomTool)
        kind, part = ("custom_tool_call", "input") if is_custom else ("function_call", "arguments")
        item = {"id": self._item_id("ctc" if is_custom else "fc"), "type": kind, "status": "in_progress"}
        if tool is not None and tool.namespace is not None:
            item["namespace"] = tool.namespace
        self._open({**item, "call_id": call.id, "name": call.name, part: ""})

    def _go_on_with_call(self, arguments: str) -> None:
        if self._output[-1]["type"] == "function_call":
            self._say("response.function_call_arguments.delta", **self._call_place(), delta=arguments)

    def _end_call(self, call: ToolCall) -> None:
        item = self._output[-1]
        item["status"] = "completed"
        common = {"call_id": call.id, "name": call.name, "id": item["id"], "namespace": item.get("namespace")}
        if item["type"] == "custom_tool_call":
            # It is a text within the arguments, which is known when these are.
            item["input"] = input_of(call)
            self._say("response.custom_tool_call_input.delta", **self._call_place(), delta=item["input"])
            self._say("response.custom_tool_call_input.done", **self._call_place(), input=item["input"])
            self._close(CustomCallItem(input=item["input"], **common))
            return
        item["arguments"] = call.arguments
        self._say(
            "response.function_call_arguments.done", **self._call_place(), name=call.name, arguments=call.arguments
        )
        self._close(CallItem(arguments=call.arguments, **common))

    def _call_place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _open(self, item: dict[str, Any]) -> None:
        self._output.append(item)
        self._say("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, item: Item) -> None:
        done = self._output[-1]
        self._items[done["id"]] = item
        self._say("response.output_item.done", output_index=len(self._output) - 1, item=done)

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self._response['id'].removeprefix('resp_')}_{len(self._output)}"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _say(self, kind: str, **fields: Any) -> None:
        """Writes an event, unless the answer is wanted whole: nobody reads it then, and each repeats a long text."""
        if not self._streams:
            return
        event = {"type": kind, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n")

    def _said(self) -> bytes:
        said = b"".join(self._events)
        self._events.clear()
        return said


def _response_of(request: ResponsesRequest, origin: Origin) -> dict[str, Any]:
    """Returns the `response` object of an answer that has just begun."""
    text, reasoning = request.text, request.reasoning
    return {
        "id": f"resp_{origin.request_id.removeprefix('req-')}",
        "object": "response",
        "created_at": origin.created_unix_s,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": origin.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning and reasoning.effort, "summary": reasoning and reasoning.summary},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store,
        "temperature": request.temperature,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": request.tool_choice,
        "tools": request.tools,
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }
