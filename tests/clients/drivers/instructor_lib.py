"""Instructor: structured answers through OpenAI's SDK, in the ways that it knows."""

from __future__ import annotations

import instructor
from harness import BASE, KEY, MODEL, need, report
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=BASE, api_key=KEY, max_retries=0)


# The schema allows other fields, too, and a small model that is asked for no verdict fills them without an end.
class Verdict(BaseModel):
    ok: bool


def ask(mode: instructor.Mode) -> None:
    found = instructor.from_openai(client, mode=mode).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Is the sky blue?"}],
        response_model=Verdict,
        max_tokens=90,
        temperature=0,
        max_retries=0,
    )
    need(isinstance(found, Verdict), found)


report(
    "instructor",
    {"tools": lambda: ask(instructor.Mode.TOOLS), "structured": lambda: ask(instructor.Mode.JSON_SCHEMA)},
)
