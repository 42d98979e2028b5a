"""What the coordinator has said that this host serves, and who wins where the configuration says something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import ValidationError

from moe2.agent.settings import AgentSettings, ModelSection
from moe2.common.errors import Moe2Error
from moe2.common.link.supply import CacheType
from moe2.common.statefile import replace_file

FILE = "served.json"


class ServedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the coordinator has said of one model. path: None where it is not to be served. Others as in `[[models]]`.

    sha256: what the file had when it was said.
    """

    path: str | None = None
    sha256: str | None = None
    context_tokens: int = 4096
    slots: int = 4
    cache_type: CacheType = "f16"
    gpu_layers: int = 0


@dataclass(frozen=True)
class Choice:
    """One model, and who has the say of it. section: what is served; None where nothing is. loses: who else spoke."""

    name: str
    section: ModelSection | None
    by: str
    loses: str | None = None


class ServedFile:
    """The file in an agent's state directory that keeps which models its host serves. Every method blocks."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE

    def read(self) -> dict[str, ServedModel]:
        """What was said, by name. Raises `Moe2Error` for a file that cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, ServedModel])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise Moe2Error(
                f"{self.path} cannot be used: {error}.",
                remedy="Make it readable, or remove it: then only [[models]] is served.",
            ) from error

    def keep(self, name: str, said: ServedModel | None) -> None:
        """Keeps what was said of one model; None forgets it. Raises `Moe2Error`, and `OSError` where it cannot."""
        known = self.read()
        known.pop(name, None)
        if said is not None:
            known[name] = said
        replace_file(self.path, msgspec.json.format(msgspec.json.encode(known), indent=2), mode=0o644)


def said_of(section: ModelSection, sha256: str | None) -> ServedModel:
    """A section as what the coordinator has said."""
    return ServedModel(
        path=str(section.path),
        sha256=sha256,
        context_tokens=section.context_tokens,
        slots=section.slots,
        cache_type=section.cache_type,
        gpu_layers=section.gpu_layers,
    )


def choices(settings: AgentSettings, said: Mapping[str, ServedModel]) -> tuple[Choice, ...]:
    """Who wins for each model: the configuration, unless `models_from.override` lets the coordinator's word win.

    Raises `Moe2Error` for a word that no model can be made of.
    """
    heard = said if settings.models_from.coordinator else {}
    found = []
    for section in settings.models:
        word = heard.get(section.name)
        if word is None:
            found.append(Choice(section.name, section, "configuration"))
        elif settings.models_from.override:
            found.append(Choice(section.name, _section(section.name, word, section), "coordinator", "configuration"))
        else:
            found.append(Choice(section.name, section, "configuration", "coordinator"))
    configured = {section.name for section in settings.models}
    found += [
        Choice(name, _section(name, word, None), "coordinator")
        for name, word in heard.items()
        if name not in configured and word.path is not None
    ]
    return tuple(found)


def sections(settings: AgentSettings, said: Mapping[str, ServedModel]) -> tuple[ModelSection, ...]:
    """What this host serves."""
    return tuple(choice.section for choice in choices(settings, said) if choice.section is not None)


def uses(
    settings: AgentSettings, said: Mapping[str, ServedModel], serving: Iterable[ModelSection] = ()
) -> dict[str, tuple[Path, ...]]:
    """The files that models need, by the models' names: those of the configuration, those that the coordinator has
    said, also where it does not win, and those that are served."""
    found: dict[str, set[Path]] = {}
    for section in (*settings.models, *serving):
        found.setdefault(section.name, set()).update((section.path, *(one.path for one in section.lora)))
    for name, word in said.items():
        found.setdefault(name, set()).update(() if word.path is None else (Path(word.path),))
    return {name: tuple(paths) for name, paths in found.items()}


def lines(found: Sequence[Choice]) -> list[str]:
    """Who wins, one line for each model that the coordinator has said something of."""
    told = []
    for choice in found:
        if choice.by == "configuration" and choice.loses is None:
            continue
        what = "not served" if choice.section is None else f"served from {choice.section.path}"
        loser = "" if choice.loses is None else f"; the {choice.loses} says otherwise and loses"
        told.append(f"{choice.name}: {what}, as the {choice.by} says{loser}.")
    return told


def _section(name: str, word: ServedModel, configured: ModelSection | None) -> ModelSection | None:
    """What is configured, with what was said written over it."""
    if word.path is None:
        return None
    fields = {} if configured is None else configured.model_dump()
    over = {key: getattr(word, key) for key in ("path", "context_tokens", "slots", "cache_type", "gpu_layers")}
    return checked_section({**fields, **over, "name": name})


def checked_section(fields: Mapping[str, object]) -> ModelSection:
    """A model's section of these fields. Raises `Moe2Error` with what is wrong."""
    try:
        return ModelSection.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'model'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise Moe2Error(f"This cannot be served: {faults}.", remedy="Choose other values.") from None
