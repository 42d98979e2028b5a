"""Attribute files of the kernel: read often, cheaply, and with the error that tells what is wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from moe2.agent.energy.sensor import SensorAbsentError, SensorBrokenError, SensorDeniedError, SensorMissedError

_MAX_VALUE_BYTES = 256
_MOMENTARY = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENODATA, errno.EREMOTEIO, errno.ETIMEDOUT})
"""Answers of a shared I2C bus, or of a conversion that is under way; the next read may succeed."""


class AttributeFile:
    """An attribute file that is kept open: the kernel computes its value anew at every read from offset 0."""

    def __init__(self, path: Path, *, remedy: str | None = None) -> None:
        self.path = path
        self._remedy = remedy
        self._descriptor: int | None = None

    def text(self) -> str:
        """Read the value, without surrounding space.

        Raises SensorAbsentError, SensorDeniedError, SensorMissedError or SensorBrokenError.
        """
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, _MAX_VALUE_BYTES, 0).decode("utf-8", "replace").strip()
        except OSError as error:
            # The next read opens it afresh: the file may have been replaced or its mode changed.
            self.close()
            # A driver that was re-bound leaves the open file behind as a dead one: it answers ENODEV.
            raise _fault(self.path, error, self._remedy) from error

    def integer(self) -> int:
        """Read the value as a whole number. Raises what `text` raises, and SensorBrokenError where it is no number."""
        text = self.text()
        try:
            return int(text)
        except ValueError:
            raise SensorBrokenError(f"{self.path} holds {text!r}, not a number.") from None

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_jetson(root: Path) -> bool:
    """Return whether the firmware's device tree names one of NVIDIA's Tegra chips."""
    return "nvidia,tegra" in (text_or_none(root / "proc/device-tree/compatible") or "")


def text_or_none(path: Path) -> str | None:
    """Return a file's text, or None where it is missing or unreadable: for facts that are nice to know."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().rstrip("\0")
    except OSError:
        return None


def integer_or_none(path: Path) -> int | None:
    """Return a file's whole number, or None where there is none to read."""
    text = text_or_none(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _fault(path: Path, error: OSError, remedy: str | None) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM):
        return SensorDeniedError(f"{path} may not be read by this user.", remedy=remedy)
    if error.errno in _MOMENTARY:
        return SensorMissedError(f"{path} cannot be read just now: {os.strerror(error.errno or 0)}.")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return SensorAbsentError(f"{path} does not exist (any more).")
    return SensorBrokenError(f"{path} cannot be read: {os.strerror(error.errno or 0)}.")
