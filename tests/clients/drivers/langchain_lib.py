"""LangChain's OpenAI integration."""

from __future__ import annotations

from harness import BASE, EMBEDDER, KEY, MODEL, QUESTION, TOO_LONG, need, report
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

ASKED = {"model": MODEL, "base_url": BASE, "api_key": KEY, "max_retries": 0, "temperature": 0}
llm = ChatOpenAI(**ASKED, max_tokens=90)


class Verdict(BaseModel):
    """A verdict."""

    ok: bool


@tool
def weather(is_abroad: bool) -> str:
    """The weather."""
    return "sunny"


def chat() -> None:
    need(ChatOpenAI(**ASKED, max_tokens=8).invoke(QUESTION).content, "nothing")


def stream() -> None:
    need("".join(chunk.text for chunk in ChatOpenAI(**ASKED, max_tokens=8).stream(QUESTION)), "nothing")


def tools() -> None:
    answer = llm.bind_tools([weather], tool_choice="required").invoke(QUESTION)
    call = answer.tool_calls[0]
    need("is_abroad" in call["args"], answer)
    history = [("user", QUESTION), answer, ToolMessage("sunny", tool_call_id=call["id"])]
    ChatOpenAI(**ASKED, max_tokens=8).bind_tools([weather], strict=True).invoke(history)


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        found = llm.with_structured_output(Verdict, method=method).invoke(QUESTION)
        need(isinstance(found, Verdict), found)


def responses() -> None:
    need(ChatOpenAI(**ASKED, max_tokens=16, use_responses_api=True).invoke(QUESTION).text, "nothing")


def embeddings() -> None:
    # Its own splitting would fetch OpenAI's tokenizer.
    vectors = OpenAIEmbeddings(model=EMBEDDER, base_url=BASE, api_key=KEY, check_embedding_ctx_length=False)
    need(len(vectors.embed_query("a cat")) == 576, "another length")


def errors() -> None:
    try:
        llm.invoke(TOO_LONG)
    except Exception as error:
        need(type(error).__name__ in ("OpenAIContextOverflowError", "ContextOverflowError"), type(error))
        return
    raise AssertionError("a prompt beyond the context was answered")


report(
    "langchain-openai",
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
