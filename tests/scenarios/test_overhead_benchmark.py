"""The overhead benchmark keeps running: its figures on a busy test machine mean nothing, its workings do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_overhead_benchmark_prints_its_figures_last() -> None:
    """A short run ends with one JSON object that has every promised figure, and answered every request."""
    options = ("--rounds=1", "--pairs=10", "--load-s=0.1", "--stream-s=0.2", "--most-streams=64")
    argv = (sys.executable, "-m", "benchmarks.overhead", *options)
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures.keys() == {
        "added_p50_ms",
        "added_p99_ms",
        "requests_per_s",
        "streams_held",
        "coordinator_rss_mb",
    }
    assert figures["requests_per_s"] > 0
