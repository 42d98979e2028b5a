"""Where feedback outlives a restart: one JSON line per score, appended whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from moe2.coordinator.feedback import Feedback


class FeedbackFile:
    """A file of scores. It may hold prompts, so that only its owner reads it.

    `read` first: it tells how many lines were not understood, and ends a line that a crash cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged_lines = 0

    def read(self) -> list[Feedback]:
        """All scores that are understood. Raises OSError."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        if content and not content.endswith(b"\n"):
            self._append(b"\n")
        found, self.damaged_lines = [], 0
        decoder = msgspec.json.Decoder(Feedback)
        for line in content.splitlines():
            try:
                feedback = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.damaged_lines += 1
                continue
            if 0 <= feedback.score <= 1:
                found.append(feedback)
            else:
                self.damaged_lines += 1
        return found

    def append(self, feedback: Feedback) -> None:
        """Add one score. Raises OSError."""
        self._append(msgspec.json.encode(feedback) + b"\n")

    def _append(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
