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

#: How often the date is checked, and how many days before expiry the warnings begin.
EXPIRY_INTERVAL_S = 86_400.0
EXPIRY_DAYS = 14


def expiry_watch(reactor: IReactorTime, certificates: ReloadingCertificates, events: Events) -> Repeated:
    """A service that sends an event each day, beginning two weeks before the certificate expires."""

    def look() -> Deferred[None]:
        left = certificates.not_after - datetime.now(UTC)
        if left < timedelta(days=EXPIRY_DAYS):
            until = date_text(certificates.not_after.timestamp())
            message = f"the TLS certificate {'expires' if left > timedelta() else 'has expired'} on {until}"
            events.tell_now_and_then(Event(EventKind.CERTIFICATE, message, details={"not_after": until}), until)
        return succeed(None)

    return Repeated("certificate expiry", reactor, EXPIRY_INTERVAL_S, look, now=True)
