"""The coordinator's command in a process that says how many tasks it has: at SIGUSR1 it writes their number to a file.

`python -m tests.fakes.countedcoordinator run --config FILE`, with the file's path in the environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from types import FrameType

from moe2.coordinator.__main__ import main

TASKS_FILE_VARIABLE = "MOE2_TEST_TASKS_FILE"


def _write_tasks(_number: int, _frame: FrameType | None) -> None:
    """Write whole: a reader never sees half a number."""
    path = Path(os.environ[TASKS_FILE_VARIABLE])
    beside = path.with_suffix(".new")
    names = sorted(f"{task.get_name()} {task.get_coro()}" for task in asyncio.all_tasks())
    beside.write_text("\n".join(names))
    beside.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _write_tasks)
    main()
