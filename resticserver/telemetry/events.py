"""
Events that administrators can be notified of.
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
    """What can happen."""

    #: A snapshot was stored: a backup has finished.
    SNAPSHOT = "snapshot"
    REPOSITORY_CREATED = "repository-created"
    REPOSITORY_DELETED = "repository-deleted"
    #: An upload was refused because of a quota.
    QUOTA_REACHED = "quota-reached"
    #: An upload was refused because the disk is full, or because of C{--min-free}.
    DISK_FULL = "disk-full"
    #: An upload was refused for another reason: its hash is not its name, or its user has no right.
    UPLOAD_REFUSED = "upload-refused"
    #: The hash of a stored object was not its name.
    CORRUPTION = "corruption"
    #: An address is refused after too many failed logins.
    LOCKOUT = "lockout"
    #: The TLS certificate ends soon.
    CERTIFICATE = "certificate-expiring"


#: Refused uploads: reported once an hour for each user, repository and reason (the detail C{reason}).
REFUSALS = frozenset((EventKind.QUOTA_REACHED, EventKind.DISK_FULL, EventKind.UPLOAD_REFUSED))


@dataclass(frozen=True, slots=True)
class Event:
    """
    One event.

    @ivar message: what happened, as text; names in it are escaped.
    @ivar repository: as C{alice/laptop}, where it is about one.
    @ivar user: of the request, if there is one.
    @ivar details: more, by kind (docs/operations.md).
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
        """Whether it is about a stored object that has another size than before, and still has it."""
        return self.kind is EventKind.CORRUPTION and "found_bytes" in self.details

    def as_json(self) -> bytes:
        """One line, as a command gets it."""
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
        """As types of JSON, for another process."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_wire(cls, kind: str, **values: Any) -> Event:
        """The reverse of L{on_the_wire}."""
        return cls(EventKind(kind), **values)


#: Called with every event.
Tells = Callable[[Event], object]


def nobody(event: Event) -> None:
    """Ignore an event."""
