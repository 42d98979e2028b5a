"""One GGUF model in memory: loading, its vocabulary and what it says of itself. A door to llama.cpp."""

from __future__ import annotations

import ctypes
import hashlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from llama_cpp import _ggml as ggml
from llama_cpp import llama_cpp as llama

from moe2.agent.engine.decoding.embedding import Pooling
from moe2.agent.engine.llama.parts import parts_of, size_bytes
from moe2.agent.engine.llama.placement import PlacementLog
from moe2.agent.engine.protocol import ModelFacts, ModelSpec
from moe2.common.errors import Moe2Error
from moe2.common.generation import Sampling
from moe2.common.placement import DeviceShare, GpuFault

_ERROR_LEVELS = (3, 4)
"""GGML_LOG_LEVEL_WARN is 2 or 3 and ERROR 3 or 4, by release: both releases' errors are kept."""
_WARNING_LEVEL = 2
_POOLINGS = {"2": Pooling.FIRST, "3": Pooling.LAST}
"""GGUF's `pooling_type`: 2 is the CLS token's, 3 the last token's."""
_POOLING_TYPES, _RANKING = ("1", "2", "3"), "4"
"""llama.cpp's LLAMA_POOLING_TYPE_MEAN, _CLS, _LAST and _RANK."""
_UNSERVED = frozenset(("t5encoder", "wavtokenizer-dec"))
"""llama.cpp's architectures that yield vectors which are not a text's."""
_ENCODERS = frozenset(
    (
        *(
            "bert",
            "modern-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "neo-bert",
            "jina-bert-v2",
            "jina-bert-v3",
            "eurobert",
        ),
        *("gemma-embedding", "llama-embed"),
    )
)
"""llama.cpp's architectures that yield vectors of texts only."""
_CALL_TAGS = (b"<tool_call>", b"</tool_call>")
_CONTROL_KINDS = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
"""Of the tokens that llama.cpp finds in a text only where `parse_special` is set."""
_recent_errors: deque[str] = deque(maxlen=8)
_placement = PlacementLog()
_NO_GPU_BACKENDS = frozenset(("CPU", "BLAS"))


class ModelError(Moe2Error):
    """A model that cannot be served. `code` is stable; the message says what to do."""

    def __init__(self, message: str, *, code: str, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class GpuRequiredError(ModelError):
    """A model that must be on the GPU, and is not."""

    def __init__(self, path: str, fault: GpuFault) -> None:
        super().__init__(
            f"{path} must be on the GPU (require_gpu), and is not: {fault.message}",
            code="gpu_required",
            remedy=fault.remedy,
        )
        self.fault = fault


class Model:
    """A loaded model. Close it before the process ends."""

    def __init__(self, spec: ModelSpec, *, on_progress: Callable[[float], None]) -> None:
        """Load the file. Raises `ModelError`; calls `on_progress` with 0..1 as the weights come in."""
        self._path = Path(spec.path)
        check_model_files(self._path)
        parameters = llama.llama_model_default_params()
        # -1 is all layers for us and for llama.cpp alike.
        parameters.n_gpu_layers = spec.gpu_layers

        def report(progress: float, _: object) -> bool:
            on_progress(progress)
            return True

        # Held until the load is over: ctypes keeps no reference of its own.
        callback = llama.llama_progress_callback(report)
        parameters.progress_callback = callback
        _load_mode(parameters, mlock=spec.mlock)
        _recent_errors.clear()
        _placement.clear()
        self.pointer = llama.llama_model_load_from_file(str(self._path).encode(), parameters)
        if not self.pointer:
            raise _load_error(self._path)
        self._refuse_unsupported()
        self.vocabulary = llama.llama_model_get_vocab(self.pointer)
        self.vocabulary_size: int = llama.llama_vocab_n_tokens(self.vocabulary)
        self.trained_context_tokens: int = llama.llama_model_n_ctx_train(self.pointer)
        self.keeps_every_position = not (
            llama.llama_model_is_recurrent(self.pointer) or llama.llama_model_is_hybrid(self.pointer)
        )
        """False where the cache is a running state, which cannot be cut back to an earlier token."""
        self.vector_size: int = _vector_size(self.pointer)
        self.control_texts, self.vocabulary_sha256 = read_vocabulary(self.vocabulary, self.vocabulary_size)
        """How the control tokens are spelt, and a digest that is equal for two models exactly when token ids mean the
        same in both: texts, kinds and special tokens."""
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def _refuse_unsupported(self) -> None:
        name = self.metadata("general.architecture") or ""
        if llama.llama_model_has_encoder(self.pointer) or not llama.llama_model_has_decoder(self.pointer):
            kind: str | None = "an encoder or encoder-decoder model"
        elif llama.llama_model_is_diffusion(self.pointer):
            kind = "a diffusion model"
        elif self.metadata(f"{name}.pooling_type") == _RANKING:
            kind = "a reranking model"
        else:
            kind = "no model of texts" if name in _UNSERVED else None
        if kind is None:
            return
        self.close()
        raise ModelError(
            f"{self._path} is {kind}, which this engine does not serve.",
            code="unsupported_model",
            remedy="Use a decoder-only language model, or an embedding model.",
        )

    def close(self) -> None:
        llama.llama_model_free(self.pointer)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids. `add_special` adds what the model begins a text with; `parse_special` reads control
        tokens such as <|im_end|> as such."""
        content = text.encode()
        room = len(content) + 8
        while True:
            tokens = (llama.llama_token * room)()
            count = llama.llama_tokenize(
                self.vocabulary, content, len(content), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """A token's bytes as they appear in text; control tokens have none, but for those that mark a tool call."""
        found = self._pieces.get(token)
        if found is None:
            found = self._render(token, special=False)
            if not found and (tag := self._render(token, special=True)) in _CALL_TAGS:
                found = tag
            self._pieces[token] = found
        return found

    def is_end(self, token: int) -> bool:
        """True for the tokens by which the model ends its answer."""
        found = self._ends.get(token)
        if found is None:
            found = self._ends[token] = bool(llama.llama_vocab_is_eog(self.vocabulary, token))
        return found

    def special_text(self, token: int) -> str:
        """A control token as it is written, e.g. for the templates' `bos_token`; empty where there is none."""
        return self._render(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos(self) -> str:
        return self.special_text(llama.llama_vocab_bos(self.vocabulary))

    @property
    def eos(self) -> str:
        return self.special_text(llama.llama_vocab_eos(self.vocabulary))

    @property
    def infill_marks(self) -> tuple[int, int, int] | None:
        """The control tokens before the text that a gap follows, before the text after the gap, and before what fills
        it; None for a vocabulary without them."""
        kinds = (llama.llama_vocab_fim_pre, llama.llama_vocab_fim_suf, llama.llama_vocab_fim_mid)
        before, after, middle = (int(mark(self.vocabulary)) for mark in kinds)
        return None if min(before, after, middle) < 0 else (before, after, middle)

    def tokens_of(self, text: str) -> list[int]:
        """A text's tokens in the middle of others, control tokens among them."""
        return self.tokenize(text, add_special=False, parse_special=True)

    def is_token(self, text: str) -> bool:
        """True if a text is one token of its own."""
        tokens = self.tokens_of(text)
        return len(tokens) == 1 and self.special_text(tokens[0]) == text

    def chat_template(self, name: str | None = None) -> str | None:
        """The file's chat template; with a name (such as "tool_use") the one for that."""
        source = llama.llama_model_chat_template(self.pointer, None if name is None else name.encode())
        return None if source is None else source.decode("utf-8", "replace")

    @property
    def embeds(self) -> bool:
        """True for a model that yields vectors and writes no text."""
        name = self.metadata("general.architecture") or ""
        return only_embeds(
            name,
            pooling_type=self.metadata(f"{name}.pooling_type"),
            is_causal=self.metadata(f"{name}.attention.causal"),
        )

    @property
    def pooling(self) -> Pooling:
        """How the file asks to pool token vectors; the mean where it does not say."""
        name = self.metadata("general.architecture") or ""
        return _POOLINGS.get(self.metadata(f"{name}.pooling_type") or "", Pooling.MEAN)

    def facts(
        self,
        *,
        supports_tools: bool,
        supports_thinking: bool,
        template_variables: tuple[str, ...] | None,
        sampling: Sampling | None,
    ) -> ModelFacts:
        """What the file says of itself. sampling: what it draws with by default; None where it writes nothing."""
        quantization = llama.llama_ftype_name(llama.llama_model_ftype(self.pointer))
        return ModelFacts(
            architecture=self.metadata("general.architecture") or "unknown",
            name=self.metadata("general.name"),
            quantization=None if quantization is None else quantization.decode().removeprefix("(guessed) "),
            parameters=llama.llama_model_n_params(self.pointer) or None,
            file_bytes=size_bytes(self._path),
            licence=self.metadata("general.license"),
            trained_context_tokens=self.trained_context_tokens or None,
            vocabulary_size=self.vocabulary_size,
            vocabulary_sha256=self.vocabulary_sha256,
            has_chat_template=self.chat_template() is not None,
            supports_tools=supports_tools,
            supports_thinking=supports_thinking,
            template_variables=template_variables,
            supports_infill=self.infill_marks is not None and not self.embeds,
            sampling=sampling,
            vector_size=self.vector_size if self.embeds else None,
        )

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text; None where it has none."""
        return metadata_of(self.pointer, key)

    def _render(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama.llama_token_to_piece(self.vocabulary, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length


def read_vocabulary(vocabulary: llama.llama_vocab_p, size: int) -> tuple[tuple[str, ...], str]:
    """(the control tokens' texts, the vocabulary's SHA-256), in one pass over all tokens."""
    digest = hashlib.sha256()
    control_texts = []
    for token in range(size):
        text = llama.llama_vocab_get_text(vocabulary, token) or b""
        kind = llama.llama_vocab_get_attr(vocabulary, token)
        if kind & _CONTROL_KINDS:
            control_texts.append(text.decode("utf-8", "replace"))
        digest.update(b"%d:%d:" % (len(text), kind))
        digest.update(text)
    ends = (llama.llama_vocab_bos, llama.llama_vocab_eos, llama.llama_vocab_eot)
    digest.update(repr([special(vocabulary) for special in ends]).encode())
    return tuple(control_texts), digest.hexdigest()


def vocabulary_of_file(path: Path) -> str | None:
    """The SHA-256 of a file's vocabulary, read without its weights; None where llama.cpp cannot read it."""
    try:
        check_model_files(path)
    except ModelError:
        return None
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    pointer = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not pointer:
        return None
    vocabulary = llama.llama_model_get_vocab(pointer)
    _, digest = read_vocabulary(vocabulary, llama.llama_vocab_n_tokens(vocabulary))
    llama.llama_model_free(pointer)
    return digest


def only_embeds(architecture: str, *, pooling_type: str | None, is_causal: str | None) -> bool:
    """True for a model that yields vectors and writes no text.

    llama.cpp takes all but T5 for decoders and would draw words from what they compute. A file that asks for pooling,
    or for attention to later tokens, was converted for vectors, also where its architecture can write.
    pooling_type, is_causal: the file's metadata as text; None where it says nothing.
    """
    return pooling_type in _POOLING_TYPES or is_causal == "false" or architecture in _ENCODERS


def _vector_size(pointer: llama.llama_model_p) -> int:
    """The length of the last layer's vectors, which some models make shorter than those within."""
    if hasattr(llama, "llama_model_n_embd_out"):
        return int(llama.llama_model_n_embd_out(pointer))
    return int(llama.llama_model_n_embd(pointer))


def metadata_of(pointer: llama.llama_model_p, key: str) -> str | None:
    """A value of the file's metadata as text."""
    buffer = ctypes.create_string_buffer(4096)
    length = llama.llama_model_meta_val_str(pointer, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") or None if length >= 0 else None


def start_backend(log: Callable[[str], None]) -> Callable[[], None]:
    """Initialise llama.cpp once per process; its warnings go to `log`. The result shuts it down."""

    def receive(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        _placement.read(line)
        if level in _ERROR_LEVELS and line.strip():
            _recent_errors.append(line.strip())
        if _WARNING_LEVEL <= level <= max(_ERROR_LEVELS):
            log(line)

    callback = llama.llama_log_callback(receive)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()

    def stop() -> None:
        llama.llama_backend_free()
        # Only now may the callback go.
        del callback_kept[:]

    callback_kept = [callback]
    return stop


def placement() -> tuple[DeviceShare, ...]:
    """Returns which device holds what of the model that was loaded last, and of its contexts."""
    return _placement.shares()


def engine_said() -> str:
    """Returns llama.cpp's complaint about the GPUs, made when it looked for them; empty where it made none."""
    return _placement.complaint


def can_offload() -> bool:
    """True if llama.cpp sees a GPU that it can use."""
    return bool(llama.llama_supports_gpu_offload())


def gpu_backends() -> tuple[str, ...]:
    """Returns the names of the GPU backends that llama.cpp was built with, such as "CUDA", also where no GPU works."""
    library = ggml.libggml
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    library.ggml_backend_reg_get.restype = ctypes.c_void_p
    library.ggml_backend_reg_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_reg_name.restype = ctypes.c_char_p
    library.ggml_backend_reg_name.argtypes = [ctypes.c_void_p]
    names = [
        library.ggml_backend_reg_name(library.ggml_backend_reg_get(place)).decode("utf-8", "replace")
        for place in range(library.ggml_backend_reg_count())
    ]
    return tuple(name for name in names if name not in _NO_GPU_BACKENDS)


def recent_error() -> str:
    """llama.cpp's last complaint, for messages; empty where it made none."""
    return _recent_errors[-1] if _recent_errors else ""


def check_model_files(path: Path) -> None:
    """Refuses a model of which a file is missing or no GGUF file, or that is named by another part than its first.

    Raises `ModelError`.
    """
    parts = parts_of(path)
    if parts[0] != path:
        raise ModelError(
            f"{path} is a later part of a model that is split into {len(parts)} files.",
            code="model_corrupt",
            remedy=f"Name its first part, {parts[0].name}, in the agent's configuration.",
        )
    for part in parts:
        check_file(part)


def check_file(path: Path, *, what: str = "model") -> None:
    """Refuse what is clearly no GGUF file before llama.cpp sees it. Raises `ModelError`."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise ModelError(
            f"There is no {what} file at {path}.",
            code=f"{what}_missing",
            remedy="Check the path in the agent's configuration, or download it.",
        ) from error
    except OSError as error:
        raise ModelError(
            f"The {what} file {path} cannot be read: {error.strerror}.",
            code=f"{what}_unreadable",
            remedy="Check that it is a file and that the agent's user may read it.",
        ) from error
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is not a GGUF file: it begins with {magic!r}.",
            code=f"{what}_corrupt",
            remedy="Download it again in GGUF format, or convert it with llama.cpp's tools.",
        )


def _load_mode(parameters: llama.llama_model_params, *, mlock: bool) -> None:
    """Lock the weights in memory where asked. The field's name depends on llama.cpp's release."""
    if not mlock:
        return
    if hasattr(parameters, "use_mlock"):
        parameters.use_mlock = True
    else:
        parameters.load_mode = llama.llama_load_mode_from_str(b"mlock")


def _load_error(path: Path) -> ModelError:
    """Name the cause of a failed load from what llama.cpp logged about it."""
    said = "; ".join(line for line in _recent_errors if "failed to load model" not in line)
    lower = said.lower()
    detail = f" (llama.cpp: {said[-400:]})" if said else ""
    if "unknown model architecture" in lower or "unknown pre-tokenizer" in lower or "unsupported model" in lower:
        return ModelError(
            f"{path} is of a kind that this build of llama.cpp does not know{detail}.",
            code="unsupported_model",
            remedy="Install a newer llama-cpp-python, or use another model.",
        )
    # Among others std::bad_alloc.
    if "alloc" in lower or "out of memory" in lower:
        return ModelError(
            f"There is not enough memory to load {path}{detail}.",
            code="out_of_memory",
            remedy="Free memory, offload fewer layers (gpu_layers), or use a smaller quantization.",
        )
    return ModelError(
        f"{path} is corrupt or incomplete{detail}.",
        code="model_corrupt",
        remedy="Download it again and compare its checksum.",
    )
