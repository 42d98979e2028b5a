"""The coordinator's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.common.config import load_settings
from moe2.common.errors import ConfigError
from moe2.coordinator.settings import ENVIRONMENT_PREFIX, CoordinatorSettings

SMALLEST = '[agents]\ntoken_file = "token"\n'


def load(tmp_path: Path, content: str, **environment: str) -> CoordinatorSettings:
    path = tmp_path / "coordinator.toml"
    path.write_text(content)
    return load_settings(CoordinatorSettings, path, environment=environment, prefix=ENVIRONMENT_PREFIX)


def test_nothing_must_be_set(tmp_path: Path) -> None:
    """Without any setting both listeners are on loopback."""
    settings = load(tmp_path, "")
    assert (settings.api.host, settings.agents.host) == ("127.0.0.1", "127.0.0.1")


TLS = '[agents.tls]\ncertificate = "c"\nkey = "k"\n'


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "edge-hub"])
def test_agents_do_not_come_over_a_network_in_the_clear(tmp_path: Path, host: str) -> None:
    """A public agents' listener without TLS is refused, with the two ways out of it."""
    with pytest.raises(ConfigError, match=r"\[agents\.tls\], or allow_plaintext = true"):
        load(tmp_path, f'[agents]\nhost = "{host}"\n')
    assert load(tmp_path, f'[agents]\nhost = "{host}"\n{TLS}').agents.tls is not None
    assert load(tmp_path, f'[agents]\nhost = "{host}"\nallow_plaintext = true\n').agents.tls is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_certificate(tmp_path: Path, host: str) -> None:
    """An agents' listener on loopback needs no certificate."""
    assert load(tmp_path, f'[agents]\nhost = "{host}"\n').agents.host == host


def test_a_certificate_has_its_key(tmp_path: Path) -> None:
    """A certificate without its key, or a key without its certificate, is refused."""
    with pytest.raises(ConfigError, match=r"agents\.tls\.key: required"):
        load(tmp_path, '[agents.tls]\ncertificate = "c"\n')


def test_the_environment_overrides(tmp_path: Path) -> None:
    """Environment variables override the file, numbers included."""
    assert load(tmp_path, SMALLEST, MOE2_COORDINATOR__API__PORT="9000").api.port == 9000


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MOE2_COORDINATOR__API__PORT", "65536"),
        ("MOE2_COORDINATOR__API__PORT", "-1"),
        ("MOE2_COORDINATOR__API__PORT", "http"),
        ("MOE2_COORDINATOR__API__MAX_BODY_BYTES", "10"),
        ("MOE2_COORDINATOR__API__MAX_ACTIVE_REQUESTS", "0"),
        ("MOE2_COORDINATOR__API__REQUEST_TIMEOUT_S", "0"),
        ("MOE2_COORDINATOR__AGENTS__HEARTBEAT_S", "nan"),
        ("MOE2_COORDINATOR__AGENTS__MAX_FRAME_BYTES", "1000"),
        ("MOE2_COORDINATOR__COORDINATOR__DRAIN_S", "inf"),
        ("MOE2_COORDINATOR__LOG__LEVEL", "all"),
        ("MOE2_COORDINATOR__API__PROT", "1"),
    ],
)
def test_a_wrong_value_names_its_variable(tmp_path: Path, variable: str, value: str) -> None:
    """A wrong value in the environment is one fault, which names the variable."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SMALLEST, **{variable: value})
    [fault] = raised.value.faults
    assert fault.startswith(f"{variable}: ")


def test_all_faults_of_all_sections_are_told_at_once(tmp_path: Path) -> None:
    """All faults of all sections are told at once, each with its file and key."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SMALLEST + '[api]\nport = "x"\n[log]\nlevel = 1\n[typo]\n')
    assert [fault.split(": ")[1] for fault in raised.value.faults] == ["api.port", "log.level", "typo"]
    assert all("coordinator.toml: " in fault for fault in raised.value.faults)


def test_reports_must_come_before_agents_turn_stale(tmp_path: Path) -> None:
    """Reports that come later than agents turn stale are refused."""
    with pytest.raises(ConfigError, match=r"stale_s \(5.0\) must be greater than report_s \(5.0\)"):
        load(tmp_path, SMALLEST + "stale_s = 5.0\nreport_s = 5.0\n")


def test_what_an_app_may_send_fits_a_frame_to_an_agent(tmp_path: Path) -> None:
    """The largest body that the API accepts must fit a frame to an agent."""
    with pytest.raises(ConfigError, match="max_frame_bytes"):
        load(tmp_path, SMALLEST + "max_frame_bytes = 65536\n")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fleet.example", ""])
def test_no_stranger_gets_in_by_a_slip(tmp_path: Path, host: str) -> None:
    """A public API listener without keys is refused, and the message says both ways out."""
    with pytest.raises(ConfigError, match="keys create") as error:
        load(tmp_path, SMALLEST + f'[api]\nhost = "{host}"\n')
    assert "allow_public_without_keys" in str(error.value)


@pytest.mark.parametrize(
    ("section", "host", "way_out"),
    [("API", "0.0.0.0", "allow_public_without_keys"), ("AGENTS", "::", "allow_plaintext")],
)
def test_the_environment_opens_nothing_by_a_slip_either(tmp_path: Path, section: str, host: str, way_out: str) -> None:
    """A public address that the environment sets is refused in the same way, for both listeners."""
    with pytest.raises(ConfigError, match=way_out):
        load(tmp_path, SMALLEST, **{f"MOE2_COORDINATOR__{section}__HOST": host})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_keys(tmp_path: Path, host: str) -> None:
    """An API listener on loopback needs no keys."""
    assert load(tmp_path, SMALLEST + f'[api]\nhost = "{host}"\n').api.keys == "off"


@pytest.mark.parametrize("way", ['keys = "required"', "allow_public_without_keys = true"])
def test_a_public_listener_is_a_choice(tmp_path: Path, way: str) -> None:
    """A public API listener is accepted with keys, or with an express setting."""
    assert load(tmp_path, SMALLEST + f'[api]\nhost = "0.0.0.0"\n{way}\n').api.host == "0.0.0.0"


@pytest.mark.parametrize("name", ["https://hub.example", "hub.example:8080", "hub.example/", "[::1]:1", "a b", ""])
def test_a_host_is_a_name_and_nothing_else(tmp_path: Path, name: str) -> None:
    """A configured host that is not a plain name is refused, as it could never match."""
    with pytest.raises(ConfigError, match="without scheme, port or path"):
        load(tmp_path, SMALLEST + f'[api]\nhosts = ["{name}"]\n')


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "null", "*", "https://*.example"])
def test_an_origin_is_a_site_and_nothing_else(tmp_path: Path, origin: str) -> None:
    """A configured origin that is not one site is refused, wildcards included."""
    with pytest.raises(ConfigError, match="scheme and name without a path"):
        load(tmp_path, SMALLEST + f'[api]\norigins = ["{origin}"]\n')


@pytest.mark.parametrize("joules", ["0", "-1.0", "nan", "inf", '"much"'])
@pytest.mark.parametrize("section", ["selection", "selection.categories.coding"])
def test_an_average_is_a_positive_number_of_joules(tmp_path: Path, section: str, joules: str) -> None:
    """Nothing else can be aimed at."""
    with pytest.raises(ConfigError, match="average_energy_j"):
        load(tmp_path, f"[{section}]\naverage_energy_j = {joules}\n")


def test_an_average_at_the_limit_of_each_request_is_a_contradiction(tmp_path: Path) -> None:
    """The error says which of the two to change; below the limit both hold, and limits leave the average out."""
    section = "[selection.categories.coding]\nenergy_budget_j = 100.0\naverage_energy_j = "
    with pytest.raises(ConfigError, match=r"average_energy_j \(100\) must be below energy_budget_j \(100\).*lower it"):
        load(tmp_path, section + "100.0")
    selection = load(tmp_path, section + "60.0").selection
    assert selection.averages.by_category_j == {"coding": 60.0}
    assert selection.limits_by_category["coding"].model_dump(exclude_none=True) == {"energy_budget_j": 100.0}
