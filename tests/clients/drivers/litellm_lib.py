"""LiteLLM, as a library: OpenAI's routes under its names."""

from __future__ import annotations

import json

import litellm
from harness import BASE, EMBEDDER, KEY, MESSAGES, MODEL, QUESTION, TOO_LONG, URL, WEATHER, need, report
from pydantic import BaseModel

ASKED = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": KEY, "num_retries": 0, "temperature": 0}
PLAIN = {name: value for name, value in ASKED.items() if name != "temperature"}


class Verdict(BaseModel):
    ok: bool


def chat() -> None:
    answer = litellm.completion(**ASKED, messages=MESSAGES, max_tokens=8)
    need(answer.choices[0].message.content, answer)
    other = {**ASKED, "model": f"anthropic/{MODEL}", "api_base": URL}
    need(litellm.completion(**other, messages=MESSAGES, max_tokens=8).choices[0].message.content, "nothing")


def stream() -> None:
    chunks = list(litellm.completion(**ASKED, messages=MESSAGES, max_tokens=8, stream=True))
    need("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks)


def tools() -> None:
    offered = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    answer = litellm.completion(**ASKED, messages=MESSAGES, tools=offered, tool_choice="required", max_tokens=90)
    need("city" in json.loads(answer.choices[0].message.tool_calls[0].function.arguments), answer)


def structured() -> None:
    answer = litellm.completion(**ASKED, messages=MESSAGES, response_format=Verdict, max_tokens=60)
    Verdict.model_validate_json(answer.choices[0].message.content)


def responses() -> None:
    answer = litellm.responses(**PLAIN, input=QUESTION, max_output_tokens=16)
    need(answer.output[0].content[0].text, answer)


def embeddings() -> None:
    answer = litellm.embedding(**{**PLAIN, "model": f"openai/{EMBEDDER}"}, input=["a cat"])
    need(len(answer.data[0]["embedding"]) == 576, answer)


def errors() -> None:
    try:
        litellm.completion(**ASKED, messages=[{"role": "user", "content": TOO_LONG}])
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("a prompt beyond the context was answered")


report(
    "litellm",
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "structured": structured,
        "responses": responses,
        "embeddings": embeddings,
        "errors": errors,
    },
)
