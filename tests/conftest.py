"""What every test shares: child processes import this tree, and debug logs stay out of failure reports."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import structlog
from hypothesis import settings

ROOT = Path(__file__).parent.parent

os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT / "dev"), str(ROOT)))
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
# Tests are never timed: these machines are noisy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
