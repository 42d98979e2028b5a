"""When a certificate is valid."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.common.tls.certificate import validity

CA = trustme.CA()
TIMES = st.integers(0, 4_000_000_000)


def pem(not_before_unix_s: int, not_after_unix_s: int) -> str:
    ends = (datetime.fromtimestamp(at_s, UTC) for at_s in (not_before_unix_s, not_after_unix_s))
    not_before, not_after = ends
    return CA.issue_cert("host", not_before=not_before, not_after=not_after).cert_chain_pems[0].bytes().decode()


@settings(max_examples=15)
@given(ends=st.tuples(TIMES, TIMES).map(sorted))
def test_both_ends_are_read(ends: list[int]) -> None:
    """Before and after 2050, when the form of the time changes."""
    found = validity("# a comment\n" + pem(*ends) + pem(1, 2))
    assert [found.not_before_unix_s, found.not_after_unix_s] == ends


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"])
def test_a_file_without_a_certificate_is_an_error(text: str) -> None:
    """A key, for example."""
    with pytest.raises(ValueError, match="no certificate"):
        validity(text)


@settings(max_examples=40)
@given(content=st.binary(max_size=64))
def test_noise_is_an_error_and_nothing_else(content: bytes) -> None:
    """Whatever stands between the two lines."""
    with pytest.raises((ValueError, OverflowError)):
        validity(ssl.DER_cert_to_PEM_cert(content))
