"""What the coordinator says of its listeners' encryption."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.health import Severity
from moe2.coordinator.runtime import ListenerTls
from moe2.coordinator.settings import CoordinatorSettings
from tests.fakes.certificates import Authority


def warned(**api: object) -> list[str]:
    warnings = ListenerTls(CoordinatorSettings.model_validate({"api": api})).warnings(0.0)
    assert all(warning.severity is Severity.NOTICE and "[api.tls]" in warning.remedy for warning in warnings)
    return [warning.code for warning in warnings]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "hub.example"])
def test_keys_that_pass_in_the_clear_are_a_named_warning(host: str) -> None:
    """On an address that others reach; with the remedy."""
    assert warned(host=host, keys="required") == ["keys_plaintext"]


def test_prompts_that_pass_in_the_clear_are_another_one() -> None:
    """Where no keys are asked for, none can be read."""
    assert warned(host="0.0.0.0", allow_public_without_keys=True) == ["api_plaintext"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    """Keys or not."""
    assert warned(host=host, keys="required") == warned(host=host) == []


def test_with_tls_nothing_passes_in_the_clear(tmp_path: Path) -> None:
    """On a public address, with keys."""
    assert warned(host="0.0.0.0", keys="required", tls=Authority(tmp_path).issue()) == []
