"""The coordinator's settings: one frozen type, read from one TOML file; `examples/coordinator.toml` shows all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moe2.common.config import LIVE, Seconds, Settings, load_settings
from moe2.common.hosts import is_loopback
from moe2.coordinator.choosing.request import Budgets, CategoryBudgets
from moe2.coordinator.database.settings import DatabaseSection
from moe2.coordinator.fleet.settings import AgentsSection
from moe2.coordinator.http.settings import ApiSection
from moe2.coordinator.paths import DEFAULT_SOCKET_PATH
from moe2.coordinator.provisioning.price_book import Averages
from moe2.coordinator.provisioning.settings import ProvisioningSection
from moe2.coordinator.serving.settings import DispatchSection
from moe2.coordinator.supply.settings import PushSection

ENVIRONMENT_PREFIX = "MOE2_COORDINATOR"


class CoordinatorSection(Settings):
    """[coordinator]: the daemon's files and its shutdown."""

    state_dir: Path = Path("/var/lib/moe2-coordinator")
    """Folder for what has to outlive a restart: who may connect, feedback, accounts."""
    socket: Path = DEFAULT_SOCKET_PATH
    """Socket that `moe2-coordinator status` asks; the group of the file decides who may."""
    drain_s: Annotated[Seconds, LIVE] = 30.0
    """Time that running requests have to finish after SIGTERM."""


class SelectionSection(Settings):
    """[selection]: how experts are chosen."""

    gate: Annotated[Path | None, LIVE] = None
    """Checkpoint of a trained gate; `gate.safetensors` in `coordinator.state_dir` if not set, where
    `moe2-coordinator tune` puts it. Without one, scores are priors by model size."""
    keep_prompts: Annotated[bool, LIVE] = False
    """Keep feedback with its prompt, so that a gate can learn from it; otherwise only the prompt's hash is kept."""
    fleet_watts_cap_w: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, LIVE] = None
    """Power that all hosts together may draw: no request is begun that is predicted to exceed it."""
    average_energy_j: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, LIVE] = None
    """Joules that an answer may take on average over the whole fleet; a price per joule is learned that keeps it."""
    categories: Annotated[dict[str, CategoryBudgets], LIVE] = Field(default_factory=dict)
    """Default budgets by category; `default` holds where no other applies."""

    @property
    def limits_by_category(self) -> dict[str, Budgets]:
        """The limits of each request by category."""
        return {name: category.limits for name, category in self.categories.items()}

    @property
    def patience_s(self) -> dict[str, float]:
        """The seconds to a first token that categories allow, of those that say."""
        limits = self.limits_by_category
        return {name: one.ttft_budget_s for name, one in limits.items() if one.ttft_budget_s is not None}

    @property
    def averages(self) -> Averages:
        """The averages that are set."""
        averages = {name: category.average_energy_j for name, category in self.categories.items()}
        return Averages(
            self.average_energy_j, {name: joules for name, joules in averages.items() if joules is not None}
        )


class LedgerSection(Settings):
    """[ledger]: what requests have cost, kept in SQLite."""

    path: Path | None = None
    """The SQLite file; `ledger.sqlite` in `coordinator.state_dir` if not set.

    It must be on a local disk, as SQLite's WAL does not work on NFS.
    """
    retention_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    """Requests are forgotten after this many days."""


class TracesSection(Settings):
    """[traces]: where requests are traced to."""

    endpoint: str | None = None
    """OTLP/HTTP address that each request's spans are sent to, such as http://127.0.0.1:4318/v1/traces; needs
    moe2[traces]."""


class LogSection(Settings):
    """[log]: what is logged."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    """The least severe events that are logged."""


class CoordinatorSettings(Settings):
    """All settings of the coordinator, one field per section."""

    coordinator: CoordinatorSection = CoordinatorSection()
    api: ApiSection = ApiSection()
    agents: AgentsSection = AgentsSection()
    selection: SelectionSection = SelectionSection()
    dispatch: DispatchSection = DispatchSection()
    provisioning: ProvisioningSection = ProvisioningSection()
    push: PushSection = PushSection()
    ledger: LedgerSection = LedgerSection()
    database: DatabaseSection = DatabaseSection()
    traces: TracesSection = TracesSection()
    log: LogSection = LogSection()

    @property
    def ledger_path(self) -> Path:
        """Path of the ledger's database."""
        return self.ledger.path or self.coordinator.state_dir / "ledger.sqlite"

    @property
    def gate_path(self) -> Path:
        """Path of the gate's checkpoint; where `selection.gate` is not set there may be no such file."""
        return self.selection.gate or self.coordinator.state_dir / "gate.safetensors"

    @model_validator(mode="after")
    def _files_are_private_or_encrypted(self) -> CoordinatorSettings:
        agents, push = self.agents, self.push
        is_open = push.port is not None and not is_loopback(push.host)
        if is_open and agents.tls is None and not agents.allow_plaintext:
            raise ValueError(
                f"push.host {push.host!r} can be reached over the network, where agents' credentials must not pass in "
                "the clear: set certificate and key in [agents.tls], or allow_plaintext = true on a trusted network"
            )
        return self

    @model_validator(mode="after")
    def _requests_fit_a_frame(self) -> CoordinatorSettings:
        # The densest JSON, a logit_bias, grows to 1.7 times its size as a job for an agent.
        if 2 * self.api.max_body_bytes > self.agents.max_frame_bytes:
            raise ValueError(
                f"agents.max_frame_bytes ({self.agents.max_frame_bytes}) must be at least twice "
                f"api.max_body_bytes ({self.api.max_body_bytes}), so that every request fits a frame to an agent"
            )
        return self


def settings_of(path: Path, environment: Mapping[str, str] = os.environ) -> CoordinatorSettings:
    """The settings in a file, with those that the environment has instead. Raises `ConfigError` with all faults."""
    return load_settings(CoordinatorSettings, path, environment=environment, prefix=ENVIRONMENT_PREFIX)
