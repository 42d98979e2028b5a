"""The key/value cache and the batch that goes through the model. A door to llama.cpp.

A *lane* is one sequence of the cache. Lanes share one pool of cells, so copying a prefix to another lane costs nothing;
where the cache is divided, each has cells of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.decoding.batch import Chunk, DecodeOutcome
from moe2.agent.engine.decoding.shelf import State
from moe2.agent.engine.llama.memory import all_cells, windowed_tokens
from moe2.agent.engine.llama.model import Model, ModelError, recent_error
from moe2.agent.engine.protocol import MAX_SEQUENCES, ModelSpec

Logits = npt.NDArray[np.float32]

_CACHE_TYPES = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0, "q4_0": llama.GGML_TYPE_Q4_0}
_NO_CELLS = 1
_ALLOCATION_FAILED = -2


class Context:
    """One llama.cpp context: its cells, its batch buffers, its logits."""

    def __init__(
        self, model: Model, spec: ModelSpec, *, lanes: int, outputs: int, threads: int, embeds: bool = False
    ) -> None:
        """Allocate the cache. `outputs` bounds the rows of logits, or with `embeds` of vectors, of one batch. Where it
        is divided, the lanes are those of `lanes_for`.

        Raises `ModelError`.
        """
        self._kv_unified = spec.kv_unified
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = all_cells(spec.context_tokens, spec.slots, kv_unified=spec.kv_unified)
        parameters.n_batch = parameters.n_ubatch = spec.batch_tokens
        # The last one holds nothing but what fills up a batch of one token. Of its own lane a token alone sees nothing
        # but its own cells anyway.
        fills_up = model.keeps_every_position and lanes < MAX_SEQUENCES and spec.kv_unified
        self._filler_lane = lanes if fills_up else None
        parameters.n_seq_max = lanes + (self._filler_lane is not None)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = spec.kv_unified
        window = llama.llama_model_n_swa(model.pointer) or None
        windowed = windowed_tokens(
            window,
            cells=parameters.n_ctx,
            lanes=parameters.n_seq_max,
            batch_tokens=spec.batch_tokens,
            kv_unified=spec.kv_unified,
        )
        parameters.swa_full = windowed is None
        self.cuts_anywhere = model.keeps_every_position and windowed is None
        """The cache can be cut back to any earlier token."""
        self.gives_back_latest = model.keeps_every_position
        """The cache can be cut back to where it was before the latest batch, as after wrong guesses: a sliding window
        has lost nothing yet that the next token looks at."""
        parameters.no_perf = True
        parameters.embeddings = embeds
        # Pooling is ours: it is the same in all of llama.cpp's releases.
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        if hasattr(parameters, "n_outputs_max"):
            # Without it llama.cpp reserves room for a full batch of logits: hundreds of MB with large vocabularies.
            parameters.n_outputs_max = parameters.n_outputs_max_per_seq = outputs
        parameters.type_k = parameters.type_v = _CACHE_TYPES[spec.cache_type]
        parameters.flash_attn_type = _flash_attention(spec)
        self.pointer = llama.llama_init_from_model(model.pointer, parameters)
        if not self.pointer:
            said = recent_error()
            raise ModelError(
                f"llama.cpp cannot set up a context of {spec.context_tokens} tokens for {spec.path}"
                + (f": {said}." if said else "."),
                code="out_of_memory",
                remedy="Lower context_tokens or batch_tokens, offload fewer layers, or use a smaller model.",
            )
        self.tokens: int = llama.llama_n_ctx(self.pointer)
        self.lane_tokens = self.tokens if spec.kv_unified else self.tokens // lanes
        """The most that one lane can hold."""
        self.batch_tokens: int = llama.llama_n_batch(self.pointer)
        self._memory = llama.llama_get_memory(self.pointer)
        self._vocabulary_size = model.vocabulary_size
        self._vector_size = model.vector_size
        self._rows: dict[int, Logits] = {}
        self._batch, self._buffers = _batch(self.batch_tokens)

    def close(self) -> None:
        llama.llama_free(self.pointer)

    def decode(self, chunks: Sequence[Chunk]) -> DecodeOutcome:
        """Run the chunks through the model in one batch.

        Where a chunk wants logits, they are at its tokens' places in the batch (see `logits`) until the next call; in a
        context that embeds so are the last layer's vectors (see `embedding`).
        """
        token, position, lane, output = self._buffers
        filled = 0
        for chunk in chunks:
            count = len(chunk.tokens)
            end = filled + count
            if count == 1:
                token[filled] = chunk.tokens[0]
                position[filled] = chunk.start
            else:
                token[filled:end] = chunk.tokens
                position[filled:end] = np.arange(chunk.start, chunk.start + count, dtype=np.int32)
            lane[filled:end] = chunk.lane
            output[filled:end] = 0
            output[filled + chunk.logits_from : end] = 1
            filled = end
        fills = filled == 1 and self._fill_up(chunks[0])
        self._batch.n_tokens = filled + fills
        status = llama.llama_decode(self.pointer, self._batch)
        if fills:
            llama.llama_memory_seq_rm(self._memory, self._filler_lane, -1, -1)
            if status == _NO_CELLS:
                self._batch.n_tokens = filled
                status = llama.llama_decode(self.pointer, self._batch)
        if status == 0:
            return DecodeOutcome.DONE
        if status == _NO_CELLS:
            return DecodeOutcome.NO_CELLS
        return DecodeOutcome.OUT_OF_MEMORY if status == _ALLOCATION_FAILED else DecodeOutcome.FAILED

    def _fill_up(self, chunk: Chunk) -> bool:
        """Adds a token that nobody needs to a steady batch of one; False where none is to be added.

        For a batch of one token llama.cpp's flash attention splits the cache among its threads: it adds up in another
        order than for several tokens, and in one that depends on what else is in the cache.
        """
        if self._filler_lane is None or not chunk.is_steady:
            return False
        token, position, lane, output = self._buffers
        token[1], position[1], lane[1], output[1] = chunk.tokens[0], 0, self._filler_lane, 0
        return True

    def logits(self, place: int) -> Logits:
        """The raw logits of the batch's token at `place`, shape (vocabulary_size,). Valid until the next decode."""
        row = llama.llama_get_logits_ith(self.pointer, place)
        address = ctypes.addressof(row.contents)
        found = self._rows.get(address)
        if found is None:
            # The rows lie where they lay; making a view takes longer than drawing the most likely token from it.
            found = self._rows[address] = np.ctypeslib.as_array(row, (self._vocabulary_size,))
        return found

    def embedding(self, place: int) -> Logits:
        """The last layer's vector of the batch's token at `place`, shape (vector_size,). Valid until the next
        decode."""
        row = llama.llama_get_embeddings_ith(self.pointer, place)
        return np.ctypeslib.as_array(row, (self._vector_size,))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let `target` (empty) begin with the first `tokens` of `source`."""
        if self._kv_unified:
            llama.llama_memory_seq_cp(self._memory, source, target, -1, tokens)
        else:
            # llama.cpp would copy all cells of a lane, used or not, and only before the next batch.
            self.restore(target, self.save(source))
            self.trim(target, tokens)

    def trim(self, lane: int, keep: int) -> bool:
        """Drop a lane's tokens after the first `keep`. False where the cache cannot do that."""
        return bool(llama.llama_memory_seq_rm(self._memory, lane, keep or -1, -1))

    def state_bytes(self, lane: int) -> int:
        """Bytes that `save` would take for a lane."""
        return int(llama.llama_state_seq_get_size(self.pointer, lane))

    def save(self, lane: int) -> State:
        """A copy, in the host's memory, of all that the cache holds of a lane."""
        state = np.empty(self.state_bytes(lane), np.uint8)
        written = llama.llama_state_seq_get_data(self.pointer, _bytes_of(state), state.nbytes, lane)
        return state[:written]

    def restore(self, lane: int, state: State) -> bool:
        """Let `lane` (empty) hold what was saved. False where the cache has no room for it; the lane is empty then."""
        return bool(llama.llama_state_seq_set_data(self.pointer, _bytes_of(state), state.nbytes, lane))


def _flash_attention(spec: ModelSpec) -> int:
    # Quantized values need it.
    if spec.flash_attention or spec.cache_type != "f16":
        return int(llama.LLAMA_FLASH_ATTN_TYPE_ENABLED)
    # Where nobody says, llama.cpp knows which kernels this backend has.
    return int(
        llama.LLAMA_FLASH_ATTN_TYPE_AUTO if spec.flash_attention is None else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )


def _bytes_of(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _batch(room: int) -> tuple[llama.llama_batch, tuple[npt.NDArray[Any], ...]]:
    """A batch whose arrays are numpy's, so that filling it is slicing: (batch, (token, position, lane, output))."""
    token = np.zeros(room, np.int32)
    position = np.zeros(room, np.int32)
    lane = np.zeros(room, np.int32)
    lanes_per_token = np.ones(room, np.int32)
    lane_pointers = lane.ctypes.data + lane.itemsize * np.arange(room, dtype=np.uintp)
    output = np.zeros(room, np.int8)
    int32 = ctypes.POINTER(ctypes.c_int32)
    batch = llama.llama_batch(
        n_tokens=0,
        token=token.ctypes.data_as(int32),
        embd=None,
        pos=position.ctypes.data_as(int32),
        n_seq_id=lanes_per_token.ctypes.data_as(int32),
        seq_id=lane_pointers.ctypes.data_as(ctypes.POINTER(int32)),
        logits=output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
    )
    # `data_as` ties each array's life to its pointer, but assigning to a ctypes field copies only the address.
    batch.kept = (token, position, lane, lanes_per_token, lane_pointers, output)
    return batch, (token, position, lane, output)
