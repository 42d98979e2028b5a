"""What the demo shows: the table of answers, and what to try next."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from examples.demo.client import ANY_MODEL, Answer, Prompt
from examples.demo.setup import Daemon, Setup
from moe2.common.terminal import figures
from moe2.common.terminal.figures import UNMEASURED, known, printable

ANSWER_CHARACTERS = 90


def answers_table(answers: Sequence[Answer]) -> Table:
    """One row per prompt: who answered, how long it took, what it cost."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Prompt and answer", ratio=1)
    table.add_column("Expert", no_wrap=True)
    for name in ("Tokens", "TTFT", "Tokens/s", "Joules"):
        table.add_column(name, justify="right", no_wrap=True)
    for answer in answers:
        table.add_row(
            _conversation(answer),
            _experts(answer),
            known(answer.completion_tokens, str),
            known(answer.ttft_s, figures.latency),
            known(tokens_per_s(answer.receipt), figures.number),
            _joules(answer.receipt["energy"]),
        )
    return table


def _conversation(answer: Answer) -> Text:
    text = printable(answer.text)
    shown = text if len(text) <= ANSWER_CHARACTERS else text[:ANSWER_CHARACTERS].rstrip() + "…"
    return Text.assemble(answer.prompt.text, (f"\n{shown}", "dim italic"))


def _experts(answer: Answer) -> Text:
    """Who answered, and whether the coordinator chose or the client did."""
    names = [printable(line["model"]) for line in answer.receipt["experts"]]
    by = "chosen" if answer.prompt.model == ANY_MODEL else "asked for"
    return Text.assemble("\n".join(names), (f"\n{by}", "dim"))


def _joules(energy: dict[str, Any]) -> Text:
    """The figure and, below it, how it was obtained."""
    if energy["joules"] is None:
        return Text(UNMEASURED, style="dim")
    return Text.assemble(figures.number(energy["joules"]), (f"\n{energy['quality']}", "dim"))


def tokens_per_s(receipt: dict[str, Any]) -> float | None:
    """Decoding speed on the agent. The first token comes out of the prefill, so n tokens take n - 1 decoding steps."""
    decoded, decode_s = receipt["tokens"]["decoded"], receipt["seconds"]["decode"]
    if decoded is None or decoded < 2 or not decode_s:
        return None
    return float((decoded - 1) / decode_s)


def next_steps(setup: Setup, folder: Path) -> RenderableType:
    """The URL, and commands to copy."""
    body = json.dumps(Prompt("Name three colours.").body(stream=False))
    curl = f"curl -s {setup.api_url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    lines = [
        Text.assemble("\nThe service runs at ", (f"{setup.api_url}/v1", "bold green"), ". Try it:\n"),
        # One line each, however narrow the terminal is: they are there to be copied.
        Text(curl, style="cyan", no_wrap=True, overflow="ignore"),
        *(Text(status_command(daemon), style="cyan", no_wrap=True, overflow="ignore") for daemon in _daemons(setup)),
        Text(f"\nConfigurations and logs are in {shown_path(folder)}.", style="dim"),
    ]
    return Group(*lines)


def _daemons(setup: Setup) -> tuple[Daemon, ...]:
    return (setup.coordinator, *setup.agents)


def status_command(daemon: Daemon) -> str:
    command = Path(sys.executable).parent / f"moe2-{daemon.program}"
    shown = shown_path(command) if command.exists() else f"{sys.executable} -m moe2.{daemon.program}"
    return f"{shown} status --socket {shown_path(daemon.socket)}"


def shown_path(path: Path) -> str:
    """Relative where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
