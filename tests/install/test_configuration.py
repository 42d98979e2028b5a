"""The first configuration: the packaged examples with values in them, which the daemons accept."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.settings import AgentSettings
from moe2.common.config import load_settings
from moe2.coordinator.settings import CoordinatorSettings
from tests.install.fakehost import CHECKOUT


def written(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECKOUT / "install/configuration.py", *arguments], capture_output=True, text=True, check=False
    )


def parsed(*arguments: str) -> dict[str, Any]:
    done = written(*arguments)
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


def test_the_agent_accepts_what_is_written(tmp_path: Path) -> None:
    """Text with quotes and other scripts stays as it is; each model has what it needs."""
    name = 'edge "1" – küche'
    path = tmp_path / "agent.toml"
    path.write_text(
        written(
            *(str(CHECKOUT / "examples/agent.toml"), "--set", f"agent.name={name}"),
            *("--set", "coordinator.url=wss://moe2.example:8081", "--gpu-layers=-1"),
            *("--model", "/srv/Qwen3 8B (Q4).gguf", "--model", "/srv/tiny.gguf"),
        ).stdout
    )
    settings = load_settings(AgentSettings, path, environment={}, prefix="MOE2_AGENT")
    assert settings.agent.name == name
    assert settings.coordinator.url == "wss://moe2.example:8081"
    assert [(model.name, str(model.path), model.gpu_layers) for model in settings.models] == [
        ("qwen3-8b-q4", "/srv/Qwen3 8B (Q4).gguf", -1),
        ("tiny", "/srv/tiny.gguf", -1),
    ]


def test_the_coordinator_accepts_the_example_as_it_is(tmp_path: Path) -> None:
    """Nothing has to be filled in."""
    path = tmp_path / "coordinator.toml"
    path.write_text(written(str(CHECKOUT / "examples/coordinator.toml")).stdout)
    settings = load_settings(CoordinatorSettings, path, environment={}, prefix="MOE2_COORDINATOR")
    assert settings.api.host == "127.0.0.1"


def test_every_other_setting_is_shown(tmp_path: Path) -> None:
    """The comments of the example are there, to be edited."""
    example = (CHECKOUT / "examples/agent.toml").read_text()
    text = written(str(CHECKOUT / "examples/agent.toml"), "--model", "/srv/a.gguf").stdout
    assert {line for line in example.splitlines() if line.startswith("# ")} <= set(text.splitlines())


def test_a_value_without_a_place_is_an_error() -> None:
    """A setting that was renamed in the example must not be lost in silence."""
    done = written(str(CHECKOUT / "examples/agent.toml"), "--set", "agent.nmae=edge")
    assert done.returncode == 1
    assert "The example has no agent.nmae." in done.stderr


def test_two_models_of_one_name_are_an_error() -> None:
    """The daemon would refuse them later."""
    done = written(str(CHECKOUT / "examples/agent.toml"), "--model", "/a/m.gguf", "--model", "/b/M.gguf")
    assert done.returncode == 1
    assert "Two models would have the same name" in done.stderr


@pytest.mark.parametrize("section", ["agent", "sensors"])
def test_a_key_is_set_in_its_own_section(section: str) -> None:
    """`name` of the agent is not `name` of a model."""
    key = {"agent": "name", "sensors": "profile"}[section]
    found = parsed(str(CHECKOUT / "examples/agent.toml"), "--set", f"{section}.{key}=x")
    assert found[section][key] == "x"
    assert found["models"][0]["name"] == "smollm2-135m-q4_1"
