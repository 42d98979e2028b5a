"""A disk that becomes full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def room_for_bytes(size_bytes: int) -> Iterator[None]:
    """Within the block, no file of this process grows beyond `size_bytes`.

    A write across the limit takes what still fits without an error, and the next one fails, as on a full disk; only the
    error is another one, EFBIG in place of ENOSPC.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
