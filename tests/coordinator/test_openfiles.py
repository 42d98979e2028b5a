"""How many connections the process may have."""

from __future__ import annotations

import resource

from moe2.coordinator.runtime import allow_open_files


def test_the_soft_limit_becomes_the_hard_one() -> None:
    """What the system allows is used."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        assert allow_open_files() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
