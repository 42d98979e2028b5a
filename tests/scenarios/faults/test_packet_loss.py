"""An agent behind a network that loses, delays and shapes packets, in namespaces of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.lossylink import CANNOT_JOIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace takes root"),
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "unshare"))), reason="ip or unshare is missing"),
]


def test_lost_packets_lose_no_tokens(tmp_path: Path) -> None:
    """5 % loss, 100 ms with jitter (which also swaps packets), 32 kB/s: every answer is whole, over one connection."""
    argv = ("unshare", "--net", sys.executable, "-m", "tests.fakes.lossylink", str(tmp_path))
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    if ran.returncode == CANNOT_JOIN or "unshare failed" in ran.stderr:
        pytest.skip(f"no joined network namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert [(answer["status"], answer["is_whole"]) for answer in found["answers"]] == [(200, True)] * 4
    assert all(answer["outcomes"] == ["answered"] for answer in found["answers"])
    assert found["lost"] > 5
