"""What an error says of a file."""

from __future__ import annotations

import errno

import pytest

from moe2.common.errors import file_remedy


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_not_mended_by_rights(cause: int) -> None:
    """A full disk, a quota and a read-only file system have a remedy of their own."""
    assert file_remedy(OSError(cause, "no"), "Use sudo.") != "Use sudo."


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), OSError("no"), UnicodeDecodeError("ascii", b"\xff", 0, 1, "no")]
)
def test_other_causes_keep_the_remedy_of_the_file(error: OSError | UnicodeError) -> None:
    """Rights, errors without a number, and text that is none."""
    assert file_remedy(error, "Use sudo.") == "Use sudo."
