"""The agent's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe2.agent.engine.protocol import DraftSpec
from moe2.agent.jobs.core import AgentCore
from moe2.agent.models.spec import spec_of
from moe2.agent.settings import ENVIRONMENT_PREFIX, AgentSettings
from moe2.common.config import load_settings
from moe2.common.errors import ConfigError

SMALLEST = """
[coordinator]
url = "ws://127.0.0.1:8081"
token_file = "token"
[[models]]
name = "m"
path = "m.gguf"
"""


def load(tmp_path: Path, content: str, **environment: str) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(content)
    return load_settings(AgentSettings, path, environment=environment, prefix=ENVIRONMENT_PREFIX)


def test_the_smallest_file_is_enough(tmp_path: Path) -> None:
    """A coordinator, a token and a model; the rest has defaults."""
    settings = load(tmp_path, SMALLEST)
    assert settings.agent.name is None
    assert settings.models[0].slots == 4
    assert settings.log.level == "info"


def test_an_empty_file_names_all_that_is_missing(tmp_path: Path) -> None:
    """Both required parts at once."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, "")
    assert [fault.split(": ", 1)[1] for fault in raised.value.faults] == [
        "coordinator: required, but not set.",
        "models: required, but not set.",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("MOE2_AGENT__COORDINATOR__URL", "wss://hub:443/", lambda s: s.coordinator.url == "wss://hub:443"),
        ("MOE2_AGENT__LOG__LEVEL", "debug", lambda s: s.log.level == "debug"),
        ("MOE2_AGENT__AGENT__DRAIN_S", "1.5", lambda s: s.agent.drain_s == 1.5),
        ("MOE2_AGENT__AGENT__STATE_DIR", "/x", lambda s: s.agent.state_dir == Path("/x")),
    ],
)
def test_the_environment_overrides(tmp_path: Path, variable: str, value: str, read: Any) -> None:
    """Each kind of value can be given as text."""
    assert read(load(tmp_path, SMALLEST, **{variable: value}))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MOE2_AGENT__COORDINATOR__URL", "http://hub:80"),
        ("MOE2_AGENT__COORDINATOR__URL", "ws://"),
        ("MOE2_AGENT__COORDINATOR__RECONNECT_FIRST_S", "0"),
        ("MOE2_AGENT__AGENT__DRAIN_S", "inf"),
        ("MOE2_AGENT__AGENT__DRAIN_S", "nan"),
        ("MOE2_AGENT__LOG__LEVEL", "loud"),
        ("MOE2_AGENT__ENGINE__LOAD_TIMEOUT_S", "-1"),
        ("MOE2_AGENT__MODELS", "m.gguf"),
        ("MOE2_AGENT__NO__SUCH", "1"),
    ],
)
def test_a_wrong_value_names_its_variable(tmp_path: Path, variable: str, value: str) -> None:
    """One fault, at its place."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SMALLEST, **{variable: value})
    [fault] = raised.value.faults
    assert fault.startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("context_tokens = 63", "context_tokens"),
        ("slots = 0", "slots"),
        ("max_queue = -1", "max_queue"),
        ("threads = 0", "threads"),
        ("gpu_layers = -2", "gpu_layers"),
        ("batch_tokens = 1", "batch_tokens"),
        ("slot = 1", "slot"),
    ],
)
def test_a_wrong_model_key_is_named_with_its_row(tmp_path: Path, line: str, key: str) -> None:
    """Rows are counted from 0, as in the file's order."""
    with pytest.raises(ConfigError, match=f"agent.toml: models.0.{key}: "):
        load(tmp_path, SMALLEST + line)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('certificate = "c"', "certificate and key belong together"),
        ('key = "k"', "certificate and key belong together"),
        ('ca_file = "ca"', "write wss:// in url"),
        ('certificate = "c"\nkey = "k"', "write wss:// in url"),
    ],
)
def test_tls_settings_that_would_have_no_effect_are_refused(tmp_path: Path, lines: str, problem: str) -> None:
    """Who sets a CA believes that the link is encrypted."""
    with pytest.raises(ConfigError, match=problem):
        load(tmp_path, SMALLEST.replace("[[models]]", f"{lines}\n[[models]]"))


@pytest.mark.parametrize("name", ["", "-m", "a b", "a/b", "é", "x" * 129, "moe2", "auto"])
def test_names_that_clients_could_not_ask_for_are_refused(tmp_path: Path, name: str) -> None:
    """A slash would look like an expert's key, and two names are taken."""
    with pytest.raises(ConfigError, match=r"models\.0\.name: "):
        load(tmp_path, SMALLEST.replace('name = "m"', f'name = "{name}"'))


@pytest.mark.parametrize("name", ["m", "SmolLM2-135M.Q4_1:chat", "x" * 128])
def test_usual_names_are_accepted(tmp_path: Path, name: str) -> None:
    """Letters, digits and . _ : - in any mixture."""
    assert load(tmp_path, SMALLEST.replace('name = "m"', f'name = "{name}"')).models[0].name == name


def test_a_name_stands_once(tmp_path: Path) -> None:
    """Two models of one name could not be told apart."""
    with pytest.raises(ConfigError, match="each name once; m stands more than once"):
        load(tmp_path, SMALLEST + '[[models]]\nname = "m"\npath = "other.gguf"\n')


def test_at_least_one_model_is_needed(tmp_path: Path) -> None:
    """An agent without a model has nothing to do."""
    with pytest.raises(ConfigError, match="models: "):
        load(tmp_path, "models = []\n" + SMALLEST.partition("[[models]]")[0])


def _with_sensors(tmp_path: Path, sensors: str) -> AgentSettings:
    file = tmp_path / "agent.toml"
    file.write_text(
        f"""
[coordinator]
url = "ws://127.0.0.1:1"
[[models]]
name = "a"
path = "a.gguf"
{sensors}
""",
        encoding="utf-8",
    )
    return load_settings(AgentSettings, file, environment={}, prefix="MOE2_AGENT")


_PLUG = '[[sensors.wall]]\nurl = "{}"\nkind = "shelly"\n'


def test_plugs_are_a_list_of_tables(tmp_path: Path) -> None:
    """A server with two supplies has two, and budgets may be by them."""
    text = '[sensors]\nbudget_scope = "wall"\n' + _PLUG.format("http://10.0.0.1") + _PLUG.format("http://10.0.0.2/")
    assert [plug.url for plug in _with_sensors(tmp_path, text).sensors.wall] == ["http://10.0.0.1", "http://10.0.0.2"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[sensors]\nbudget_scope = "wall"\n', "needs a plug"),
        (_PLUG.format("http://10.0.0.1") * 2, "each plug once"),
        (_PLUG.format("10.0.0.1"), "expected http://"),
        (_PLUG.format("ftp://10.0.0.1"), "expected http://"),
        (_PLUG.format("http://"), "expected http://"),
        (_PLUG.format("http://10.0.0.1:99999"), "expected http://"),
        (_PLUG.format("http://admin:s3cret@10.0.0.1"), "password_file"),
        (_PLUG.format("http://10.0.0.1/?id=1"), "expected http://"),
        (_PLUG.format("http://plug..lan"), "expected http://"),
        (_PLUG.format("http://" + "a" * 64), "expected http://"),
        (_PLUG.format("http://plug one"), "expected http://"),
        (_PLUG.format("http://[fe80::1%25eth0]"), "expected http://"),
        (_PLUG.format("http://10.0.0.1").replace("shelly", "fritz"), "shelly"),
        ('[sensors]\nmonitors = ["../etc"]\n', "monitors"),
        ('[sensors]\ndevices = [""]\n', "devices"),
    ],
)
def test_settings_of_sensors_that_cannot_be_are_named(tmp_path: Path, text: str, fault: str) -> None:
    """Each with what is expected."""
    with pytest.raises(ConfigError, match=fault):
        _with_sensors(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('draft = "m"', "cannot guess for itself"),
        ('draft = "none"', "not served here"),
        ('draft = "none"\nspeculation = false', "nothing is guessed"),
    ],
)
def test_a_draft_model_that_cannot_be_is_named(tmp_path: Path, line: str, fault: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ConfigError, match=fault):
        load(tmp_path, SMALLEST + line)


def test_a_draft_model_is_one_that_is_served_too(tmp_path: Path) -> None:
    """Its file and layers go to the engine; where the coordinator names models, it may come later."""
    both = load(tmp_path, SMALLEST + 'draft = "d"\n[[models]]\nname = "d"\npath = "d.gguf"\ngpu_layers = 3\n')
    served = {model.name: model for model in both.models}
    assert spec_of(served["m"], served=served).draft == DraftSpec(name="d", path="d.gguf", gpu_layers=3)
    assert spec_of(served["m"]).draft == DraftSpec(name="d")
    assert spec_of(served["d"], served=served).draft is None
    later = load(tmp_path, SMALLEST + 'draft = "d"\n[models_from]\ncoordinator = true\n')
    assert later.models[0].draft == "d"


def test_a_request_has_a_slots_part_of_a_cache_that_is_not_shared(tmp_path: Path) -> None:
    """Reported before the model is loaded, too, in llama.cpp's steps."""
    (model,) = load(tmp_path, SMALLEST + "context_tokens = 4000\nslots = 3\nkv_unified = false\n").models
    assert AgentCore((model,)).experts["m"].context_tokens == model.request_tokens == 1536
    assert not spec_of(model).kv_unified
    with pytest.raises(ConfigError, match="255 slots at most"):
        load(tmp_path, SMALLEST + "slots = 256\nkv_unified = false\n")
