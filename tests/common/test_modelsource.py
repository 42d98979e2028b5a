"""Where models are pulled from, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.modelsource import (
    HubSource,
    LocalSource,
    SourceError,
    UrlSource,
    checked_beginning,
    checked_name,
    is_allowed,
    leads_into,
    shown_address,
    source_of,
)

DIGEST = "ab" * 32


def test_a_hub_source_has_repository_file_and_revision() -> None:
    """The file may lie in a folder of the repository."""
    assert source_of("hf:org/repo/sub/a.gguf@v1.0") == HubSource("org/repo", "sub/a.gguf", "v1.0")
    assert source_of("hf:org/repo/a.gguf") == HubSource("org/repo", "a.gguf")


def test_an_address_needs_a_checksum() -> None:
    """Its fragment is the checksum that the file must have."""
    assert source_of(f"https://h.example/x/a%20b.gguf#sha256={DIGEST.upper()}") == UrlSource(
        "https://h.example/x/a%20b.gguf", DIGEST, "a b.gguf"
    )
    with pytest.raises(SourceError, match="checksum"):
        source_of("https://h.example/a.gguf")


def test_anything_else_is_a_path() -> None:
    """Relative ones, too."""
    assert source_of("models/a.gguf") == LocalSource(Path("models/a.gguf"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf:",
        "hf:org/a.gguf",
        "hf:org/repo/../../etc/a.gguf",
        "hf:../repo/a.gguf",
        "hf:org/repo/a.bin",
        "ftp://h/a.gguf",
        "s3://h/a.gguf",
        f"https:///a.gguf#sha256={DIGEST}",
        f"https://h/..%2F..%2Fetc%2Fpasswd#sha256={DIGEST}",
        f"https://h/.hidden.gguf#sha256={DIGEST}",
        "https://h/a.gguf#sha256=zz",
        "a\0.gguf",
        f"https://[::1/a.gguf#sha256={DIGEST}",
        "/etc/passwd",
    ],
)
def test_other_texts_are_refused_with_what_to_write(text: str) -> None:
    """Every refusal has a remedy."""
    with pytest.raises(SourceError) as refused:
        source_of(text)
    assert refused.value.remedy


@pytest.mark.parametrize(
    "name", ["../a.gguf", "a/b.gguf", ".a.gguf", "-a.gguf", "a", "a.gguf\n", "é" * 200 + ".gguf", "a\\b.gguf"]
)
def test_names_that_are_paths_are_refused(name: str) -> None:
    """Whatever a name does, it stays in the folder."""
    with pytest.raises(SourceError):
        checked_name(name)


SECRETS = [
    f"https://me:hush@models.example/a.gguf#sha256={DIGEST}",
    f"https://hush@models.example/a.gguf#sha256={DIGEST}",
    f"https://models.example\\@evil.example/a.gguf#sha256={DIGEST}",
    f"https://me:hush@models.example:99999/a.gguf#sha256={DIGEST}",
    f"https://models .example/a.gguf?hush#sha256={DIGEST}",
    f"https://models.example:0/a.gguf?hush#sha256={DIGEST}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_an_address_with_a_password_or_a_second_meaning_is_refused_without_showing_it(text: str) -> None:
    """The refusal is shown to people and kept in logs."""
    with pytest.raises(SourceError) as refused:
        source_of(text)
    assert "hush" not in str(refused.value)


def test_what_an_address_asks_for_is_not_shown() -> None:
    """Signed addresses have their key there."""
    source = source_of(f"https://models.example/a.gguf?key=hush#sha256={DIGEST}")
    assert isinstance(source, UrlSource)
    assert (str(source), source.url) == ("https://models.example/a.gguf?…", "https://models.example/a.gguf?key=hush")
    assert shown_address("https://me:hush@models.example/a.gguf#hush") == "https://models.example/a.gguf"


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:org/", "hf:org/repo/", "https://h/", "http://h:81/a/b/", "https://[::1]:8443/", "https://10.0.0.1/"],
)
def test_beginnings_that_may_be_allowed(text: str) -> None:
    """All end where a name ends."""
    assert checked_beginning(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "h",
            "hf",
            "hf:org",
            "hf:org/repo",
            "hf:../",
            "hf:a/b/c/",
            "https://",
            "https:///",
            "https://h",
            "https://h/a",
        ),
        *(
            "ftp://h/",
            "file:///",
            "https://u@h/",
            "https://h/?a/",
            "https://h/#a/",
            "https://h/../",
            "https://h/%2e%2e/",
            "https:/",
        ),
    ],
)
def test_other_beginnings_are_no_setting(text: str) -> None:
    """A host that was cut off would allow others that begin so."""
    with pytest.raises(ValueError, match=r"none of|no address|no name"):
        checked_beginning(text)


ALLOWED = ("hf:org/", "https://models.example/llm/", "http://10.0.0.1:81/")


@pytest.mark.parametrize(
    "place",
    [
        "https://models.example/llm/a.gguf",
        "https://MODELS.example:443/llm/deep/a.gguf",
        "https://models.example/llm/a.gguf?key=1",
        "http://10.0.0.1:81/a.gguf",
    ],
)
def test_addresses_below_a_beginning_are_allowed(place: str) -> None:
    """Of the same scheme, host and port, in its folder."""
    assert leads_into(place, ALLOWED)
    assert is_allowed(source_of(f"{place}#sha256={DIGEST}"), ALLOWED)


@pytest.mark.parametrize(
    "place",
    [
        "http://models.example/llm/a.gguf",
        "https://models.example:8443/llm/a.gguf",
        "https://models.example/a.gguf",
        "https://models.example/llm-private/a.gguf",
        "https://models.example.evil.example/llm/a.gguf",
        "https://evilmodels.example/llm/a.gguf",
        "https://models.example@evil.example/llm/a.gguf",
        "https://evil.example\\.models.example/llm/a.gguf",
        "https://models.example/llm/../a.gguf",
        "https://models.example/llm/./../a.gguf",
        "https://models.example/llm/%2e%2e/a.gguf",
        "https://models.example/llm/%252e%252e/a.gguf",
        "https://models.example/llm/..;x/a.gguf",
        "https://models.example/llm/..%2fa.gguf",
        "https://models.example/llm/..%5ca.gguf",
        "http://10.0.0.1/a.gguf",
        "http://10.0.0.1:811/a.gguf",
        "http://169.254.169.254/a.gguf",
        "file:///llm/a.gguf",
        "//models.example/llm/a.gguf",
    ],
)
def test_addresses_that_only_look_like_it_are_not(place: str) -> None:
    """However they are written."""
    assert not leads_into(place, ALLOWED)


def test_the_hubs_organisations_are_told_apart() -> None:
    """A beginning ends at a name's end; files of the host are never allowed."""
    assert is_allowed(source_of("hf:org/repo/a.gguf@main"), ALLOWED)
    assert is_allowed(source_of("hf:other/repo/a.gguf"), ("hf:",))
    for text in ("hf:organisation/repo/a.gguf", "hf:other/org/a.gguf", "/hf:org/a.gguf", "a.gguf"):
        assert not is_allowed(source_of(text), ALLOWED)
    assert not is_allowed(source_of("hf:org/repo/a.gguf"), ())
