"""
All messages between the parent and its workers, with their fields, answers and errors. L{resticserver.workers.ipc}
transports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import Forbidden, InsufficientStorage, StartError, Unauthorized, Unavailable
from ..limits.bandwidth import Usage
from ..quota.directory_locks import Key
from ..sizes import Amount
from ..storage.layout import Repository
from ..telemetry.events import Event
from .ipc import Command, Question, wired


def _repository() -> Any:
    return wired(tuple)


def _bytes() -> Any:
    return wired(lambda text: text.encode("latin-1"), lambda value: value.decode("latin-1"))


# --- in both directions


@dataclass(frozen=True)
class MarkerFound(Command):
    """The volume's marker was seen for the first time. From now on, every process notices when it is missing."""

    marker: bytes = _bytes()


# --- from the parent


@dataclass(frozen=True)
class Begin(Question[None]):
    """
    Start to serve: the first message to a worker.

    @ivar version: of the parent's code.
    @ivar settings: L{Settings.as_json}.
    @ivar listeners: for each of the parent's sockets its C{--listen} address, C{None} for an inherited one.
    @ivar policy: the text of the policy file.
    @ivar reading: which reading of the htpasswd file the parent has.
    @ivar volume_gone: whether the volume is missing, which the parent has logged.
    @ivar quota_active: whether the parent counts what is stored.
    @ivar marker: of the volume, if known.
    @ivar locked: the directories that are locked against changes.
    """

    version: str
    settings: dict[str, Any]
    listeners: list[str | None]
    policy: str | None
    reading: int
    volume_gone: bool
    quota_active: bool
    marker: bytes | None = _bytes()
    locked: list[Key] = wired(lambda keys: [(tuple(repository), cell) for repository, cell in keys])

    errors = (StartError,)


@dataclass(frozen=True)
class Serve(Command):
    """
    Serve a connection. Its descriptor is sent with this message.

    @ivar number: for L{ConnectionsEnded}.
    """

    listener: int
    number: int


@dataclass(frozen=True)
class Ping(Question[None]):
    """Check whether the worker responds."""


@dataclass(frozen=True)
class Retire(Command):
    """Another worker has taken over: end once no connection is left."""


@dataclass(frozen=True)
class Stop(Command):
    """Let transfers finish within their time limit, then end."""


@dataclass(frozen=True)
class Abort(Command):
    """Close all connections now."""


@dataclass(frozen=True)
class ReopenLog(Command):
    """Reopen the access log by its name."""


@dataclass(frozen=True)
class UsersChanged(Question[None]):
    """The parent has reloaded the htpasswd file. Results of earlier checks are no longer valid."""

    reading: int


@dataclass(frozen=True)
class PolicyChanged(Question[None]):
    """The parent has reloaded the policy file."""

    text: str


@dataclass(frozen=True)
class ReadCertificates(Question[None]):
    """Reload the certificates."""

    errors = (StartError,)


@dataclass(frozen=True)
class CloseDirectories(Question[None]):
    """Lock these directories against changes, and answer when no change is under way."""

    cells: list[int]
    repository: Repository = _repository()


@dataclass(frozen=True)
class OpenDirectories(Command):
    """Unlock these directories."""

    cells: list[int]
    repository: Repository = _repository()


@dataclass(frozen=True)
class EnableQuota(Question[None]):
    """There are limits now: report what is stored and removed from now on."""


@dataclass(frozen=True)
class SendCounts(Question[None]):
    """Send L{Counts} now."""


@dataclass(frozen=True)
class BandwidthParts(Command):
    """
    The worker's parts of the limits of bandwidth, in bytes a second by the limit's key
    (L{resticserver.limits.bandwidth.Bandwidth.set_parts}).
    """

    up: dict[str, float]
    down: dict[str, float]


# --- from a worker


@dataclass(frozen=True)
class LogLine(Command):
    """A log line of the worker."""

    level: str
    namespace: str
    text: str


@dataclass(frozen=True)
class ConnectionsEnded(Command):
    """These connections have ended since the last such message (L{Serve.number})."""

    numbers: list[int]


@dataclass(frozen=True)
class EventHappened(Command):
    """An event, for the log, the metrics and C{--on-event}."""

    event: Event = wired(lambda values: Event.from_wire(**values), Event.on_the_wire)


@dataclass(frozen=True)
class CheckLogin(Question[tuple[float, int]]):
    """
    Ask whether a login is right. The answer: for how many seconds it may be cached, and which reading of the htpasswd
    file it is based on.

    @ivar number: for L{WithdrawLogin}.
    @ivar trusted: whether the address is a trusted proxy's.
    @ivar known: whether the same login succeeded on this connection before.
    """

    number: str
    user: str
    address: str
    trusted: bool
    known: bool
    password: bytes = _bytes()

    errors = (Unauthorized, Forbidden, Unavailable)


@dataclass(frozen=True)
class WithdrawLogin(Command):
    """The client of a L{CheckLogin} has disconnected."""

    number: str


@dataclass(frozen=True)
class Reserve(Question[int]):
    """
    Reserve quota for an upload (L{resticserver.quota.admission.QuotaBackend.reserve}). The answer is the reservation's
    number.
    """

    user: str | None
    object_type: str
    name: str
    size_bytes: int
    repository: Repository = _repository()

    errors = (InsufficientStorage, Unavailable)


@dataclass(frozen=True)
class Grow(Question[None]):
    """Reserve more for the same upload."""

    number: int
    size_bytes: int

    errors = (InsufficientStorage, Unavailable)


@dataclass(frozen=True)
class Settle(Command):
    """
    An upload or a removal (whose number is 0) has ended.

    @ivar change: by how much it changed what is stored.
    @ivar certain: whether it is known by how much.
    """

    number: int
    cell: int
    repository: Repository = _repository()
    change: Amount = wired(lambda value: Amount(*value))
    certain: bool = True


@dataclass(frozen=True)
class UsableUntil(Question[list[float] | None]):
    """
    Until when the leases of an upload may be used. The answer has the fields of a L{resticserver.objects.front_ends.Moment};
    C{None} if the upload has none.
    """

    number: int

    errors = (Unavailable,)


@dataclass(frozen=True)
class Recount(Command):
    """Recount a repository."""

    repository: Repository = _repository()


@dataclass(frozen=True)
class Counts(Command):
    """The counts for the metrics since the last such message (L{resticserver.telemetry.metrics.Tally.take})."""

    taken: dict[str, Any]
    in_flight: int


def _usages() -> Any:
    return wired(lambda usages: [Usage(*usage) for usage in usages])


@dataclass(frozen=True)
class BandwidthUsed(Command):
    """What the worker used of the limits of bandwidth since the last such message, once a second."""

    up: list[Usage] = _usages()
    down: list[Usage] = _usages()


@dataclass(frozen=True)
class GetMetrics(Question[str]):
    """Ask for all metrics of the server, as text."""

    errors = (Unavailable,)


@dataclass(frozen=True)
class GetStatus(Question[str]):
    """Ask for the status of the server, as JSON."""

    errors = (Unavailable,)
