"""The agent's settings: one frozen type, read from one TOML file (`examples/agent.toml` shows every key)."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.energy.profiles import PROFILES, find_profile
from moe2.agent.energy.sensor import FAMILIES, Family
from moe2.agent.energy.wall import Plug, PlugKind
from moe2.agent.engine.decoding.batch import job_cells
from moe2.agent.engine.protocol import MAX_SEQUENCES
from moe2.agent.paths import DEFAULT_SOCKET_PATH
from moe2.common.config import LIVE, Port, Seconds, Settings
from moe2.common.generation import MAX_TOP_K
from moe2.common.modelsource import checked_beginning

ENVIRONMENT_PREFIX = "MOE2_AGENT"

I2cAddress = Annotated[str, Field(pattern=r"^\d{1,3}-[0-9a-f]{4}$")]
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
RESERVED_MODEL_NAMES = ("moe2", "auto")


class AgentSection(Settings):
    """[agent]"""

    name: str | None = None
    """Shown to people; the host's name if not set. The agent's identity is a generated id in `state_dir`."""
    state_dir: Path = Path("/var/lib/moe2-agent")
    """Keeps identity, credential, what was learned of each model, and checksums. Not to be copied to another host."""
    socket: Path = DEFAULT_SOCKET_PATH
    """Where `moe2-agent status` asks; who may is up to the group of the file."""
    drain_s: Annotated[Seconds, LIVE] = 30.0
    """On SIGTERM, running requests get this long to finish."""
    allow_unload: bool = False
    """The coordinator may end a model's process while nobody needs it, which gives its memory and its idle watts back;
    the next request loads it again."""
    allow_suspend: bool = False
    """The coordinator may suspend this host while nobody needs it. It has to be able to wake it again, with magic
    packets or by other means. install.sh installs the polkit rule for it."""
    asleep_w: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    """What a meter at the wall shows while this host is suspended, in W; the host cannot measure it by itself."""


class CoordinatorSection(Settings):
    """[coordinator]"""

    url: str
    """ws:// or wss:// and the coordinator's agents listener."""
    urls: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] | None = None
    """The agents listeners of all coordinators of the fleet, in place of `url`: the agent connects to each of them."""
    # What is live here holds from the next connection on.
    token_file: Annotated[Path | None, LIVE] = None
    """File with an enrolment token. Needed until the agent is enrolled; it may be removed then."""
    ca_file: Annotated[Path | None, LIVE] = None
    """PEM file with the CA that has signed the coordinator's certificate; the system's CAs if not set."""
    certificate: Annotated[Path | None, LIVE] = None
    """PEM file with a client certificate, where the coordinator asks for one."""
    key: Annotated[Path | None, LIVE] = None
    """PEM file with the client certificate's private key, not encrypted."""
    connect_timeout_s: Annotated[Seconds, LIVE] = 10.0
    """A connection that is not made, or not welcomed, by then is given up."""
    reconnect_first_s: Annotated[Seconds, LIVE] = 0.5
    """How long to wait before the second attempt; doubles with each further one, with jitter."""
    reconnect_most_s: Annotated[Seconds, LIVE] = 30.0
    """The longest wait between two attempts; 4 s where there are several `urls`."""
    refused_retry_s: Annotated[Seconds, LIVE] = 60.0
    """How long to wait after the coordinator has refused the token or credential; that takes a person to mend."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of all coordinators."""
        return self.urls or (self.url,)

    @model_validator(mode="before")
    @classmethod
    def _has_an_address(cls, fields: Any) -> Any:
        """Takes the first of several addresses for `url`, which then needs not be set."""
        if not isinstance(fields, dict) or not (urls := fields.get("urls")) or not isinstance(urls, list | tuple):
            return fields
        if fields.get("url") not in (None, urls[0]):
            raise ValueError("set url, or urls where several coordinators serve the fleet, but not both")
        return {**fields, "url": urls[0]}

    @field_validator("url")
    @classmethod
    def _is_websocket_url(cls, url: str) -> str:
        return _websocket_url(url)

    @field_validator("urls")
    @classmethod
    def _are_websocket_urls(cls, urls: tuple[str, ...] | None) -> tuple[str, ...] | None:
        found = None if urls is None else tuple(map(_websocket_url, urls))
        if found and len(set(found)) < len(found):
            raise ValueError("an address stands there twice: the agent would be connected to it twice")
        return found

    @model_validator(mode="after")
    def _tls_settings_belong_together(self) -> CoordinatorSection:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both, or neither")
        if self.certificate is None and self.ca_file is None:
            return self
        if not any(urlsplit(url).scheme == "wss" for url in self.addresses):
            raise ValueError("ca_file, certificate and key are for TLS: write wss:// in url, or remove them")
        return self


def _websocket_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"expected ws://HOST:PORT or wss://HOST:PORT, got {url!r}")
    return url.rstrip("/")


class LoraSection(Settings):
    """One entry of `lora`"""

    path: Path
    """A GGUF file with a LoRA adapter."""
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """How strongly it is applied; 1 as it was trained."""


class SamplingSection(Settings):
    """[models.sampling]: what is drawn with where a request says nothing; as the model's file recommends if not set"""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 takes the most likely token."""
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    """Draw among so many of the most likely tokens; 0 for all."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw among the most likely tokens that together have this probability."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw among tokens at least this likely, relative to the best."""
    repeat_penalty: Annotated[float, Field(ge=0.5, le=2)] | None = None
    """Makes tokens that the answer already has less likely; 1 does not."""


class ModelSection(Settings):
    """[[models]]"""

    name: str
    """What clients ask for; letters, digits and . _ : - only."""
    path: Path
    """A GGUF file."""
    context_tokens: Annotated[int, Field(ge=64, le=16_777_216)] = 4096
    """KV cache in tokens, of all slots together."""
    slots: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] = 4
    """Requests decoded at once."""
    kv_unified: bool = True
    """Slots share the KV cache, and one request may fill all of it. With false each slot has an equal part to itself,
    as `llama-server -np` gives it, which bounds a request; several requests at once are decoded faster by a small model
    on a processor, but tokens are guessed only for a request that is alone."""
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Requests that may wait for a slot; one more is refused."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; llama.cpp decides if not set."""
    gpu_layers: Annotated[int, Field(ge=-1)] = 0
    """Layers offloaded to the GPU; -1 for all."""
    require_gpu: bool = False
    """A model of which the GPU does not hold `gpu_layers` is not served, in place of one that answers slowly."""
    batch_tokens: Annotated[int, Field(ge=16, le=65_536)] = 512
    """Tokens that one step of llama.cpp takes at most; more make prefill faster and need more memory."""
    flash_attention: bool | None = None
    """Less memory for long contexts, where the hardware has kernels for it; llama.cpp decides if not set."""
    mlock: bool = False
    """Keep the model's memory from being swapped out."""
    cache_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    """How keys and values are stored; the smaller ones need flash attention, which they switch on."""
    prefix_cache_mb: Annotated[int, Field(ge=0, le=1_048_576)] = 256
    """Host memory, in MiB, for conversations that were answered, so that a continuation need not be read again; as far
    as it is free. 0 keeps them in the KV cache alone, where they slow decoding down."""
    speculation: bool = True
    """Guess tokens from the text and check several in one step, where that was measured to save time. Answers stay what
    they are without."""
    draft: str | None = None
    """Name of a smaller model with the same vocabulary that this host serves, too: it guesses tokens where the text
    suggests none, as far as that was measured to save time. It is loaded a second time, with as much context as this
    model has; that memory counts."""
    load: Literal["start", "on_demand"] = "start"
    """When to load: with the agent, or for the first request."""
    unload_after_s: Seconds | None = None
    """Unload after so long without a request; the next one loads it again."""
    sampling: SamplingSection = SamplingSection()
    """What is drawn with where a request says nothing. A client's own values win."""
    vector_sizes: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = ()
    """Of an embedding model: the lengths that its vectors may be cut to, for clients that set `dimensions`. A vector's
    beginning is worth something only with a model that was trained for it (Matryoshka), as its card says."""
    lora: tuple[LoraSection, ...] = ()
    """Adapters applied to the model, all of them to every request."""

    @model_validator(mode="after")
    def _quantized_values_need_flash_attention(self) -> ModelSection:
        if self.flash_attention is False and self.cache_type != "f16":
            raise ValueError(f'cache_type = "{self.cache_type}" needs flash attention: do not switch it off')
        return self

    @model_validator(mode="after")
    def _a_divided_cache_has_a_lane_to_spare(self) -> ModelSection:
        if not self.kv_unified and self.slots == MAX_SEQUENCES:
            raise ValueError(f"kv_unified = false: llama.cpp has room for {MAX_SEQUENCES - 1} slots at most")
        return self

    @model_validator(mode="after")
    def _required_gpu_gets_layers(self) -> ModelSection:
        if self.require_gpu and self.gpu_layers == 0:
            raise ValueError("require_gpu: gpu_layers is 0, so nothing would be on the GPU; -1 is all layers")
        return self

    @model_validator(mode="after")
    def _drafts_are_of_another_model(self) -> ModelSection:
        if self.draft == self.name:
            raise ValueError("draft: a model cannot guess for itself; name a smaller one")
        if self.draft is not None and not self.speculation:
            raise ValueError("draft: with speculation = false nothing is guessed; remove one of the two")
        return self

    @property
    def request_tokens(self) -> int:
        """The most that the KV cache holds of one request."""
        return job_cells(self.context_tokens, self.slots, kv_unified=self.kv_unified)

    @property
    def loads_on_demand(self) -> bool:
        """True where the model may be cold and wait for a request."""
        return self.load == "on_demand" or self.unload_after_s is not None

    @field_validator("name")
    @classmethod
    def _is_usable_name(cls, name: str) -> str:
        if not _MODEL_NAME.fullmatch(name):
            raise ValueError(f"a model's name is 1 to 128 letters, digits or . _ : - characters, got {name!r}")
        if name in RESERVED_MODEL_NAMES:
            raise ValueError(f'{name!r} means "any model" to clients; choose another name')
        return name


def _an_address(text: str) -> str:
    """Raises ValueError for what is no IP address."""
    return str(ip_address(text))


class ModelsFromSection(Settings):
    """[models_from]: where this host takes models from, besides what stands in [[models]]"""

    coordinator: bool = False
    """The coordinator may send files to this host and say what it serves of them."""
    override: bool = False
    """What the coordinator says of a model wins over an entry of `[[models]]` with its name; else the entry wins."""
    pull_from: Annotated[tuple[Annotated[str, AfterValidator(checked_beginning)], ...], Field(max_length=64)] = ()
    """Beginnings of the sources that the coordinator may have this host pull from, such as `hf:`, `hf:ORG/` or
    `https://models.example/llm/`; none if empty. An address that leads on to another one goes there only where that
    one begins so, too."""
    delete: bool = False
    """The coordinator may delete models of the folder that are neither served nor named in `[[models]]`."""
    max_bytes: Annotated[int, Field(ge=0)] | None = None
    """The most bytes that the folder may hold when the coordinator sends files or has them pulled; no limit if not
    set."""
    folder: Path | None = None
    """Where pulled and pushed models are kept; `models` in `agent.state_dir` if not set."""
    hub_token_file: Path | None = None
    """File with a token for the hub, for models that are not given to everybody."""
    share: bool = False
    """Neighbours may take models of the folder from this host, where the coordinator sends them here with a ticket."""
    share_host: Annotated[str, AfterValidator(_an_address)] | None = None
    """Address to listen on for neighbours; all of this host's if not set. TLS where `coordinator.certificate` is."""
    share_port: Port = 8083
    """Port to listen on for neighbours; 0 takes any that is free."""
    share_max_bytes_per_s: Annotated[int, Field(ge=1024)] | None = None
    """Bytes per second that all neighbours together may take; no limit if not set."""


class EngineSection(Settings):
    """[engine]"""

    restart_first_s: Seconds = 0.5
    """How long to wait before a crashed llama.cpp process is started again; doubles with each crash, with jitter."""
    restart_most_s: Seconds = 60.0
    """The longest wait between two starts."""
    load_timeout_s: Seconds = 900.0
    """A model that has made no progress for this long is given up and its process restarted."""
    stuck_s: Seconds = 60.0
    """An engine that does not stop a job within this time of being told to is killed and restarted. Longer than one
    batch of a prompt takes on the slowest host."""


def _is_plug_address(url: str, parts: SplitResult) -> bool:
    """Whether a plug can be asked there. Raises ValueError where the port or the host's name cannot be one."""
    host = (parts.hostname or "").encode("idna")
    port_is_good = parts.port is None or parts.port > 0
    is_plain = url.isprintable() and b" " not in host and b"%" not in host and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(host) and port_is_good and is_plain


class WallSection(Settings):
    """One entry of [[sensors.wall]]: a metered plug in front of this host"""

    url: str
    """http:// and the plug's address."""
    kind: PlugKind
    """Which firmware it has: "shelly" (Gen2 and newer) or "tasmota"."""
    channel: Annotated[int, Field(ge=0, le=63)] = 0
    """Of a strip of several: which one this host is on, counted from 0."""
    lag_s: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    """How many seconds late its figures are."""
    password_file: Path | None = None
    """File with the plug's password, where it has one."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            good = _is_plug_address(url, parts)
        except ValueError:
            good = False
        else:
            # The address is shown in status and receipts.
            if "@" in parts.netloc:
                raise ValueError("a password in the url would be shown to everybody: name a file as password_file")
        if not good:
            raise ValueError(f"expected http://ADDRESS of the plug, got {url!r}")
        return url.rstrip("/")


class SensorsSection(Settings):
    """[sensors]"""

    families: tuple[Family, ...] = FAMILIES
    """Which kinds of power sensors to look for."""
    interval_s: Annotated[float, Field(ge=0.1, le=2.0)] = 0.1
    """Seconds between two readings of a sensor."""
    devices: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = ()
    """Which devices to measure, such as "gpu1", a GPU's UUID, "module" or "cpu"; all that no other agent of this host
    measures if not set. Name the boards that the models are on where others are somebody else's."""
    monitors: tuple[I2cAddress, ...] = ()
    """Of a Jetson with two power monitors that have a rail of the same name: the I2C addresses of those that measure
    the module, such as 1-0040. All are read if not set."""
    budget_scope: Literal["sensors", "wall"] = "sensors"
    """What the joules of requests are, and so what budgets bound: those of the host's own sensors, or its plugs'. The
    one is never added to the other. With "wall" an answer's last message waits for the plugs, for about lag_s."""
    wall: tuple[WallSection, ...] = ()
    """Metered plugs, which see the whole host."""
    profile: str | None = None
    """Name of a simulated host, to try a fleet without its hardware; everything it reports is marked simulated."""
    paced: bool = False
    """A simulated host answers no faster than its board was measured to answer, with the 8B model of its profile."""

    @model_validator(mode="after")
    def _plugs_are_told_apart(self) -> SensorsSection:
        places = [(plug.url, plug.channel) for plug in self.wall]
        if len(places) != len(set(places)):
            raise ValueError("wall: each plug once; the same url and channel stand twice, and would be added up")
        if self.budget_scope == "wall" and not self.wall:
            raise ValueError('budget_scope: "wall" needs a plug; add [[sensors.wall]]')
        return self

    @model_validator(mode="after")
    def _pace_is_a_profiles(self) -> SensorsSection:
        if self.paced and self.profile is None:
            raise ValueError("paced: only a simulated host has a pace; set profile as well")
        return self

    @field_validator("profile")
    @classmethod
    def _is_known(cls, profile: str | None) -> str | None:
        if profile is not None and profile not in PROFILES:
            raise ValueError(f"there is no simulated host {profile!r}; choose one of {', '.join(sorted(PROFILES))}")
        return profile


class MeasuringSection(Settings):
    """[measuring]: an idle expert whose joules or seconds are not known runs two short jobs of its own."""

    enabled: bool = True
    """Without it an expert that gets no requests stays unmeasured, and energy budgets rule it out."""
    max_energy_j: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1000.0
    """The most joules that measuring one expert may take."""
    stale_s: Annotated[float, Field(ge=60, le=1e8, allow_inf_nan=False)] = 604_800.0
    """Figures that are older are measured again; a week if not set."""


class MetricsSection(Settings):
    """[metrics]: a listener for Prometheus. The local socket serves them in any case."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """No listener is opened if not set."""


class LogSection(Settings):
    """[log]"""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    """The least grave events that are logged."""


class AgentSettings(Settings):
    agent: AgentSection = AgentSection()
    coordinator: CoordinatorSection
    engine: EngineSection = EngineSection()
    sensors: SensorsSection = SensorsSection()
    measuring: MeasuringSection = MeasuringSection()
    models_from: ModelsFromSection = ModelsFromSection()
    models: tuple[ModelSection, ...]
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    @model_validator(mode="before")
    @classmethod
    def _may_be_told(cls, content: object) -> object:
        """Where the coordinator says what is served, the file need not."""
        if isinstance(content, dict) and isinstance(told := content.get("models_from"), dict):
            return {"models": (), **content} if told.get("coordinator") in (True, "true") else content
        return content

    @model_validator(mode="after")
    def _serves_something(self) -> AgentSettings:
        if not self.models and not self.models_from.coordinator:
            raise ValueError("models: name at least one, or let the coordinator do so (models_from.coordinator)")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> AgentSettings:
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: each name once; {', '.join(twice)} stands more than once")
        return self

    @model_validator(mode="after")
    def _drafts_are_served(self) -> AgentSettings:
        names = {model.name for model in self.models}
        for model in self.models:
            if model.draft is not None and model.draft not in names and not self.models_from.coordinator:
                raise ValueError(f"models: {model.name} has {model.draft!r} as its draft, which is not served here")
        return self


def sensors_wanted(section: SensorsSection) -> SensorSettings:
    """Returns where the configuration says to look for power sensors. Raises ConfigError for an unknown profile."""
    simulated = find_profile(section.profile, paced=section.paced) if section.profile is not None else None
    return SensorSettings(
        simulated=simulated,
        families=section.families,
        monitors=section.monitors,
        devices=section.devices,
        plugs=tuple(Plug(one.kind, one.url, one.channel, one.lag_s, one.password_file) for one in section.wall),
        by_wall=section.budget_scope == "wall",
    )
