"""
Events that an administrator should learn of: their kinds and their content.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from ..dates import date_text


class EventKind(Enum):
    """The kinds of events."""

    #: A snapshot was stored, so a backup has finished.
    SNAPSHOT = "snapshot"
    REPOSITORY_CREATED = "repository-created"
    REPOSITORY_DELETED = "repository-deleted"
    #: An upload was refused because of a quota.
    QUOTA_REACHED = "quota-reached"
    #: An upload was refused because the disk is full, or because C{--min-free} would be violated.
    DISK_FULL = "disk-full"
    #: An upload was refused for another reason: its bytes do not match its name, or its user may not upload.
    UPLOAD_REFUSED = "upload-refused"
    #: The content of a stored object did not match its name.
    CORRUPTION = "corruption"
    #: An address is locked out after too many failed logins.
    LOCKOUT = "lockout"
    #: The TLS certificate expires soon.
    CERTIFICATE = "certificate-expiring"


#: Refused uploads, reported at intervals for each user, repository and reason (the detail C{reason}).
REFUSALS = frozenset((EventKind.QUOTA_REACHED, EventKind.DISK_FULL, EventKind.UPLOAD_REFUSED))


@dataclass(frozen=True, slots=True)
class Event:
    """
    One event.

    @ivar message: what happened, for people; names in it are escaped.
    @ivar repository: such as C{alice/laptop}, if the event concerns one.
    @ivar user: the user who caused it, if known.
    @ivar details: further values, depending on the kind (docs/monitoring.md).
    @ivar time_s: when, in seconds since 1970.
    """

    kind: EventKind
    message: str
    repository: str | None = None
    user: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    time_s: float = field(default_factory=time.time)

    @property
    def in_place(self) -> bool:
        """Whether the event is about a stored object whose size has changed, and that was not replaced."""
        return self.kind is EventKind.CORRUPTION and "found_bytes" in self.details

    @property
    def of_scrub(self) -> bool:
        """Whether the scrub has found a problem of a stored object."""
        return self.kind is EventKind.CORRUPTION and "problem" in self.details

    def as_json(self) -> bytes:
        """One line, as passed to the C{--on-event} command."""
        document = {
            "event": self.kind.value,
            "time": date_text(self.time_s),
            "message": self.message,
            "repository": self.repository,
            "user": self.user,
            **self.details,
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"

    def on_the_wire(self) -> dict[str, Any]:
        """The event as JSON types, for another process."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_wire(cls, kind: str, **values: Any) -> Event:
        """The inverse of L{on_the_wire}."""
        return cls(EventKind(kind), **values)


#: A callable that receives every event.
Tells = Callable[[Event], object]


def ignore_event(event: Event) -> None:
    """Ignore an event."""
