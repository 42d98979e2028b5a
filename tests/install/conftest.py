from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.fakehost import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost.make(tmp_path)
