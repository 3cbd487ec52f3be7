"""
What a site is told when it is made: how its requests are read, and its limits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from ...access.proxies import TrustedProxies
from ...limits.connections import ConnectionLimits
from ...telemetry.limited import Limited

#: Default of C{--header-timeout}.
HEADER_TIMEOUT_S = 60.0
#: Default of C{--stall-timeout}. restic itself gives up after five minutes, and must be the first to do so: else a transfer fails
#: that would have gone on.
STALL_TIMEOUT_S = 310.0


def _ignore() -> None:
    """Count nothing."""


@dataclass(frozen=True)
class SiteOptions:
    """
    The options of a L{resticserver.web.http1.site.RepositorySite}.

    @ivar max_depth: how many folders deep repositories may lie, below C{prefix}.
    @ivar proxies: whose headers say a client's address and name.
    @ivar header_timeout_s: how long the head of a request may take from its first byte.
    @ivar stall_timeout_s: how long the client may move no byte of a body or an answer.
    @ivar crowded_from: the first request of a connection with this descriptor, or a higher one, is answered with 503 and is its
        last. From C{full_from} on the connection is closed at once.
    @ivar connections: how many connections there may be, for whoever accepts them; C{None} for no limit.
    @ivar limited: receives what limits refuse; C{None}: it is logged only.
    @ivar count_handshake_failure: called for each TLS handshake that fails.
    """

    max_depth: int = 2
    prefix: tuple[str, ...] = ()
    proxies: TrustedProxies = field(default_factory=lambda: TrustedProxies.parse(()))
    header_timeout_s: float = HEADER_TIMEOUT_S
    stall_timeout_s: float = STALL_TIMEOUT_S
    crowded_from: int = sys.maxsize
    full_from: int = sys.maxsize
    connections: ConnectionLimits | None = None
    limited: Limited | None = None
    count_handshake_failure: Callable[[], object] = _ignore
