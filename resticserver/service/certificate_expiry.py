"""
Warns when the TLS certificate is about to expire.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from ..dates import date_text
from ..telemetry.events import Event, EventKind
from .hooks import Events
from .repeated import Repeated

if TYPE_CHECKING:
    from ..net.tls import ReloadingCertificates

#: How often the date is checked.
EXPIRY_INTERVAL_S = 86_400.0


def expiry_watch(
    reactor: IReactorTime, certificates: ReloadingCertificates, events: Events, ahead_s: float
) -> Repeated:
    """
    A service that sends an event each day.

    @param ahead_s: how long before the certificate expires this begins.
    """

    def look() -> Deferred[None]:
        left = certificates.not_after - datetime.now(UTC)
        if left < timedelta(seconds=ahead_s):
            until = date_text(certificates.not_after.timestamp())
            message = f"the TLS certificate {'expires' if left > timedelta() else 'has expired'} on {until}"
            events.tell_now_and_then(Event(EventKind.CERTIFICATE, message, details={"not_after": until}), until)
        return succeed(None)

    return Repeated("certificate expiry", reactor, EXPIRY_INTERVAL_S, look, now=True)
