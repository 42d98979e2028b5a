"""Requests as clients in the field send them by default, shortened; docs/clients.md names these clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import fleet

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages?beta=true"
HI: Any = [{"role": "user", "content": "Say hello."}]
PARTS: Any = [{"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LOOSE: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
STRICT: Any = {"type": "function", "function": {**LOOSE["function"], "strict": True}}
CALLED: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
XML = (
    "You are Cline.\n<tool_use>\n<read_file>\n<path>File path here</path>\n</read_file>\n<tool_call>never</tool_call>\n"
)
USAGE: Any = {"stream": True, "stream_options": {"include_usage": True}}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Open WebUI": (CHAT, {**USAGE, "messages": HI}),
    "Open WebUI, a title": (CHAT, {"messages": HI, "stream": False, "metadata": {"task": "title_generation"}}),
    "LibreChat": (
        CHAT,
        {"user": "u", "messages": HI, "stream": True, "temperature": 1, "top_p": 1, "presence_penalty": 0},
    ),
    "Continue": (
        CHAT,
        {"messages": HI, "stream": True, "tools": [LOOSE], "parallel_tool_calls": False, "stop": list("12345")},
    ),
    "Cline": (CHAT, {**USAGE, "messages": [{"role": "system", "content": XML * 100}, *PARTS], "temperature": 0}),
    "Roo Code": (
        CHAT,
        {**USAGE, "messages": PARTS, "tools": [STRICT], "tool_choice": "auto", "parallel_tool_calls": False},
    ),
    "LlamaIndex": (CHAT, {"messages": HI, "stream": False, "temperature": 0.1}),
    "Haystack": (CHAT, {"messages": HI, "stream": False, "tools": [STRICT], "n": 1}),
    "smolagents": (
        CHAT,
        {"messages": PARTS, "stop": ["Observation:", "Calling tools:"], "tools": [LOOSE], "tool_choice": "required"},
    ),
    "CrewAI": (CHAT, {"messages": HI, "stop": ["\nObservation:"], "n": 1, "temperature": None, "logprobs": None}),
    "AutoGen": (
        CHAT,
        {
            "messages": [
                {"role": "user", "name": "user", "content": "hi"},
                {"role": "assistant", "name": "assistant", "content": None, "tool_calls": [CALLED]},
                {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            ],
            "tools": [STRICT],
            "stream": False,
        },
    ),
    "AG2": (CHAT, {"messages": HI, "tools": [], "stream": False}),
    "Semantic Kernel": (
        CHAT,
        {"messages": PARTS, "n": 1, "top_p": 1.0, "temperature": 0.0, "tools": [LOOSE], "tool_choice": "auto"},
    ),
    "OpenAI SDK, .NET": (
        CHAT,
        {**USAGE, "messages": PARTS, "response_format": {"type": "text"}, "logit_bias": {}, "stop": []},
    ),
    "OpenAI Agents SDK": (
        RESPONSES,
        {
            "input": HI,
            "instructions": "Be nice.",
            "tools": [{"name": "weather", "parameters": SCHEMA, "strict": True, "type": "function"}],
            "include": [],
            "stream": True,
            "parallel_tool_calls": None,
            "tool_choice": "auto",
            "metadata": None,
        },
    ),
    "OpenAI Agents SDK, chat": (CHAT, {**USAGE, "messages": HI, "store": True, "reasoning_effort": None}),
    "Vercel AI SDK 5": (
        RESPONSES,
        {"input": HI, "stream": True, "include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"}},
    ),
    "go-openai": (
        CHAT,
        {
            "messages": [
                *HI,
                {"role": "assistant", "content": "", "tool_calls": [CALLED]},
                {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "weather"},
            ],
            "tools": [LOOSE],
        },
    ),
    "Dify": (CHAT, {"messages": HI, "stream": True, "temperature": 0.7, "user": "u", "stop": ["\nHuman:"]}),
    "SillyTavern": (
        CHAT,
        {"messages": HI, "stream": True, "stop": [], "logit_bias": {}, "seed": None, "n": None, "top_k": 0, "min_p": 0},
    ),
    "Copilot, a key of one's own": (CHAT, {**USAGE, "messages": HI, "n": 1, "tools": [LOOSE], "tool_choice": "auto"}),
    "Spring AI": (CHAT, {"messages": HI, "stream": False, "temperature": 0.7}),
    "LangChain4j": (
        CHAT,
        {
            "messages": HI,
            "response_format": {"type": "json_schema", "json_schema": {"name": "P", "strict": False, "schema": SCHEMA}},
        },
    ),
    "Zed": (CHAT, {"messages": PARTS, "stream": True, "stop": [], "parallel_tool_calls": False, "tools": [LOOSE]}),
    "vLLM's clients": (
        CHAT,
        {"messages": HI, "stop_token_ids": [], "skip_special_tokens": True, "ignore_eos": False, "min_tokens": 0},
    ),
    "Claude Code": (
        MESSAGES,
        {
            "max_tokens": 32000,
            "stream": True,
            "system": [{"type": "text", "text": "You are", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": ""},
                        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [], "is_error": False}],
                },
            ],
            "tools": [{"name": "Bash", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
            "metadata": {"user_id": "u"},
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "medium"},
        },
    ),
}


@pytest.mark.slow
async def test_what_clients_send_by_default_is_answered(tmp_path: Path) -> None:
    """None of them is refused for what its user did not ask for; those that stream get a whole stream."""
    refused: dict[str, str] = {}
    models = [{"name": "fake", "path": tmp_path / "fake.gguf", "context_tokens": 16384, "slots": 4}]
    async with fleet(tmp_path, models=models) as running:
        for client, (route, fields) in SHAPES.items():
            body = {"model": "moe2", **({} if route == RESPONSES else {"max_tokens": 8}), **fields}
            async with running.http.post(route, json=body) as answer:
                text = await answer.text()
                ends = {CHAT: "[DONE]", RESPONSES: "response.", MESSAGES: "message_stop"}
                if answer.status != 200 or (body.get("stream") and ends[route] not in text):
                    refused[client] = f"{answer.status}: {text[-300:]}"
    assert refused == {}


async def test_a_body_without_a_content_type_is_json(tmp_path: Path) -> None:
    """As `curl -d` sends it: as a form, by its header."""
    async with fleet(tmp_path) as running:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        content = b'{"model": "moe2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'
        async with running.http.post(CHAT, data=content, headers=headers) as answer:
            assert answer.status == 200
