"""Model files and settings that cannot work: a clear code, a cause and a remedy, never a crash."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from moe2.agent.engine.llama import model
from moe2.agent.engine.protocol import Finished, Loaded, LoadFailed
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from tests.agent.engine.child import Child
from tests.agent.engine.gguf import with_metadata
from tests.models import TOOL_TEMPLATE, smollm2_path

pytestmark = pytest.mark.slow

_LIMIT_BYTES = 900 * 2**20
"""Of addresses: enough for the model, not for a cache of 1.5 GB."""


def _load(path: Path, **settings: int) -> Loaded | LoadFailed:
    with Child() as child:
        return child.load(str(path), **settings)


def _failure(path: Path, **settings: int) -> LoadFailed:
    answer = _load(path, **settings)
    assert isinstance(answer, LoadFailed)
    return answer


def _head(tmp_path: Path, size: int) -> Path:
    """The real model's first bytes, as a broken download leaves them."""
    path = tmp_path / "model.gguf"
    with smollm2_path().open("rb") as whole:
        path.write_bytes(whole.read(size))
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    failed = _failure(tmp_path / "absent.gguf")
    assert failed.code == "model_missing"
    assert "absent.gguf" in failed.message


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    """The system's own reason is told."""
    assert _failure(tmp_path).code == "model_unreadable"


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"GGUF"])
def test_what_is_no_gguf_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """An empty file, an error page saved as a model, a bare magic number."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert _failure(path).code == "model_corrupt"


@pytest.mark.parametrize("size", [1_000, 800_000, 50_000_000])
def test_a_truncated_file_is_corrupt_and_says_to_download_it_again(tmp_path: Path, size: int) -> None:
    """Cut within the header, the metadata or the weights."""
    failed = _failure(_head(tmp_path, size))
    assert failed.code == "model_corrupt"
    assert "Download it again" in failed.message


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    """A model newer than the installed llama.cpp asks for a newer one."""
    path = tmp_path / "model.gguf"
    path.write_bytes(smollm2_path().read_bytes().replace(b"llama", b"lxama"))
    failed = _failure(path)
    assert failed.code == "unsupported_model"
    assert "lxama" in failed.message


@pytest.mark.parametrize(("key", "value"), [("llama.pooling_type", 1), ("llama.attention.causal", False)])
def test_a_model_that_yields_vectors_says_so(tmp_path: Path, key: str, value: int | bool) -> None:
    """It would answer with random words: the coordinator is told the length of its vectors, and asks it for no text."""
    loaded = _load(with_metadata(smollm2_path(), tmp_path / "model.gguf", key, value))
    assert isinstance(loaded, Loaded)
    assert loaded.facts.vector_size == 576
    assert loaded.warmup_prefill_tokens_per_s
    assert loaded.warmup_decode_tokens_per_s is None


def test_a_model_that_ranks_is_not_loaded(tmp_path: Path) -> None:
    """The message says what it is and what to use."""
    failed = _failure(with_metadata(smollm2_path(), tmp_path / "model.gguf", "llama.pooling_type", 4))
    assert failed.code == "unsupported_model"
    assert "a reranking model" in failed.message
    assert "decoder-only" in failed.message


def test_a_model_that_says_it_writes_is_loaded(tmp_path: Path) -> None:
    """Pooling type 0 is none, and causal attention is that of a writer."""
    for number, (key, value) in enumerate((("llama.pooling_type", 0), ("llama.attention.causal", True))):
        assert isinstance(_load(with_metadata(smollm2_path(), tmp_path / f"{number}.gguf", key, value)), Loaded)


@pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "jina-bert-v2", "modern-bert", "gemma-embedding"])
def test_encoders_are_known_by_their_architecture(architecture: str) -> None:
    """Old files do not say that they look at later tokens."""
    assert model.only_embeds(architecture, pooling_type=None, is_causal=None)
    assert not model.only_embeds("llama", pooling_type=None, is_causal=None)


def test_a_cache_beyond_the_hosts_memory_is_refused_with_the_numbers() -> None:
    """The message tells what is needed, what is there and what would fit."""
    failed = _failure(smollm2_path(), context_tokens=100_000_000)
    assert failed.code == "out_of_memory"
    assert "GiB" in failed.message
    assert "Lower context_tokens to at most" in failed.message


def test_a_host_that_gives_no_more_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the cache although there seemed to be room: the child says so and lives to say it."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with Child() as child:
        resource.prlimit(child.process.pid, resource.RLIMIT_AS, (_LIMIT_BYTES, _LIMIT_BYTES))
        failed = child.load(str(smollm2_path()), slots=1, context_tokens=65_536)
        assert child.process.wait(timeout=60) == 1
    assert isinstance(failed, LoadFailed)
    assert failed.code == "out_of_memory"
    assert "Lower context_tokens" in failed.message


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("error loading model vocabulary: std::bad_alloc", "out_of_memory"),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 900.00 MB)", "out_of_memory"),
        ("error loading model architecture: unknown model architecture: 'x'", "unsupported_model"),
        ("tensor 'a' data is not within the file bounds", "model_corrupt"),
    ],
)
def test_what_llama_cpp_said_names_the_cause(said: str, code: str) -> None:
    """Nobody is told to download a file again that merely had no room."""
    model._recent_errors.append(said)
    try:
        assert model._load_error(Path("m.gguf")).code == code
    finally:
        model._recent_errors.clear()


def test_impossible_settings_are_refused_by_name() -> None:
    """The setting, its value and its range."""
    failed = _failure(smollm2_path(), slots=300)
    assert failed.code == "invalid_spec"
    assert "slots is 300" in failed.message


def test_the_smallest_context_still_loads() -> None:
    """llama.cpp rounds up; the child reports what it really is."""
    loaded = _load(smollm2_path(), slots=1, context_tokens=1)
    assert isinstance(loaded, Loaded)
    assert loaded.context_tokens >= 1


def test_a_template_for_tools_is_used_where_there_are_tools(tmp_path: Path) -> None:
    """A file may have two chat templates: `tokenizer.chat_template.tool_use` shows tools, the other knows none."""
    path = with_metadata(smollm2_path(), tmp_path / "two.gguf", "tokenizer.chat_template.tool_use", TOOL_TEMPLATE)
    said = (ChatMessage(role="user", content="Is it raining in Paris?"),)
    tools = (Tool(name="weather", description="The weather of a city", parameters='{"type": "object"}'),)
    with Child() as child:
        loaded = child.load(str(path), slots=1, context_tokens=512)
        assert isinstance(loaded, Loaded)
        assert loaded.facts.supports_tools
        lengths = []
        for number, prompt in enumerate((ChatPrompt(messages=said), ChatPrompt(messages=said, tools=tools))):
            job = f"j{number}"
            child.send(Submit(request_id="r", model="m", job_id=job, prompt=prompt, max_tokens=1))
            lengths.append(child.until(Finished, job).prompt_tokens)
    assert lengths[1] > lengths[0] + 20
