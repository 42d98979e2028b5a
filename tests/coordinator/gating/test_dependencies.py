"""What a coordinator must have installed to serve a trained gate."""

from __future__ import annotations

import subprocess
import sys


def test_serving_needs_neither_torch_nor_pyarrow() -> None:
    """Loading and asking a gate imports numpy, but neither torch, pyarrow nor matplotlib."""
    code = (
        "import sys\n"
        "import moe2.coordinator.gating.checkpoint, moe2.coordinator.gating.fleetgate\n"
        "import moe2.coordinator.gating.commands, moe2.coordinator.evaluation.commands\n"
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
