"""OpenAI's own SDK: sync and async, streamed and not, chats and responses."""

from __future__ import annotations

import asyncio
import json

import openai
from harness import BASE, EMBEDDER, KEY, MESSAGES, MODEL, QUESTION, TOO_LONG, WEATHER, need, report
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=BASE, api_key=KEY, max_retries=0)


class Verdict(BaseModel):
    ok: bool


def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    need(answer.choices[0].message.content and answer.usage.completion_tokens, answer)
    need(any(model.id == MODEL for model in client.models.list()), "no such model")


async def stream_async() -> None:
    async with AsyncOpenAI(base_url=BASE, api_key=KEY) as other:
        options = {"include_usage": True}
        stream = await other.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=8, stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    need("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks)
    need(chunks[-1].usage, chunks[-1])


def stream() -> None:
    asyncio.run(stream_async())
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=8, stop=[" "]) as events:
        final = events.get_final_completion()
    need(final.choices[0].message.content, final)


def tools() -> None:
    function = {"name": "weather", "parameters": WEATHER, "strict": True}
    offered = [{"type": "function", "function": function}]
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 90, "tools": offered, "temperature": 0}
    answer = client.chat.completions.create(**asked, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    need("city" in json.loads(call.function.arguments), call)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [*MESSAGES, answer.choices[0].message, result]
    again = client.chat.completions.create(**{**asked, "messages": history, "max_tokens": 8})
    need(again.choices[0].finish_reason, again)
    # What frameworks send by default: strict tools, and the model may choose.
    client.chat.completions.create(**{**asked, "max_tokens": 8}, parallel_tool_calls=False)


def structured() -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Verdict, max_tokens=90, temperature=0
    )
    need(isinstance(answer.choices[0].message.parsed, Verdict), answer)


def responses() -> None:
    asked = {"model": MODEL, "input": QUESTION, "max_output_tokens": 90, "temperature": 0}
    short = {**asked, "max_output_tokens": 16}
    answer = client.responses.create(**short, instructions="Be brief.")
    need(answer.output_text, answer)
    again = client.responses.create(**{**short, "input": "Another one."}, previous_response_id=answer.id)
    need(again.output_text, again)
    with client.responses.stream(**asked, text_format=Verdict) as events:
        final = events.get_final_response()
    need(isinstance(final.output_parsed, Verdict), final)
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    call = client.responses.create(**asked, tools=[tool], tool_choice="required").output[0]
    need(call.type == "function_call" and "city" in json.loads(call.arguments), call)


def embeddings() -> None:
    answer = client.embeddings.create(model=EMBEDDER, input=["a cat", "a dog"])
    need(len(answer.data) == 2 and len(answer.data[0].embedding) == 576, answer.usage)


def errors() -> None:
    try:
        client.chat.completions.create(model="gpt-nothing", messages=MESSAGES)
    except openai.NotFoundError as error:
        need(error.code == "model_not_found", error.code)
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": TOO_LONG}])
    except openai.BadRequestError as error:
        need(error.code == "context_length_exceeded", error.code)
    else:
        raise AssertionError("a prompt beyond the context was answered")


report(
    "openai",
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
