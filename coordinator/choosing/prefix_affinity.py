"""Memory of which expert holds the beginning of a conversation in its prefix cache. PURE but for what it remembers.

An expert that answered a conversation's last turn still has it in its prefix cache, so that the next turn needs less
prefill there: fewer seconds and joules. That decides between experts that are equally good; it never lets a worse or a
later one win.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.link.messages import JobUsage
from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.coordinator.fleet.table import Expert, agent_of

MAX_CONVERSATIONS = 4096
HASH_BYTES = 16
MAX_TOKENS = 2**31
"""No context is that long: larger figures are an agent's defect."""
MIN_HELD = 0.5
"""Least share of the expected prefixes that an expert must have held lately to be relied on again."""
_FORGETTING = 0.8
"""Factor on an outcome's weight at each later outcome: the share looks back on about five."""

Prefix = bytes
"""Hash of the first messages of a conversation."""


class Affinity(msgspec.Struct, frozen=True):
    """The expert that is expected to hold the beginning of a prompt in its prefix cache."""

    expert_key: str
    cached_tokens: int
    """How many tokens of the prompt it is expected to hold."""
    identity: str | None = None
    """What the model was (`Expert.identity`) that answered; None where nobody has said."""

    def holds_on(self, expert: Expert) -> bool:
        """False where the expert of that key serves another file by now, which has none of this in its cache."""
        # Until a file's checksum is known its name stands for it.
        is_same = expert.identity == self.identity or expert.model in (self.identity, expert.identity)
        return self.identity is None or is_same

    def cached(self, place: int, prompt_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns (N,) tokens of the prompt that each expert is expected to hold; one is left to prefill at least.

        place: of the expert that holds some. prompt_tokens: (N,) all of the prompt.
        """
        held = np.zeros_like(prompt_tokens)
        held[place] = max(0, min(self.cached_tokens, int(prompt_tokens[place]) - 1))
        return held


def prefixes(prompt: ChatPrompt | TextPrompt) -> tuple[Prefix, ...]:
    """The hashes of a conversation's first message, of its first two, and so on; empty for a plain text."""
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
    """Which expert answered each of the latest conversations, and how reliably experts keep their caches.

    max_conversations: how many are remembered; the oldest is forgotten first.
    """

    def __init__(self, max_conversations: int = MAX_CONVERSATIONS) -> None:
        self._max_conversations = max_conversations
        self._known: OrderedDict[Prefix, Affinity] = OrderedDict()
        self._held: dict[str, float] = {}
        """Share of the expected prefixes that were found in the cache, by expert; an absent expert is relied on."""

    def find(self, chain: tuple[Prefix, ...]) -> Affinity | None:
        """The affinity of the longest beginning that an expert answered; None where that expert is not relied on.

        chain: hashes as of `prefixes`.
        """
        known = self._longest(chain)
        return known if known and self._held.get(known.expert_key, 1.0) >= MIN_HELD else None

    def answered(
        self, chain: tuple[Prefix, ...], expert_key: str, usage: JobUsage, identity: str | None = None
    ) -> None:
        """Remember that an expert has answered this conversation and now holds it, and whether it held its beginning.

        chain: hashes as of `prefixes`. usage: what the expert reported of the job. identity: of the expert's model.
        """
        if not chain or usage.prompt_tokens is None:
            return
        held_tokens = usage.prompt_tokens + usage.decoded_tokens
        if not 0 < held_tokens <= MAX_TOKENS:
            # An agent's defect must not reach another request's prediction.
            return
        known = self._longest(chain)
        if known is not None and known.expert_key == expert_key:
            was_held = usage.cached_tokens >= 0.5 * min(known.cached_tokens, usage.prompt_tokens)
            held = self._held.get(expert_key, 1.0)
            self._held[expert_key] = _FORGETTING * held + (1 - _FORGETTING) * was_held
        self._known[chain[-1]] = Affinity(expert_key, held_tokens, identity)
        self._known.move_to_end(chain[-1])
        if len(self._known) > self._max_conversations:
            self._known.popitem(last=False)

    def _longest(self, chain: tuple[Prefix, ...]) -> Affinity | None:
        for prefix in reversed(chain):
            if known := self._known.get(prefix):
                return known
        return None

    def forget(self, agent_id: str) -> None:
        """Forget everything about the experts of an agent that is gone, because their caches are gone too."""
        for prefix in [at for at, known in self._known.items() if agent_of(known.expert_key) == agent_id]:
            del self._known[prefix]
        for key in [key for key in self._held if agent_of(key) == agent_id]:
            del self._held[key]
