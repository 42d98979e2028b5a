"""Tests of what has to be installed to serve a trained gate."""

from __future__ import annotations

import subprocess
import sys


def test_serving_needs_neither_torch_nor_pyarrow() -> None:
    """Loading and asking a gate imports numpy, but neither torch, pyarrow nor matplotlib."""
    code = (
        "import sys\n"
        "import moe2.coordinator.gate.checkpoint, moe2.coordinator.gate.fleet_gate\n"
        "import moe2.coordinator.cli.train, moe2.coordinator.cli.evaluate\n"
        "print([name for name in ('torch', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
