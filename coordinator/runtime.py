"""The coordinator's process: its event loop's clock, its limit of open files, and the certificates of its listeners."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from time import monotonic

import structlog
import uvloop

from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.common.hosts import is_loopback
from moe2.common.tls.contexts import ServerFiles, ServerTls, TlsError, load_server_files
from moe2.coordinator.fleet.settings import TlsSection
from moe2.coordinator.http.settings import ApiSection
from moe2.coordinator.settings import CoordinatorSettings

log = structlog.get_logger()

THREAD_SWITCH_S = 0.0005
COLLECT_AFTER = (10_000, 10, 10)
"""Objects more than before, and collections of the younger generation, that let the garbage collector run."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's <malloc.h>."""
GIVEN_BACK_BYTES = 64 * 1024
"""A block of at least so many bytes leaves the process when it is freed."""
EXPIRES_SOON_S = 14 * 86_400.0
"""A certificate that ends sooner is warned of."""


class EventLoop(uvloop.Loop):
    """An event loop of uvloop with a finer clock.

    uvloop's own `time()` has a resolution of 1 ms and stands still between two turns of the loop, so that a round trip
    or an overhead below that would be measured as 0 s or 1 ms.
    """

    time = staticmethod(monotonic)
    """Monotonic seconds, read from the system's clock at each call."""


def allow_open_files() -> int:
    """Raises the process's soft limit of open files to the hard one, and returns it.

    The soft limit is 1024 on most systems, for the sake of programs that use select(2). At that, idle clients could
    keep the agents out.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def share_processor() -> None:
    """Has the interpreter pass from one thread to another after `THREAD_SWITCH_S`.

    A thread that parses a long body would else keep the event loop waiting for 5 ms each time that this has slept: a
    dozen times in a request.
    """
    sys.setswitchinterval(THREAD_SWITCH_S)


def collect_seldom() -> None:
    """Has the collector of reference cycles run seldom, and never look at what is loaded by now.

    What is loaded stays for good: without `freeze` each full collection walks over all modules, for milliseconds. By
    the interpreter's own thresholds 1,000 hosts were walked over every five seconds, for 0.12 s of processor time, as
    whatever looks at all of them makes thousands of objects at once. Hardly any cycles are left behind to be found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def give_back_memory() -> None:
    """Has glibc give large blocks, and the free end of the heap, back to the kernel at once; see mallopt(3).

    By default it keeps as much as the largest blocks that were ever freed, which are those of the minute's look at the
    whole fleet: of 1,000 hosts 147 to 154 MB stayed resident, and 146 to 148.5 MB do with this. Other C libraries have
    no such bound.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, GIVEN_BACK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * GIVEN_BACK_BYTES)


class ListenerTls:
    """The TLS contexts of both listeners, and the health warnings about their certificates.

    Raises `Moe2Error` for a certificate that cannot be used.
    """

    def __init__(self, settings: CoordinatorSettings) -> None:
        self.api = _server_tls("api", settings.api.tls)
        self.agents = _server_tls("agents", settings.agents.tls)
        self._plaintext = _plaintext_warning(settings.api)
        self._trouble: dict[str, str] = {}

    def load(self, settings: CoordinatorSettings) -> None:
        """Loads the files that the settings name now. Raises `TlsError`; everything in use then stays in use."""
        both = ((self.api, settings.api.tls), (self.agents, settings.agents.tls))
        loaded = [(tls, load_server_files(_files(section))) for tls, section in both if tls and section]
        for tls, files in loaded:
            tls.use(files)

    def load_changed(self) -> None:
        """Loads files that were replaced; open connections go on as they are."""
        for name, tls in (("api", self.api), ("agents", self.agents)):
            if tls is None:
                continue
            try:
                if not tls.load_changed():
                    continue
            except TlsError as error:
                # The other half of the pair is often written a moment later.
                self._trouble[name] = str(error)
                log.warning("certificate_not_loaded", listener=name, reason=str(error))
            else:
                self._trouble.pop(name, None)
                log.info("certificate_loaded", listener=name, certificate=str(tls.files.certificate))

    def warnings(self, now_unix_s: float) -> list[HealthWarning]:
        """Returns a warning for each certificate that cannot be used or ends soon, and for a listener without TLS."""
        warnings = [self._plaintext] if self._plaintext else []
        for name, tls in (("api", self.api), ("agents", self.agents)):
            if tls is None:
                continue
            if trouble := self._trouble.get(name):
                warnings.append(
                    HealthWarning(
                        code="certificate_not_loaded",
                        severity=Severity.DEGRADED,
                        message=f"The new files of [{name}.tls] are not used: {trouble}",
                        remedy="Replace them with good ones, certificate and key as a pair; they are used at once.",
                    )
                )
            left_s = tls.validity.not_after_unix_s - now_unix_s
            if left_s > EXPIRES_SOON_S:
                continue
            told = "has expired" if left_s <= 0 else f"expires in {left_s / 86_400:.0f} days"
            warnings.append(
                HealthWarning(
                    code="certificate_expired" if left_s <= 0 else "certificate_expires",
                    severity=Severity.DEGRADED if left_s <= 0 else Severity.NOTICE,
                    message=f"The certificate {tls.files.certificate} of [{name}.tls] {told}.",
                    remedy="Replace certificate and key; the new ones are used at once, without a restart.",
                )
            )
        return warnings


def _plaintext_warning(api: ApiSection) -> HealthWarning | None:
    """Warns of a listener without TLS that other machines reach.

    The warning is a notice only, as there may be a proxy with TLS on another host.
    """
    if api.tls is not None or is_loopback(api.host):
        return None
    required = api.keys == "required"
    read = "reads API keys, prompts and answers, and can use the keys" if required else "reads prompts and answers"
    return HealthWarning(
        code="keys_plaintext" if required else "api_plaintext",
        severity=Severity.NOTICE,
        message=f"Apps connect to {api.host} without TLS: who sees the network {read}.",
        remedy="Set certificate and key in [api.tls], or listen on loopback behind a proxy that has TLS.",
    )


def _server_tls(listener: str, section: TlsSection | None) -> ServerTls | None:
    if section is None:
        return None
    try:
        return ServerTls(_files(section))
    except TlsError as error:
        raise Moe2Error(f"[{listener}.tls]: {error.message}", remedy=error.remedy) from error


def _files(section: TlsSection) -> ServerFiles:
    return ServerFiles(section.certificate, section.key, section.client_ca)
