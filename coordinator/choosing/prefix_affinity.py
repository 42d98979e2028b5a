"""Which expert holds the beginning of a conversation in its cache. PURE but for what it remembers.

An expert that answered a conversation's last turn still has it in its prefix cache, so that the next turn needs less
prefill there: fewer seconds and joules. That is a reason to go there again among experts that are equally good, and
none to go to a worse or a later one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.common.link.messages import ChatPrompt, JobUsage, TextPrompt
from moe2.coordinator.fleet.table import agent_of

MAX_CONVERSATIONS = 4096
HASH_BYTES = 16
MAX_TOKENS = 2**31
MIN_HELD = 0.5
"""Share of the expected prefixes that an expert must have held lately, to be expected to hold another one."""
_FORGETTING = 0.8
"""Weight that an outcome keeps at each later one: looks back on about five."""

Prefix = bytes
"""Hash of the first messages of a conversation."""


@dataclass(frozen=True)
class Affinity:
    """This expert is expected to have so many tokens of the prompt in its cache."""

    expert_key: str
    cached_tokens: int

    def still_to_prefill(self, keys: tuple[str, ...], prompt_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Prompt tokens without those that the expert has cached. prompt_tokens: (N,) in the order of `keys`."""
        cached_tokens = np.array([self.cached_tokens if key == self.expert_key else 0 for key in keys], dtype=np.int64)
        return np.where(cached_tokens > 0, np.maximum(1, prompt_tokens - cached_tokens), prompt_tokens)


def prefixes(prompt: ChatPrompt | TextPrompt) -> tuple[Prefix, ...]:
    """Of a conversation's first message, its first two, and so on; empty for a plain text."""
    if isinstance(prompt, TextPrompt):
        return ()
    chain = hashlib.blake2b(repr(prompt.tools).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES)
    found = []
    for message in prompt.messages:
        content = message.content.encode("utf-8", "surrogatepass")
        # The lengths keep two messages from looking like one.
        about = (message.role, message.name, message.tool_calls, message.tool_call_id, len(content))
        chain.update(repr(about).encode("utf-8", "surrogatepass"))
        chain.update(content)
        found.append(chain.digest())
    return tuple(found)


class Affinities:
    """The last conversations' whereabouts, and how well experts keep what they have.

    most: conversations that are remembered.
    """

    def __init__(self, most: int = MAX_CONVERSATIONS) -> None:
        self._most = most
        self._known: OrderedDict[Prefix, Affinity] = OrderedDict()
        self._held: dict[str, float] = {}
        """Share of the expected prefixes that were found, by expert; new ones are trusted."""

    def find(self, chain: tuple[Prefix, ...]) -> Affinity | None:
        """For the longest beginning that is known to be held, if its expert can be relied on to hold it."""
        known = self._longest(chain)
        return known if known and self._held.get(known.expert_key, 1.0) >= MIN_HELD else None

    def answered(self, chain: tuple[Prefix, ...], expert_key: str, usage: JobUsage) -> None:
        """An expert has answered this conversation, and holds it from now on."""
        if not chain or usage.prompt_tokens is None:
            return
        held_tokens = usage.prompt_tokens + usage.decoded_tokens
        if not 0 < held_tokens <= MAX_TOKENS:
            # No context is that long: an agent's defect must not reach another request's prediction.
            return
        known = self._longest(chain)
        if known is not None and known.expert_key == expert_key:
            was_held = usage.cached_tokens >= 0.5 * min(known.cached_tokens, usage.prompt_tokens)
            held = self._held.get(expert_key, 1.0)
            self._held[expert_key] = _FORGETTING * held + (1 - _FORGETTING) * was_held
        self._known[chain[-1]] = Affinity(expert_key, held_tokens)
        self._known.move_to_end(chain[-1])
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def _longest(self, chain: tuple[Prefix, ...]) -> Affinity | None:
        return next((known for prefix in reversed(chain) if (known := self._known.get(prefix))), None)

    def forget(self, agent_id: str) -> None:
        """The agent is gone, and its caches with it."""
        for prefix in [at for at, known in self._known.items() if agent_of(known.expert_key) == agent_id]:
            del self._known[prefix]
        for key in [key for key in self._held if agent_of(key) == agent_id]:
            del self._held[key]
