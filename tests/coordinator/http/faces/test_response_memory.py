"""What is kept of responses, for whom, and how much."""

from __future__ import annotations

from moe2.coordinator.http.body.responses import Item, MessageItem
from moe2.coordinator.http.faces.response_memory import KeptResponse, ResponseMemory


def said(role: str, text: str) -> MessageItem:
    return MessageItem(role=role, content=text)  # type: ignore[arg-type]


def response(name: str, previous: str | None = None, *, owner: str | None = None, n_bytes: int = 10) -> KeptResponse:
    output: dict[str, Item] = {f"msg_{name}": said("assistant", f"answer {name}")}
    return KeptResponse(name, owner, previous, (said("user", f"question {name}"),), output, {"id": name}, n_bytes)


def texts(items: list[Item] | None) -> list[object] | None:
    return None if items is None else [item.content for item in items if isinstance(item, MessageItem)]


def test_a_conversation_is_all_turns_oldest_first() -> None:
    """The items of earlier responses come in their order, each answer behind its question."""
    memory = ResponseMemory()
    memory.put(response("a"))
    memory.put(response("b", "a"))
    assert texts(memory.conversation("b", None)) == ["question a", "answer a", "question b", "answer b"]
    assert memory.item("msg_a", None) == said("assistant", "answer a")


def test_another_keys_responses_are_not_found() -> None:
    """A response can be read, continued and deleted with the key that made it, and no other."""
    memory = ResponseMemory()
    memory.put(response("a", owner="k1"))
    assert (memory.conversation("a", "k2"), memory.get("a", None), memory.item("msg_a", "k2")) == (None, None, None)
    assert not memory.delete("a", "k2")
    assert memory.delete("a", "k1")
    assert memory.get("a", "k1") is None


def test_the_least_recently_used_conversations_go_first() -> None:
    """A conversation that goes on keeps its beginning; the one that nobody asked about is forgotten."""
    memory = ResponseMemory(max_responses=3)
    for name, previous in (("a", None), ("x", None), ("b", "a")):
        memory.put(response(name, previous))
    assert memory.conversation("b", None) is not None
    memory.put(response("c", "b"))
    assert memory.get("x", None) is None
    assert len(texts(memory.conversation("c", None)) or ()) == 6


def test_a_conversation_without_its_beginning_is_none() -> None:
    """Half a conversation would be answered wrongly: it is not found."""
    memory = ResponseMemory()
    memory.put(response("b", "a"))
    assert memory.conversation("b", None) is None


def test_bytes_are_bounded_whatever_comes() -> None:
    """Memory stays within its bound, even for a response that exceeds it alone; what is forgotten counts no more."""
    memory = ResponseMemory(max_bytes=100)
    for number in range(50):
        memory.put(response(f"r{number}", n_bytes=30))
        assert memory.n_bytes <= 100
    memory.put(response("huge", n_bytes=101))
    assert memory.n_bytes == 0
    assert memory.item("msg_r49", None) is None
