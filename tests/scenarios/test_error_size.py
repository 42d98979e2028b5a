"""What errors repeat of a request is short, however much was sent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fleet import fleet

MIB = 2**20
MAX_ERROR_BYTES = 4_096
CHAT: dict[str, Any] = {"model": "moe2", "messages": [{"role": "user", "content": "hi"}]}
LONG = "x" * MIB
FUNCTION = {"type": "function", "function": {"name": "f"}}
BODIES: dict[str, tuple[str, Any]] = {
    "model": ("/v1/chat/completions", {**CHAT, "model": LONG}),
    "parameter": ("/v1/chat/completions", {**CHAT, LONG: 1}),
    "parameter_with_control_characters": ("/v1/chat/completions", {**CHAT, "\x1b" * (MIB // 4): 1}),
    "budget": ("/v1/chat/completions", {**CHAT, "moe2": {"energy_budget_j": LONG}}),
    "budgets_name": ("/v1/chat/completions", {**CHAT, "moe2": {LONG: 1}}),
    "category": ("/v1/chat/completions", {**CHAT, "moe2": {"category": LONG}}),
    "mode": ("/v1/chat/completions", {**CHAT, "moe2": {"mode": LONG}}),
    "role": ("/v1/chat/completions", {**CHAT, "messages": [{"role": LONG, "content": ""}]}),
    "message_field": ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "", LONG: 1}]}),
    "content_part": ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{"type": LONG}]}]}),
    "tool_choice": (
        "/v1/chat/completions",
        {**CHAT, "tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": LONG}}},
    ),
    "tool_name": ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": LONG}}]}),
    "tool_twice": ("/v1/chat/completions", {**CHAT, "tools": [FUNCTION, FUNCTION]}),
    "response_format": ("/v1/chat/completions", {**CHAT, "response_format": {"type": LONG}}),
    "grammar": ("/v1/chat/completions", {**CHAT, "grammar": LONG}),
    "logit_bias": ("/v1/chat/completions", {**CHAT, "logit_bias": {LONG: 1}}),
    "stream_options": ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {LONG: 1}}),
    "seed": ("/v1/chat/completions", {**CHAT, "seed": LONG}),
    "plan": ("/v1/moe2/plan", {**CHAT, "model": LONG}),
    "feedback": ("/v1/moe2/feedback", {"request_id": LONG, "score": 1}),
    "feedback_field": ("/v1/moe2/feedback", {LONG: 1}),
}


async def test_no_error_repeats_a_megabyte(tmp_path: Path) -> None:
    """Each parameter in turn, over HTTP; the answer is a clear error all the same."""
    async with fleet(tmp_path) as running:
        for name, (route, body) in BODIES.items():
            async with running.http.post(route, data=io.BytesIO(json.dumps(body).encode())) as answer:
                text = await answer.text()
                assert len(text) < MAX_ERROR_BYTES, f"{name}: {len(text)} bytes"
                assert answer.status in (200, 400, 404), f"{name}: {answer.status}"
                if answer.status != 200:
                    assert json.loads(text)["error"]["message"], name


@pytest.mark.parametrize("header", ["x-moe2-energy-budget-j", "x-moe2-max-experts", "x-moe2-mode"])
async def test_an_error_about_a_header_is_short(tmp_path: Path, header: str) -> None:
    """Thousands of digits included, which Python refuses to convert."""
    async with fleet(tmp_path, agents=()) as running:
        for value in ("x" * 8_000, "9" * 8_000, "1e99999", "\u0664"):
            async with running.http.post("/v1/chat/completions", json=CHAT, headers={header: value}) as answer:
                assert answer.status == 400
                assert len(await answer.text()) < MAX_ERROR_BYTES


async def test_an_error_about_a_path_is_short(tmp_path: Path) -> None:
    """A route, and a model, that do not exist."""
    async with fleet(tmp_path, agents=()) as running:
        for path in ("/" + "x" * 7_000, "/v1/models/" + "%FF" * 2_000, "/v1/models/" + "%1B" * 2_000):
            async with running.http.get(path) as answer:
                assert answer.status == 404
                assert len(await answer.text()) < MAX_ERROR_BYTES
