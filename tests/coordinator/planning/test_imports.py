"""Tests of what the planner may import, arrays and nothing else, and of the threads that compute with them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe2.coordinator import planning

MODULES = sorted(Path(str(planning.__file__)).parent.glob("*.py"))
ALLOWED = ("numpy", "moe2.common.errors", "moe2.coordinator.planning")
TOUCHES_THE_WORLD = {"asyncio", "io", "logging", "os", "pathlib", "random", "socket", "subprocess", "threading", "time"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_planner_imports_numpy_and_itself(path: Path) -> None:
    """The planner imports numpy, itself and harmless parts of the standard library alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.split(".")[0] in sys.stdlib_module_names:
                assert name.split(".")[0] not in TOUCHES_THE_WORLD
            else:
                assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED), name


def test_matrices_are_multiplied_by_one_thread() -> None:
    """A process that plans has one thread, as further ones for its small matrices would only wait for each other."""
    code = (
        "import os, moe2.coordinator.planning.values, numpy as np\n"
        "np.ones((300, 300)) @ np.ones((300, 300))\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    found = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
