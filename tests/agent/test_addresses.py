"""The addresses of the coordinators in the agent's settings."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from moe2.agent.settings import CoordinatorSection


def test_one_address_is_enough() -> None:
    """`url` alone is the one address."""
    assert CoordinatorSection(url="ws://one:8081/").addresses == ("ws://one:8081",)


def test_several_addresses_need_no_url() -> None:
    """`urls` names all coordinators, and `url` need not be set."""
    found = CoordinatorSection.model_validate({"urls": ["wss://one:8081", "wss://two:8081/"]})
    assert found.addresses == ("wss://one:8081", "wss://two:8081")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "url"),
        ({"urls": []}, "urls"),
        ({"url": "ws://three:1", "urls": ["ws://one:1", "ws://two:1"]}, "not both"),
        ({"urls": ["ws://one:1", "ws://one:1/"]}, "twice"),
        ({"urls": ["ws://one:1", "http://two:1"]}, "expected ws://"),
        ({"urls": [1, 2]}, "url"),
        ({"urls": ["ws://one:1"], "ca_file": "/ca.pem"}, "wss://"),
    ],
)
def test_addresses_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    """None, the same one twice, both keys, and other schemes are refused with the reason."""
    with pytest.raises(ValidationError, match=said):
        CoordinatorSection.model_validate(fields)
