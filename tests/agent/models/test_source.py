"""Where models are pulled from, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.models.source import HubSource, LocalSource, SourceError, UrlSource, checked_name, source_of

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
