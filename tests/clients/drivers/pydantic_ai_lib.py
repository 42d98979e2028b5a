"""Pydantic AI's agents, over OpenAI's two APIs and Anthropic's."""

from __future__ import annotations

import asyncio

from harness import BASE, KEY, MODEL, QUESTION, URL, need, report
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE, api_key=KEY)
model = OpenAIChatModel(MODEL, provider=provider)
SHORT = {"max_tokens": 16, "temperature": 0}
WHOLE = {**SHORT, "max_tokens": 90}


class Verdict(BaseModel):
    ok: bool


def chat() -> None:
    need(Agent(model, instructions="Be brief.").run_sync(QUESTION, model_settings=SHORT).output, "nothing")
    other = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY))
    need(Agent(other).run_sync(QUESTION, model_settings=SHORT).output, "nothing")


def stream() -> None:
    async def texts() -> list[str]:
        async with Agent(model).run_stream(QUESTION, model_settings=SHORT) as run:
            return [text async for text in run.stream_text(delta=True)]

    need("".join(asyncio.run(texts())), "nothing")


def tools() -> None:
    agent = Agent(model)

    @agent.tool_plain
    def weather(is_abroad: bool) -> str:
        """The weather."""
        return "sunny"

    # Its defaults: strict tools, and the model may choose.
    need(agent.run_sync(QUESTION, model_settings=WHOLE).output is not None, "nothing")


def structured() -> None:
    for wanted in (Verdict, NativeOutput(Verdict)):
        found = Agent(model, output_type=wanted).run_sync(QUESTION, model_settings=WHOLE).output
        need(isinstance(found, Verdict), found)


def responses() -> None:
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider))
    first = agent.run_sync(QUESTION, model_settings=SHORT)
    need(first.output, "nothing")
    need(agent.run_sync("Another one.", message_history=first.all_messages(), model_settings=SHORT).output, "nothing")


report(
    "pydantic-ai-slim",
    {"chat": chat, "stream": stream, "tools": tools, "structured": structured, "responses": responses},
)
