"""Anthropic's own SDK."""

from __future__ import annotations

import anthropic
from anthropic import Anthropic
from harness import KEY, MESSAGES, MODEL, TOO_LONG, URL, WEATHER, need, report

client = Anthropic(base_url=URL, api_key=KEY, max_retries=0)
TOOL = {"name": "weather", "input_schema": WEATHER}


def chat() -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(model=MODEL, max_tokens=8, messages=MESSAGES, system=system)
    need(answer.content[0].text and answer.usage.output_tokens, answer)
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system=system)
    read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    need(counted.input_tokens == read, (counted, answer.usage))


def stream() -> None:
    with client.messages.stream(model=MODEL, max_tokens=8, messages=MESSAGES) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    need(text and text == final.content[0].text, final)


def tools() -> None:
    asked = {"model": MODEL, "max_tokens": 90, "tools": [TOOL], "extra_body": {"temperature": 0}}
    answer = client.messages.create(**asked, messages=MESSAGES, tool_choice={"type": "any"})
    use = next(block for block in answer.content if block.type == "tool_use")
    need("city" in use.input and answer.stop_reason == "tool_use", answer)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    history = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    need(client.messages.create(**{**asked, "max_tokens": 8}, messages=history).stop_reason, "no reason")


def errors() -> None:
    try:
        client.messages.create(model="claude-nothing", max_tokens=8, messages=MESSAGES)
    except anthropic.NotFoundError as error:
        need(error.body["error"]["type"] == "not_found_error", error.body)
    try:
        client.messages.create(model=MODEL, max_tokens=8, messages=[{"role": "user", "content": TOO_LONG}])
    except anthropic.BadRequestError as error:
        need(error.body["error"]["type"] == "invalid_request_error", error.body)
    else:
        raise AssertionError("a prompt beyond the context was answered")


report("anthropic", {"chat": chat, "stream": stream, "tools": tools, "errors": errors})
