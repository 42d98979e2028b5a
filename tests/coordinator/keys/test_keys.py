"""Records of API keys, and the check of a presented key."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moe2.coordinator.choosing.request import Budgets
from moe2.coordinator.keys.keys import (
    ENTROPY_BYTES,
    DailyLimits,
    KeyOptions,
    KeyRecord,
    KeySet,
    KeyState,
    Refusal,
    Scope,
    check,
    mint,
)
from tests.coordinator.keys.keys import NOW_UNIX_S, made

entropies = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)


@given(entropies, entropies)
def test_a_key_opens_its_own_record_and_no_other(first: bytes, second: bytes) -> None:
    """A key opens its own record and no other, whatever its random bytes are."""
    record, key = mint(KeyOptions(name="app"), entropy=first, now_unix_s=NOW_UNIX_S)
    other, other_key = mint(KeyOptions(name="other"), entropy=second, now_unix_s=NOW_UNIX_S)
    assert check(key, {record.id: record}, NOW_UNIX_S) is record
    if other_key != key:
        assert check(other_key, {record.id: record}, NOW_UNIX_S) is Refusal.UNKNOWN
        assert check(key, {record.id: other}, NOW_UNIX_S) is Refusal.UNKNOWN


@given(st.text(alphabet=st.characters(exclude_categories=())), st.booleans())
def test_nonsense_is_refused(text: str, after_the_id: bool) -> None:
    """Any other text is refused, also after the right prefix and id."""
    record, _ = made()
    presented = f"moe2_{record.id}_{text}" if after_the_id else text
    stray = presented.encode("utf-8", "replace").decode("ascii", "surrogateescape")
    assert check(stray, {record.id: record}, NOW_UNIX_S) is Refusal.UNKNOWN


@pytest.mark.parametrize("change", [str.upper, lambda key: key[:-1], lambda key: key + "A", lambda key: "x" + key])
def test_a_key_counts_as_a_whole_only(change: Any) -> None:
    """A key that is cut, extended or in other case is wrong."""
    record, key = made()
    assert check(change(key), {record.id: record}, NOW_UNIX_S) is Refusal.UNKNOWN


def test_a_key_looks_like_one() -> None:
    """A key has a fixed prefix, a public id and 43 characters of randomness, so that scanners for leaks can find it."""
    record, key = made()
    assert re.fullmatch(r"moe2_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    assert key.split("_")[1] == record.id


def test_the_secret_is_not_in_the_record() -> None:
    """The record does not have the secret, and printing it does not show the digest."""
    record, key = made()
    secret = key.split("_", 2)[2]
    assert secret not in record.model_dump_json()
    assert secret not in repr(record)
    assert record.secret_sha256 not in repr(record)


def test_an_expired_key_is_refused_from_its_moment_on() -> None:
    """A key is refused from the very moment of its expiry on."""
    record, key = made(expires_at_unix_s=NOW_UNIX_S + 10)
    assert check(key, {record.id: record}, NOW_UNIX_S + 9.9) is record
    assert check(key, {record.id: record}, NOW_UNIX_S + 10) is Refusal.EXPIRED


def test_why_is_told_only_to_who_has_the_secret() -> None:
    """A guess at a revoked or expired key looks like any other wrong key."""
    expired, key = made(expires_at_unix_s=NOW_UNIX_S)
    guess = f"moe2_{expired.id}_{'A' * 43}"
    revoked = KeySet(keys=(expired,)).with_revoked(expired.id, NOW_UNIX_S).by_id()
    assert check(key, revoked, NOW_UNIX_S) is Refusal.REVOKED
    assert check(guess, revoked, NOW_UNIX_S) is Refusal.UNKNOWN
    assert check(guess, {expired.id: expired}, NOW_UNIX_S) is Refusal.UNKNOWN


def test_an_unknown_id_is_compared_like_a_wrong_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id costs one comparison in constant time, like a wrong secret."""
    compared: list[tuple[int, int]] = []

    def noted(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", noted)
    record, key = made()
    for presented in (key, f"moe2_{record.id}_wrong", "moe2_000000000000_wrong", "nonsense", ""):
        check(presented, {record.id: record}, NOW_UNIX_S)
    assert compared == [(64, 64)] * 5


def test_a_key_is_revoked_once() -> None:
    """A second revocation leaves the moment of the first one, and other keys, as they are."""
    first, _ = made(1)
    second, _ = made(2)
    keys = KeySet(keys=(first, second)).with_revoked(first.id, 5.0).with_revoked(first.id, 9.0)
    assert keys.keys[0].revoked_at_unix_s == 5.0
    assert keys.keys[0].state(NOW_UNIX_S) is KeyState.REVOKED
    assert keys.keys[1] is second


def test_the_principal_has_all_that_the_key_was_given() -> None:
    """The principal of a key has its scopes, rate, daily limits and budgets."""
    budgets = Budgets(energy_budget_j=5.0)
    record, _ = made(
        scopes=(Scope.OBSERVE,), requests_per_minute=7, daily_energy_j=100, daily_tokens=50, budgets=budgets
    )
    principal = record.principal
    assert (principal.key_id, principal.name) == (record.id, "app-1")
    assert principal.scopes == {Scope.OBSERVE}
    assert principal.requests_per_minute == 7
    assert principal.daily == DailyLimits(energy_j=100, tokens=50)
    assert principal.budgets == budgets


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a\nb"),
        ("name", " a"),
        ("name", "a" * 65),
        ("scopes", ()),
        ("scopes", ("admin",)),
        ("requests_per_minute", 0),
        ("requests_per_minute", float("nan")),
        ("daily_energy_j", -1),
        ("daily_energy_j", float("inf")),
        ("daily_tokens", 0),
        ("expires_at_unix_s", float("nan")),
        ("colour", "red"),
    ],
)
def test_nonsense_options_are_refused(field: str, value: object) -> None:
    """Options that make no sense make no key."""
    with pytest.raises(ValidationError, match=field):
        KeyOptions.model_validate({"name": "app", field: value})


def test_two_keys_of_one_id_are_refused() -> None:
    """Two keys with one id are refused."""
    record, _ = made()
    with pytest.raises(ValidationError, match="same id"):
        KeySet(keys=(record, record))


@pytest.mark.slow
@given(st.lists(st.integers(1, 255), unique=True, max_size=5), st.data())
def test_what_is_written_is_read_back(seeds: list[int], data: st.DataObject) -> None:
    """Every option of a key survives being written and read."""
    keys: list[KeyRecord] = []
    for seed in seeds:
        options = {
            "scopes": data.draw(st.sampled_from([(Scope.INFER,), (Scope.OBSERVE,), tuple(Scope)])),
            "requests_per_minute": data.draw(st.none() | st.floats(0.1, 1e6)),
            "daily_tokens": data.draw(st.none() | st.integers(1, 2**53)),
            "budgets": Budgets(energy_budget_j=data.draw(st.none() | st.floats(0, 1e9))),
        }
        keys.append(made(seed, **options)[0])
    written = KeySet(keys=tuple(keys)).model_dump_json(exclude_none=True)
    assert KeySet.model_validate_json(written) == KeySet(keys=tuple(keys))


# --- A wrong clock ----------------------------------------------------------------------------------------------------


def test_a_key_that_expires_is_refused_while_the_clock_is_wrong() -> None:
    """While the clock is wrong a key that expires is refused; one without an end is accepted."""
    expiring, key = made(1, expires_at_unix_s=NOW_UNIX_S + 60)
    lasting, other = made(2)
    records = {expiring.id: expiring, lasting.id: lasting}
    assert check(key, records, 60.0) is Refusal.CLOCK_WRONG
    assert check(other, records, 60.0) is lasting
    assert expiring.state(NOW_UNIX_S) is KeyState.ACTIVE
    assert expiring.model_copy(update={"revoked_at_unix_s": 1.0}).state(60.0) is KeyState.REVOKED


def test_a_clock_before_the_keys_making_is_wrong() -> None:
    """A clock that is earlier than the making of a key is wrong, even if it is later than the release."""
    record, _ = made(expires_at_unix_s=NOW_UNIX_S + 60)
    assert record.state(NOW_UNIX_S - 86_400) is KeyState.UNDECIDED
    assert record.state(NOW_UNIX_S - 60) is KeyState.ACTIVE


def test_an_average_at_the_limit_of_each_request_is_refused() -> None:
    """A key's average below its budget of a request is a record of it; at or above, it would ask for nothing."""
    record, _ = made(average_energy_j=50.0, budgets=Budgets(energy_budget_j=100.0))
    assert record.principal.average_energy_j == 50.0
    with pytest.raises(ValidationError, match="has no effect"):
        made(average_energy_j=100.0, budgets=Budgets(energy_budget_j=100.0))
