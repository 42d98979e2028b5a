"""A coordinator whose wall clock a file sets: `python -m tests.fakes.clockedcoordinator run --config FILE`.

The file `clock_ahead_s` beside the configuration has the seconds by which its clock is ahead of everybody's; it is read
each time that somebody asks, so that the clock jumps when the file is replaced. Certificates are not affected.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

CLOCK_FILE = "clock_ahead_s"


def set_ahead(root: Path, ahead_s: float) -> None:
    """Has the clock of the coordinator with this root jump."""
    made = root / f"{CLOCK_FILE}.new"
    made.write_text(str(ahead_s))
    made.rename(root / CLOCK_FILE)


def main() -> None:
    """Runs the coordinator's command, after its clock was replaced."""
    file = Path(sys.argv[sys.argv.index("--config") + 1]).with_name(CLOCK_FILE)
    true_time = time.time
    time.time = lambda: true_time() + float(file.read_text())
    # The daemon's modules take `time.time` as it is when they are imported.
    from moe2.coordinator.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
