"""Small things in which clients differ: how they write paths, present keys, and name their requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.http import boundary
from moe2.coordinator.http.access.auth import presented_key
from moe2.coordinator.http.boundary import MAX_CLIENT_ID_CHARACTERS, client_request_id, new_request_id
from moe2.coordinator.http.errors import MAX_LISTED_CHARACTERS, explained, listed_in_header
from moe2.coordinator.http.paths import meant_path
from moe2.coordinator.serving.effects import Failed


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models/", "/v1/models"),
        ("/v1//chat///completions/", "/v1/chat/completions"),
        ("/health/", "/healthz"),
        ("/embeddings", "/v1/embeddings"),
        ("/models/org/name", "/v1/models/org/name"),
        ("/v1/models/a%2Fb", "/v1/models/a%2Fb"),
        ("/page/chart.js", "/page/chart.js"),
        ("/metrics", "/metrics"),
    ],
)
def test_a_path_is_what_its_writer_meant(path: str, meant: str) -> None:
    """Slashes too many go, and short forms become long; all else stays as it is."""
    assert meant_path(path) == meant


@given(st.text(alphabet="/a%.v1", max_size=12).map("/".__add__))
def test_a_meant_path_is_found_once_for_all(path: str) -> None:
    """Whoever looks for it a second time finds the same one."""
    assert meant_path(meant_path(path)) == meant_path(path)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"Authorization": "Bearer  a "}, "a"),
        ({"Authorization": "bearer a", "x-api-key": "b"}, "a"),
        ({"Authorization": "Basic a", "x-api-key": "b"}, "b"),
        ({"Authorization": "Bearer ", "api-key": "c"}, "c"),
        ({"x-api-key": " "}, None),
    ],
)
def test_the_first_header_with_a_key_counts(headers: dict[str, str], key: str | None) -> None:
    """OpenAI's comes before Anthropic's and Azure's; what is no bearer's is no key."""
    assert presented_key(headers) == key


def test_the_ids_of_requests_are_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later request has a greater id of the same length, and those of one moment have different ones."""
    ids = []
    for at_unix_s in (0.0, 1.0, 1.5, 1_800_000_000.0):
        monkeypatch.setattr(boundary, "time", lambda at_unix_s=at_unix_s: at_unix_s)
        ids.append(new_request_id())
    assert sorted(ids) == ids
    assert {len(each) for each in ids} == {36}
    assert len({new_request_id() for _ in range(300)}) == 300


@given(st.text(min_size=1))
def test_a_clients_id_is_fit_for_a_header(text: str) -> None:
    """Whatever a client sends, what goes back is short and printable."""
    found = client_request_id({"x-request-id": text})
    assert found
    assert len(found) <= MAX_CLIENT_ID_CHARACTERS
    assert found.isascii()
    assert found.isprintable()
    assert " " not in found


@given(st.lists(st.text(), max_size=200))
def test_listed_names_are_fit_for_a_header(names: list[str]) -> None:
    """Whatever names a client makes up, the header is bounded and one line of plain characters."""
    listed = listed_in_header(names)
    assert len(listed) <= MAX_LISTED_CHARACTERS + 3
    assert listed.isascii()
    assert listed.isprintable()


def test_only_a_context_that_is_too_small_is_explained() -> None:
    """Other failures, and one of which no expert is known, keep their words."""
    other = Failed("invalid_request", "No.")
    assert explained(other, 64) is other
    unknown = Failed("context_exceeded", "Too long.")
    assert explained(unknown, None) is unknown
    assert explained(unknown, 64).message.endswith("Too long.")
