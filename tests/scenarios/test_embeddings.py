"""Vectors through the stock OpenAI client, over fake experts whose vectors count words."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.expert import vector_of
from tests.fakes.fleet import FAKE_EXPERT, Fleet, fleet, model_file
from tests.scenarios.clients import client_of

pytestmark = pytest.mark.slow

SIZE = 8
EMBEDDER = (*FAKE_EXPERT, "--vectors", str(SIZE))


def expected(*words: str) -> list[float]:
    return list(struct.unpack(f"<{SIZE}f", vector_of(list(words), SIZE)))


def model(root: Path, name: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"name": name, "path": model_file(root, name), "slots": 2, **fields}]


async def embedding_fleet(running: Fleet, root: Path, **fields: Any) -> None:
    """Adds an agent with an embedding model to a fleet that has a writer."""
    await running.start_agent("embedder", engine_argv=EMBEDDER, models=model(root, "minilm", **fields))
    await running.until(ready=2)


async def test_texts_are_embedded_by_the_model_that_can(tmp_path: Path) -> None:
    """One vector for each text, in their order, in either encoding, with joules and tokens like any request."""
    async with fleet(tmp_path, profile="agx-orin-maxn") as running, client_of(running) as client:
        await embedding_fleet(running, tmp_path)
        texts = ["a b", "c", "a b"]
        for encoding in ("float", "base64"):
            answer = await client.embeddings.create(model="moe2", input=texts, encoding_format=encoding)
            assert answer.model == "minilm"
            assert answer.usage.prompt_tokens == 5
            raw = [item.embedding for item in answer.data]
            found = [np.frombuffer(base64.b64decode(v), "<f4").tolist() if isinstance(v, str) else v for v in raw]
            for vector, words in zip(found, texts, strict=True):
                assert vector == pytest.approx(expected(*words.split()), abs=1e-6)
            receipt = answer.moe2  # type: ignore[attr-defined]
            assert receipt["experts"][0]["model"] == "minilm"
            assert receipt["tokens"]["decoded"] == 0
            assert "joules" in receipt["energy"]
        async with running.http.get("/v1/moe2/ledger?by=model") as ledger:
            (row,) = (await ledger.json())["sums"]
        assert row["n_requests"] == 2
        async with running.http.get("/v1/models/minilm") as described:
            able = (await described.json())["capabilities"]
        assert [name for name, has in able.items() if has] == ["embeddings"]


async def test_the_clients_default_encoding_works(tmp_path: Path) -> None:
    """OpenAI's client asks for base64 and unpacks it; token ids may be sent in the place of text."""
    async with fleet(tmp_path, engine_argv=EMBEDDER, models=model(tmp_path, "minilm")) as running:
        async with client_of(running) as client:
            answer = await client.embeddings.create(model="minilm", input=[[7, 8], [9]])
            assert answer.data[0].embedding == pytest.approx(expected("7", "8"), abs=1e-6)
            assert answer.data[1].index == 1


async def test_vectors_are_cut_where_the_model_allows_it(tmp_path: Path) -> None:
    """To the lengths in `vector_sizes`, and to their own; the result has length 1 again. Others are refused."""
    async with (
        fleet(tmp_path, engine_argv=EMBEDDER, models=model(tmp_path, "minilm", vector_sizes=[4])) as running,
        client_of(running) as client,
    ):
        cut = await client.embeddings.create(model="moe2", input="a b", dimensions=4)
        whole = np.array(expected("a", "b")[:4])
        assert cut.data[0].embedding == pytest.approx((whole / np.linalg.norm(whole)).tolist(), abs=1e-6)
        assert len((await client.embeddings.create(model="moe2", input="a", dimensions=SIZE)).data[0].embedding) == SIZE
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="moe2", input="a", dimensions=3)
        assert caught.value.param == "dimensions"


async def test_writers_embed_nothing_and_embedding_models_write_nothing(tmp_path: Path) -> None:
    """Each is left out of what it cannot do, and a clear 400 where it is asked for by name."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="moe2", input="a")
        assert caught.value.code == "no_vectors"
        await embedding_fleet(running, tmp_path)
        for _ in range(5):
            async with await running.chat("hi", max_tokens=1) as answer:
                assert (await answer.json())["model"] == "fake"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="minilm", prompt="a")
        assert caught.value.code == "only_vectors"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="fake", input="a")
        assert caught.value.code == "no_vectors"


async def test_one_of_several_embedding_models_has_to_be_named(tmp_path: Path) -> None:
    """Vectors of different models cannot be compared; an index must not become a mixture of both."""
    async with fleet(tmp_path, engine_argv=EMBEDDER, models=model(tmp_path, "minilm")) as running:
        await running.start_agent("other", engine_argv=EMBEDDER, models=model(tmp_path, "bge"))
        await running.until(ready=2)
        async with client_of(running) as client:
            with pytest.raises(openai.BadRequestError, match="bge, minilm") as caught:
                await client.embeddings.create(model="moe2", input="a")
            assert caught.value.param == "model"
            assert (await client.embeddings.create(model="bge", input="a")).model == "bge"


async def test_a_long_batch_fits_where_each_text_does(tmp_path: Path) -> None:
    """A context has room for one text at a time; a text beyond it is the client's error."""
    models = model(tmp_path, "minilm", context_tokens=64)
    async with fleet(tmp_path, engine_argv=EMBEDDER, models=models) as running, client_of(running) as client:
        answer = await client.embeddings.create(model="moe2", input=["word " * 60] * 40)
        assert len(answer.data) == 40
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="moe2", input=["a", "word " * 65])
        assert caught.value.code == "context_length_exceeded"


async def test_another_host_takes_over(tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]) -> None:
    """Where one fails in the middle, the same model on another host makes all vectors anew."""
    models = model(tmp_path, "minilm")
    argv = (*controlled, "--vectors", str(SIZE))
    async with fleet(tmp_path, engine_argv=argv, models=models) as running, client_of(running) as client:
        asked = asyncio.create_task(client.embeddings.create(model="minilm", input=["a", "b"]))
        (await control.next_phase()).answer()
        second = await control.next_phase()
        await running.start_agent("other", engine_argv=EMBEDDER, models=models)
        await running.until(ready=2)
        second.answer("crash")
        answer = await asked
        assert [item.embedding for item in answer.data] == [
            pytest.approx(expected(word), abs=1e-6) for word in ("a", "b")
        ]
        outcomes = [line["outcome"] for line in answer.moe2["experts"]]  # type: ignore[attr-defined]
        assert outcomes[-1] == "answered"
        assert "failed" in outcomes
        control.release()
