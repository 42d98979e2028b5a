"""Who has the say of what a host serves: its configuration, or the coordinator where that is let."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent.settings import AgentSettings
from moe2.agent.supply.served import ServedFile, ServedModel, choices, lines, sections
from moe2.common.errors import Moe2Error

SAID = {"a": ServedModel(path="/said/a.gguf", slots=2), "b": ServedModel(path="/said/b.gguf", sha256="ab" * 32)}


def settings(**models_from: Any) -> AgentSettings:
    """A configuration with the model `a`."""
    return AgentSettings.model_validate(
        {
            "coordinator": {"url": "ws://h:1"},
            "models": [{"name": "a", "path": "/configured/a.gguf", "slots": 7, "threads": 3}],
            "models_from": models_from,
        }
    )


def served(**models_from: Any) -> dict[str, tuple[str, int]]:
    """(path, slots) of what is served, by name."""
    return {one.name: (str(one.path), one.slots) for one in sections(settings(**models_from), SAID)}


def test_a_host_that_takes_nothing_serves_what_its_file_says() -> None:
    """What was said before it was forbidden has no force."""
    assert served() == {"a": ("/configured/a.gguf", 7)}


def test_the_configuration_wins_by_name() -> None:
    """Other names are served besides."""
    assert served(coordinator=True) == {"a": ("/configured/a.gguf", 7), "b": ("/said/b.gguf", 4)}
    assert lines(choices(settings(coordinator=True), SAID)) == [
        "a: served from /configured/a.gguf, as the configuration says; the coordinator says otherwise and loses.",
        "b: served from /said/b.gguf, as the coordinator says.",
    ]


def test_where_the_coordinator_may_override_its_word_wins() -> None:
    """What it says nothing of stays as configured; a withdrawn model is not served."""
    assert served(coordinator=True, override=True)["a"] == ("/said/a.gguf", 2)
    [section] = sections(settings(coordinator=True, override=True), {"a": ServedModel(path="/said/a.gguf")})
    assert section.threads == 3
    assert sections(settings(coordinator=True, override=True), {"a": ServedModel()}) == ()


def test_what_was_said_is_kept_and_forgotten(tmp_path: Path) -> None:
    """One model at a time; the others stay."""
    file = ServedFile(tmp_path)
    file.keep("a", SAID["a"])
    file.keep("b", SAID["b"])
    file.keep("a", None)
    assert ServedFile(tmp_path).read() == {"b": SAID["b"]}


@pytest.mark.parametrize("content", ["[]", "{", '{"a": {"slots": "many"}}'])
def test_a_damaged_file_is_said_and_not_overwritten(tmp_path: Path, content: str) -> None:
    """The remedy names it."""
    (tmp_path / "served.json").write_text(content)
    with pytest.raises(Moe2Error, match="cannot be used"):
        ServedFile(tmp_path).keep("a", SAID["a"])
    assert (tmp_path / "served.json").read_text() == content


def test_an_agent_without_models_needs_a_coordinator_that_may_name_them() -> None:
    """Otherwise it would serve nothing for ever."""
    base: dict[str, Any] = {"coordinator": {"url": "ws://h:1"}}
    assert AgentSettings.model_validate({**base, "models_from": {"coordinator": True}}).models == ()
    with pytest.raises(ValueError, match="models"):
        AgentSettings.model_validate({**base, "models": []})
