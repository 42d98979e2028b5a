"""Carries out what the coordinator says about this host's models: looks at files and memory, then tells the core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import time

import structlog
from msgspec.structs import replace

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.capacity import capacity_for, host_free_bytes
from moe2.agent.engine.llama.memory import Capacity, Need, Shortage, cache_bytes, least_cells
from moe2.agent.engine.llama.parts import size_bytes
from moe2.agent.jobs.events import Event, FileHashed, ModelOffered, ModelWithdrawn
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.fit import check_architecture, memory_shortage, what_would_fit
from moe2.agent.models.library import Library
from moe2.agent.settings import AgentSettings, ModelSection
from moe2.agent.supply.fetching import Fetcher
from moe2.agent.supply.pulling import Puller, PullRefusedError
from moe2.agent.supply.served import ServedFile, ServedModel, checked_section, said_of, uses
from moe2.agent.supply.sharing import Sharing
from moe2.common.errors import CommandErrorCode, Moe2Error
from moe2.common.gguf import GgufHeader, read_header
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import CommandAnswer, CommandOutcome
from moe2.common.link.supply import (
    DeleteFile,
    FetchModel,
    LendFile,
    ModelFile,
    ModelStore,
    PullModel,
    ServeModel,
    SupplyOrder,
    WithdrawModel,
)

log = structlog.get_logger()

LOOK_EVERY_S = 10.0
"""How often disk and memory are looked at for the report."""


class OrderRefusedError(Moe2Error):
    """An order that this host does not carry out."""

    def __init__(self, code: CommandErrorCode, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class Supply:
    """This host's models, as the coordinator may change them.

    fetcher: builds what fetches files into the library. serving: what is served now, by name. swapping: names that are
    being exchanged. dispatch: tells the core. answer: the coordinator. changed: asks for a report, report_now: at once.
    All of it belongs to the event loop's thread; files are looked at in others.
    """

    def __init__(
        self,
        settings: AgentSettings,
        checksums: ChecksumStore,
        *,
        fetcher: Callable[[Library], Fetcher],
        serving: Callable[[], Mapping[str, ModelSection]],
        swapping: Callable[[], tuple[str, ...]],
        dispatch: Callable[[Event], None],
        answer: Callable[[CommandAnswer], None],
        changed: Callable[[], None],
        report_now: Callable[[], None],
        capacity: Callable[[str], Capacity] = capacity_for,
    ) -> None:
        self._from = settings.models_from
        self._configured = {model.name: model for model in settings.models}
        self._checksums = checksums
        self._serving = serving
        self._swapping = swapping
        self._dispatch = dispatch
        self._answer = answer
        self._changed = changed
        self._report_now = report_now
        self._capacity = capacity
        self.library = Library(settings.agent.state_dir, self._from.folder)
        self.fetcher = fetcher(self.library)
        self._puller = Puller(
            self._from, settings.agent.state_dir, pending_bytes=self.fetcher.pending_bytes, changed=changed
        )
        self.fetcher.others_bytes = self._puller.pending_bytes
        self._settings = settings
        link = settings.coordinator
        pair = (link.certificate, link.key) if link.certificate and link.key else None
        self.sharing = Sharing(self._from, self.library, checksums, pair=pair)
        self._served = ServedFile(settings.agent.state_dir)
        self._expected: dict[str, str | None] = {
            word.path: word.sha256 for word in self._served.read().values() if word.path is not None
        }
        self._orders: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        self._store = ModelStore(takes_orders=self._from.coordinator, max_bytes=self._from.max_bytes)
        self._not_kept: str | None = None
        self._look_again = asyncio.Event()

    # --- What it tells ------------------------------------------------------------------------------------------------

    def report(self) -> ModelStore:
        """The files and free space as they were last looked at."""
        serving = self._serving()
        users: dict[str, list[str]] = {}
        for name, section in serving.items():
            users.setdefault(str(section.path), []).append(name)
        files = tuple(
            replace(file, served_as=tuple(sorted(users.get(str(self.library.folder / file.name), ()))))
            for file in self._store.files
        )
        return replace(
            self._store,
            files=files,
            fetching=self.fetcher.rows(),
            pulling=self._puller.rows(),
            swapping=self._swapping(),
        )

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Returns the warning that served models could not be written down, if so."""
        if self._not_kept is None:
            return ()
        return (
            HealthWarning(
                code="served_not_kept",
                severity=Severity.DEGRADED,
                message=f"What this host serves could not be written down: {self._not_kept}.",
                remedy="Free space in agent.state_dir and say it again; after a restart the former models are served.",
            ),
        )

    async def run(self) -> None:
        """Looks at disk and memory now and then, until cancelled."""
        try:
            while True:
                try:
                    self._store = await in_daemon_thread(self._look)
                    self._changed()
                except Moe2Error as error:
                    log.warning("models_not_looked_at", reason=str(error))
                self._look_again.clear()
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._look_again.wait()
                except TimeoutError:
                    continue
        finally:
            # Nobody is there any more for whom they could be carried out.
            for task in self._orders.values():
                task.cancel()

    def _look(self) -> ModelStore:
        networks = self.sharing.networks() if self._from.coordinator or self._from.share else ()
        return ModelStore(
            networks=networks,
            share=self.sharing.point(networks),
            takes_orders=self._from.coordinator,
            pull_from=self._from.pull_from if self._from.coordinator else (),
            deletes=self._from.coordinator and self._from.delete,
            max_bytes=self._from.max_bytes,
            free_bytes=self.library.free_bytes(),
            memory_free_bytes=host_free_bytes(),
            files=tuple(
                ModelFile(
                    name=file.name,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    origin=file.origin,
                    added_unix_s=file.added_unix_s,
                    licence=file.licence,
                    architecture=file.architecture,
                    last_used_unix_s=file.last_used_unix_s,
                )
                for file in self.library.files()
            ),
        )

    # --- Before a file is used ----------------------------------------------------------------------------------------

    async def before_load(self, name: str, path: Path) -> None:
        """A model is about to be loaded: a file that has changed is noticed. Raises `Moe2Error` where it may not be."""
        expected = self._expected.get(str(path))
        if expected is None and (file := await in_daemon_thread(partial(self._filed, path))) is not None:
            expected = file
        try:
            known = await in_daemon_thread(partial(self._checksums.known, path))
            if expected is None:
                if known is None:
                    # Until the new one is known, nothing that is learned counts for the former file.
                    self._dispatch(FileHashed(name, None))
                return
            now = known or await in_daemon_thread(partial(self._checksums.sha256, path))
        except OSError:
            # The engine says better what is wrong with it.
            return
        if now != expected:
            raise Moe2Error(
                f"{path} has changed on disk: its checksum is {now}, and was {expected}.",
                remedy="Bring the right file again (pull or push), or remove it and name the new one.",
            )
        await in_daemon_thread(partial(self.library.used, path, time()))
        self._look_again.set()

    def _filed(self, path: Path) -> str | None:
        file = self.library.find(path.name) if path.parent == self.library.folder else None
        return None if file is None else file.sha256

    # --- Orders -------------------------------------------------------------------------------------------------------

    def order(self, order: SupplyOrder) -> None:
        """Carries out an order; its answer follows. The same one twice is carried out once."""
        if order.command_id in self._orders:
            return
        match order:
            case ServeModel():
                work = self._serve(order)
            case WithdrawModel():
                work = self._withdraw(order)
            case FetchModel():
                work = self._fetch(order)
            case LendFile():
                work = self._lend(order)
            case PullModel():
                work = self._pull(order)
            case DeleteFile():
                work = self._delete(order)
        task = self._orders[order.command_id] = asyncio.create_task(self._answered(order.command_id, work))
        task.add_done_callback(lambda _: self._orders.pop(order.command_id, None))

    async def close(self) -> None:
        """Gives up what is under way."""
        tasks = tuple(self._orders.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def keep(self, name: str, section: ModelSection | None) -> None:
        """Keep what is served now for the next start."""
        sha256 = None if section is None else self._expected.get(str(section.path))
        said = None if section is None else said_of(section, sha256)
        if section is None and name in self._configured:
            said = ServedModel()
        try:
            self._served.keep(name, said)
            self._not_kept = None
        except (OSError, Moe2Error) as error:
            self._not_kept = str(error)
            log.error("served_not_kept", model=name, reason=str(error))
        self._look_again.set()

    async def _answered(self, command_id: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except OrderRefusedError as error:
            self._refuse(command_id, error.code, str(error))
        except (Moe2Error, OSError) as error:
            self._refuse(command_id, CommandErrorCode.NOT_POSSIBLE, str(error))
        except Exception as error:
            # A defect: the operator is not left waiting for an answer.
            log.exception("order_failed", command_id=command_id)
            told = f"The agent has a defect: {type(error).__name__}. Its log says more."
            self._answer(CommandAnswer(command_id=command_id, outcome=CommandOutcome.FAILED, message=told))

    def _refuse(self, command_id: str, code: CommandErrorCode, text: str) -> None:
        self._answer(CommandAnswer(command_id=command_id, outcome=CommandOutcome.REFUSED, code=code, message=text))

    async def _serve(self, order: ServeModel) -> None:
        self._check_allowed(order.name)
        # No file is deleted between the look at it and the exchange.
        async with self._changing:
            await self._offered(order)

    async def _offered(self, order: ServeModel) -> None:
        current = self._serving().get(order.name)
        section, sha256 = await self._section(order, current)
        if section == current and not self._swapping():
            self._answer(CommandAnswer(command_id=order.command_id, outcome=CommandOutcome.DONE))
            return
        draft = self._serving().get(section.draft or "")
        beside = await in_daemon_thread(partial(self._fits_beside, section, current, draft))
        self._expected[str(section.path)] = sha256
        self._dispatch(ModelOffered(order.command_id, section, beside, sha256))

    async def _withdraw(self, order: WithdrawModel) -> None:
        self._check_allowed(order.name)
        self._dispatch(ModelWithdrawn(order.command_id, order.name))

    async def _fetch(self, order: FetchModel) -> None:
        self._check_takes()
        await self._brought(order.command_id, self.fetcher.fetch(order))

    async def _pull(self, order: PullModel) -> None:
        self._check_takes()
        try:
            await self._brought(order.command_id, self._puller.pull(order))
        except PullRefusedError as error:
            raise OrderRefusedError(CommandErrorCode.NOT_ALLOWED, error.message, remedy=error.remedy) from error

    async def _brought(self, command_id: str, work: Coroutine[None, None, None]) -> None:
        """Answers when a model has come. Raises `PullRefusedError`."""
        try:
            await work
        except PullRefusedError:
            raise
        except (Moe2Error, OSError) as error:
            self._answer(
                CommandAnswer(
                    command_id=command_id,
                    outcome=CommandOutcome.FAILED,
                    code=CommandErrorCode.FETCH_FAILED,
                    message=str(error),
                )
            )
            return
        await self._folder_changed(command_id)

    async def _folder_changed(self, command_id: str) -> None:
        """Answers that it is done."""
        # Looked at first: whoever waits for the answer finds the file in the report, or no longer.
        self._store = await in_daemon_thread(self._look)
        self._report_now()
        self._answer(CommandAnswer(command_id=command_id, outcome=CommandOutcome.DONE))

    async def _delete(self, order: DeleteFile) -> None:
        self._check_takes()
        if not self._from.delete:
            raise OrderRefusedError(
                CommandErrorCode.NOT_ALLOWED,
                "models_from.delete is not set on this host.",
                remedy="Set it in the agent's configuration, and restart the agent.",
            )
        async with self._changing:
            if names := self._swapping():
                raise OrderRefusedError(
                    CommandErrorCode.BUSY,
                    f"{', '.join(names)} is being exchanged.",
                    remedy="Try again when that is done.",
                )
            await in_daemon_thread(partial(self._discard, order, tuple(self._serving().values())))
        await self._folder_changed(order.command_id)

    def _discard(self, order: DeleteFile, serving: Sequence[ModelSection]) -> None:
        file = self.library.find(order.name)
        if order.sha256 is not None and (file is None or file.sha256 != order.sha256):
            raise OrderRefusedError(
                CommandErrorCode.NOT_POSSIBLE,
                f"{order.name} is no longer the file that was meant.",
                remedy="See what is there: `moe2-coordinator models show`.",
            )
        said = self.library.discard(order.name, uses(self._settings, self._served.read(), serving))
        log.info("model_deleted", file=order.name, said=said)

    async def _lend(self, order: LendFile) -> None:
        await self.sharing.lend(order, asyncio.get_running_loop().time())
        self._answer(CommandAnswer(command_id=order.command_id, outcome=CommandOutcome.DONE))

    def _check_takes(self) -> None:
        if not self._from.coordinator:
            raise OrderRefusedError(
                CommandErrorCode.NOT_ALLOWED,
                "models_from.coordinator is not set on this host.",
                remedy="Set it in the agent's configuration, and restart the agent.",
            )

    def _check_allowed(self, name: str) -> None:
        self._check_takes()
        if name in self._configured and not self._from.override:
            raise OrderRefusedError(
                CommandErrorCode.NOT_ALLOWED,
                f"{name} stands in [[models]] of the agent's configuration, which wins.",
                remedy="Take it out there, or set models_from.override.",
            )

    async def _section(self, order: ServeModel, current: ModelSection | None) -> tuple[ModelSection, str]:
        """(what is to be served, its file's checksum). Raises `Moe2Error` where that is not possible."""
        if order.file is None and current is None:
            raise OrderRefusedError(
                CommandErrorCode.UNKNOWN_MODEL,
                f"This agent does not serve {order.name!r}.",
                remedy="Name the file that it is to be served from.",
            )
        path = current.path if order.file is None and current is not None else self.library.path(order.file or "")
        changes = {
            key: value
            for key in ("context_tokens", "slots", "cache_type", "gpu_layers")
            if (value := getattr(order, key)) is not None
        }
        base = {} if current is None else current.model_dump()
        section = checked_section({**base, **changes, "name": order.name, "path": path})
        if not path.exists():
            raise OrderRefusedError(
                CommandErrorCode.NOT_POSSIBLE,
                f"There is no {path.name} in this host's folder of models.",
                remedy="Push it first: `moe2-coordinator models push`.",
            )
        sha256 = await in_daemon_thread(partial(self._checksums.sha256, path))
        if order.sha256 is not None and sha256 != order.sha256:
            raise OrderRefusedError(
                CommandErrorCode.NOT_POSSIBLE,
                f"{path.name} has the checksum {sha256} on this host, not {order.sha256}.",
                remedy="Push the right file, under another name or after removing this one.",
            )
        return section, sha256

    def _fits_beside(self, section: ModelSection, current: ModelSection | None, draft: ModelSection | None) -> bool:
        """Whether memory has room for the model, and for the one that drafts for it, beside the one that it replaces.
        Blocks. Without room for its draft model a model is served alone.

        Raises `OrderRefusedError` where it has none either when that one is gone.
        """
        header = read_header(section.path)
        capacity = self._capacity(header.architecture or "")
        check_architecture(header, section.path.name, capacity)
        drafting_bytes = 0 if draft is None else _need(draft, section.context_tokens).total_bytes
        if _shortage(header, section, _with(capacity, -drafting_bytes)) is None:
            return True
        if current is not None:
            capacity = _with(capacity, _need(current).total_bytes)
        missing = _shortage(header, section, capacity)
        if missing is not None:
            raise OrderRefusedError(
                CommandErrorCode.NOT_POSSIBLE,
                f"{section.name} does not fit with {section.context_tokens} tokens of context. {missing.text}",
                remedy=what_would_fit(missing, section.context_tokens),
            )
        return current is None


def _shortage(header: GgufHeader, section: ModelSection, capacity: Capacity) -> Shortage | None:
    return memory_shortage(
        header,
        size_bytes(section.path),
        capacity,
        context_tokens=section.context_tokens,
        slots=section.slots,
        kv_unified=section.kv_unified,
        batch_tokens=section.batch_tokens,
        cache_type=section.cache_type,
        gpu_layers=section.gpu_layers,
    )


def _need(section: ModelSection, context_tokens: int | None = None) -> Need:
    """What a model needs, with so much context or its own."""
    header = read_header(section.path)
    cells = least_cells(
        header.text,
        context_tokens=context_tokens or section.context_tokens,
        slots=section.slots,
        batch_tokens=section.batch_tokens,
        kv_unified=section.kv_unified,
    )
    return Need(
        weights_bytes=size_bytes(section.path),
        cache_bytes=cache_bytes(header.text, cells, section.cache_type),
        offloaded=0.0,
    )


def _with(capacity: Capacity, more_bytes: int) -> Capacity:
    """The same with so much more memory, or less."""
    return Capacity(
        knows=capacity.knows,
        host_free_bytes=_more(capacity.host_free_bytes, more_bytes),
        device_free_bytes=_more(capacity.device_free_bytes, more_bytes),
    )


def _more(free_bytes: int | None, freed_bytes: int) -> int | None:
    return None if free_bytes is None else free_bytes + freed_bytes
