"""What every test shares: child processes import this tree, debug logs stay out of failure reports, no test is timed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import hypothesis
import structlog

ROOT = Path(__file__).parent.parent

os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT / "dev"), str(ROOT)))
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))

# A loaded machine is no defect of the code under test.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
