"""The file in which users' scores outlive a restart: one JSON line per score, appended whole.

It stands apart from `feedback`, which is pure and touches no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.statefile import append_line
from moe2.coordinator.gate.feedback import Feedback, FeedbackBook

log = structlog.get_logger()

FEEDBACK_FILE = "feedback.jsonl"
"""Its name in a coordinator's state directory."""


class FeedbackFile:
    """A file of users' scores. It may hold prompts, so that only its owner can read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged_lines = 0
        """Lines that the last `read` did not understand, such as one that a crash cut off."""

    def read(self) -> list[Feedback]:
        """All scores of the lines that are understood; none where the file does not exist. Raises OSError."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
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

    def known(self) -> list[Feedback]:
        """Like `read`, but raises Moe2Error, which says what to do, and logs how much was damaged."""
        try:
            found = self.read()
        except OSError as error:
            raise Moe2Error(
                f"The feedback in {self.path} cannot be used: {error.strerror or error}.",
                remedy=file_remedy(error, "Make it readable and writable for the daemon's user, or move it away."),
            ) from error
        if self.damaged_lines:
            log.warning("feedback_damaged", path=str(self.path), lines_passed_over=self.damaged_lines)
        return found

    def append(self, feedback: Feedback) -> None:
        """Append one score, whole or not at all. Raises OSError where it could not be written."""
        append_line(self.path, msgspec.json.encode(feedback))

    def given_elsewhere(self, scores: Iterable[Feedback], book: FeedbackBook) -> None:
        """Count scores that another coordinator was given, and keep those of answers of this one."""
        for feedback in scores:
            own = book.completed(feedback)
            if own is not None:
                try:
                    self.append(own)
                except OSError as error:
                    log.error("feedback_not_kept", path=str(self.path), reason=str(error))
            book.accept(feedback)
