"""An agent behind a link that is slower than its tokens, in a network namespace with a shaped loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.fakes.slowlink import CANNOT_SHAPE

N_TOKENS = 600
# 500 tokens/s in frames of their own need more than 20 kB/s, in fuller frames 4 kB/s: about what the link carries.
SECONDS_PER_TOKEN = 0.002

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace takes root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("ip", "tc", "unshare"))), reason="ip, tc or unshare is missing: iproute2, util-linux"
    ),
]


def test_tokens_share_frames_on_a_slow_link() -> None:
    """Tokens that the link cannot carry one by one arrive in far fewer frames, complete, in order, before the end."""
    words = [f"w{number}" for number in range(N_TOKENS)]
    argv = ("unshare", "--net", sys.executable, "-m", "tests.fakes.slowlink")
    options = ("--prompt", " ".join(words), "--seconds-per-token", str(SECONDS_PER_TOKEN))
    ran = subprocess.run((*argv, *options), capture_output=True, text=True, timeout=100, check=False)
    if ran.returncode == CANNOT_SHAPE or "unshare failed" in ran.stderr:
        pytest.skip(f"no shaped network namespace here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [text for frame in told["frames"] for text in frame] == [f"{word} " for word in words]
    assert len(told["frames"]) < N_TOKENS / 4
    assert (told["end"], told["frames_after_end"]) == ("JobDone", 0)
