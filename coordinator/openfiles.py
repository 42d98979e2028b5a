"""How many files, and so connections, the process may have open."""

from __future__ import annotations

import resource


def allow_open_files() -> int:
    """Raise the soft limit to the hard one; returns it.

    The soft limit is 1024 on most systems, for the sake of programs that use select(2). At that, idle clients could
    keep the agents out.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
