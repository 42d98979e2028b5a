"""Ollama's own package."""

from __future__ import annotations

import json

import ollama
from harness import EMBEDDER, MESSAGES, MODEL, TOO_LONG, URL, WEATHER, need, report
from ollama import Client

client = Client(host=URL)
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}}
SHORT = {"num_predict": 8}


def chat() -> None:
    answer = client.chat(MODEL, MESSAGES, options=SHORT, keep_alive="5m")
    need(answer.message.content and answer.eval_count == 8, answer)
    generated = client.generate(MODEL, "A colour:", system="Be brief.", options=SHORT)
    need(generated.response and generated.done, generated)
    listed = [model.model for model in client.list().models]
    need(MODEL in listed, listed)
    need("tools" in client.show(MODEL).capabilities, client.show(MODEL))


def stream() -> None:
    parts = list(client.chat(MODEL, MESSAGES, stream=True, options=SHORT))
    need("".join(part.message.content for part in parts) and parts[-1].done_reason == "length", parts)
    need(len(parts) > 2, parts)


def tools() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    history = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    history += [{"role": "tool", "tool_name": "weather", "content": "sunny"}]
    answer = client.chat(MODEL, history, tools=[TOOL], options=SHORT)
    need(answer.message.content or answer.message.tool_calls, answer)


def structured() -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    answer = client.chat(MODEL, MESSAGES, format=schema, options={"num_predict": 40})
    need(json.loads(answer.message.content)["colour"] in ("red", "blue"), answer)
    need(isinstance(json.loads(client.generate(MODEL, "JSON!", format="json").response), dict), "no object")


def embeddings() -> None:
    vectors = client.embed(EMBEDDER, ["one", "two"]).embeddings
    need(len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 1, vectors)
    need(list(client.embeddings(EMBEDDER, "one").embedding) == list(vectors[0]), "another vector")


def errors() -> None:
    for model, content, status in (("llama-nothing", "Hi", 404), (MODEL, TOO_LONG, 400)):
        try:
            client.chat(model, [{"role": "user", "content": content}])
        except ollama.ResponseError as error:
            need(error.status_code == status and error.error, error)
        else:
            raise AssertionError(f"{model} answered")


report(
    "ollama",
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "structured": structured,
        "embeddings": embeddings,
        "errors": errors,
    },
)
