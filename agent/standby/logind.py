"""Asks systemd-logind to suspend the host, over D-Bus.

`busctl` makes the calls: it is a part of systemd, so that it is there wherever logind is, it needs no library, and
polkit decides about the agent's own user as it would for any caller. Unlike `systemctl suspend` it never asks a person
for a password, and says with the D-Bus error's own words why a call was refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from moe2.common.errors import Moe2Error

BUSCTL = ("busctl", "--system", "--json=short", "--timeout=20")
_MANAGER = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_CALL_S = 25.0
"""busctl gives up by itself; this is for one that hangs."""
_REMEDY = "Run install.sh again after setting agent.allow_suspend: it installs the polkit rule for this user."
_WHY_NOT = {
    "na": "This host's firmware or kernel cannot suspend, or forbids it.",
    "no": "polkit does not let this user suspend the host, or somebody else is logged in.",
    "challenge": "polkit would ask a person for a password first.",
}


class SuspendError(Moe2Error):
    """The host was not suspended."""


class _Answer(msgspec.Struct):
    data: tuple[str, ...] = ()


class Logind:
    """systemd-logind on the system's bus. command: busctl and its options."""

    def __init__(self, command: Sequence[str] = BUSCTL) -> None:
        self._command = tuple(command)

    async def fault(self) -> str | None:
        """Returns why the host cannot be suspended by this user now; None if it can."""
        try:
            answered = await self._call("CanSuspend")
            word = next(iter(msgspec.json.decode(answered, type=_Answer).data), "")
        except SuspendError as error:
            return str(error)
        except msgspec.MsgspecError:
            return "logind's answer to CanSuspend cannot be read."
        if word == "yes":
            return None
        why = _WHY_NOT.get(word, f"logind answers {word[:32]!r}.")
        return f"{why} {_REMEDY}" if word != "na" else why

    async def suspend(self) -> None:
        """Asks for the suspension; it begins a moment after this returns. Raises SuspendError if it is refused."""
        # "b false": nobody is there to be asked for a password.
        await self._call("Suspend", "b", "false")

    def suspended_s(self) -> float:
        """Returns the seconds since the boot that the host was suspended.

        CLOCK_BOOTTIME goes on while the host sleeps, CLOCK_MONOTONIC stands still (clock_gettime(2)). A step of the
        wall clock moves neither.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    async def _call(self, method: str, *arguments: str) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                "call",
                *_MANAGER,
                method,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise SuspendError(f"{self._command[0]} cannot be started: {error.strerror}.") from error
        try:
            async with asyncio.timeout(_CALL_S):
                answer, complaint = await process.communicate()
        except TimeoutError:
            raise SuspendError(f"logind has not answered {method} within {_CALL_S:.0f} s.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            words = complaint.decode("utf-8", "replace").strip().splitlines()
            raise SuspendError(f"logind refuses {method}: {words[-1][:300] if words else process.returncode}.")
        return answer
