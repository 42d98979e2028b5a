"""Simon Willison's `llm`, as a command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import BASE, KEY, MODEL, QUESTION, need, report

home = Path(tempfile.mkdtemp(prefix="moe2-llm-"))
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: local\n  model_name: {MODEL}\n  api_base: {BASE}\n  can_stream: true\n  supports_schema: true\n"
)


def llm(*arguments: str) -> str:
    command = (str(Path(sys.executable).parent / "llm"), "-m", "local", "--key", KEY, *arguments)
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    need(ran.returncode == 0 and ran.stdout.strip(), ran)
    return ran.stdout


report(
    "llm",
    {
        "chat": lambda: llm("--no-stream", "-o", "max_tokens", "8", QUESTION),
        "stream": lambda: llm("-o", "max_tokens", "8", QUESTION),
        "structured": lambda: llm("--schema", "ok bool", "-o", "max_tokens", "90", "-o", "temperature", "0", QUESTION),
    },
)
