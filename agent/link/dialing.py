"""How each link of this agent is made: who it says it is, its certificates and its pauses between attempts."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Callable
from random import Random

from moe2.agent.link.credential import AgentCredentials
from moe2.agent.link.link import Link
from moe2.agent.settings import CoordinatorSection
from moe2.common import __version__
from moe2.common.backoff import Backoff
from moe2.common.link.messages import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Hello, Welcome
from moe2.common.link.session import JobMessage
from moe2.common.tls.contexts import client_context

MAX_PAUSE_S = 4.0
"""The longest pause where there are several coordinators: one that comes back waits for its agents."""


class Dialer:
    """Makes the links of one run of the agent. section: the settings that the next attempt uses; may be replaced."""

    def __init__(
        self,
        section: CoordinatorSection,
        credentials: AgentCredentials,
        *,
        agent_id: str,
        agent_name: str,
        hostname: str,
    ) -> None:
        self.section = section
        self._credentials = credentials
        self._random = Random()
        self._hello = Hello(
            protocol_min=OLDEST_PROTOCOL_VERSION,
            protocol_max=PROTOCOL_VERSION,
            agent_id=agent_id,
            agent_name=agent_name,
            agent_version=__version__,
            instance_id=uuid.uuid4().hex,
            hostname=hostname or None,
        )

    def link(
        self,
        url: str,
        on_opened: Callable[[Welcome], None],
        on_message: Callable[[JobMessage], None],
        on_lost: Callable[[], None],
    ) -> Link:
        """Makes the link to one address; it dials when it runs."""
        return Link(
            url=url,
            credentials=self._credentials,
            tls=lambda: self.tls() if url.startswith("wss:") else None,
            hello=self._hello,
            timing=self.section,
            backoff=self.backoff(),
            on_opened=on_opened,
            on_message=on_message,
            on_lost=on_lost,
        )

    def backoff(self) -> Backoff:
        """Returns new pauses between attempts, as the settings have them."""
        section = self.section
        most_s = section.reconnect_most_s if len(section.addresses) == 1 else min(section.reconnect_most_s, MAX_PAUSE_S)
        return Backoff(first_s=section.reconnect_first_s, most_s=most_s, random=self._random)

    def tls(self) -> ssl.SSLContext:
        """Makes the context of an attempt. Made for each, so that new files are used from the next one on."""
        section = self.section
        return client_context(ca_file=section.ca_file, certificate=section.certificate, key=section.key)
