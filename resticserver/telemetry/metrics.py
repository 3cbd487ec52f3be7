"""
Counters of requests, and their text format for Prometheus.

A L{Tally} counts in the process that serves the requests. With several processes, one of them adds up the results of
their L{Tally.take}. L{Exposition} makes the text. It uses the client library's metric families with a registry of its
own: nothing is global, and there are no unused C{_created} series.

Families about other things are made where these are: repositories in L{resticserver.service.repository_figures}, logins in
L{resticserver.service.logins}, events in L{resticserver.service.hooks}, the rest in L{resticserver.service.monitoring}.

The C{rest_server_blob_*} families and their labels are those of rest-server, so that its dashboards work.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import accumulate
from typing import Any, NamedTuple

from .last_day import LastWrites, Written
from .limited import LIMITS
from .record import Operation, Record

#: Upper bounds of the buckets for request durations, in seconds: from a cached response to a pack over a slow
#: connection.
DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Upper bounds of the buckets for fsync, in seconds: from memory and good flash to a failing disk.
SYNC_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
#: Methods with a label of their own. Clients must not be able to choose values of this label.
_METHODS = {name: name.decode("ascii") for name in (b"GET", b"HEAD", b"POST", b"DELETE")}

_DONE = {Operation.WRITE: "written", Operation.READ: "read", Operation.DELETE: "deleted"}

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricType(Enum):
    """The Prometheus type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"


class Sample(NamedTuple):
    """One value of a family."""

    labels: tuple[str, ...]
    value: float


class Family(NamedTuple):
    """
    A Prometheus metric family.

    @ivar name: without the suffix C{_total} of counters.
    @ivar labels: the names of its labels.
    """

    type: MetricType
    name: str
    help: str
    labels: tuple[str, ...]
    samples: Sequence[Sample]


class Histogram:
    """
    A histogram of durations.

    @param ends_s: the upper bounds of its buckets; a last bucket without a bound is added.
    @ivar counts: the number of durations in each bucket.
    @ivar sum_s: the sum of all durations.
    """

    def __init__(self, ends_s: tuple[float, ...]) -> None:
        self.ends_s = ends_s
        self.counts = [0] * (len(ends_s) + 1)
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Add a duration."""
        self.counts[bisect_left(self.ends_s, duration_s)] += 1
        self.sum_s += duration_s

    def add(self, counts: list[int], sum_s: float) -> None:
        """Add the observations of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.sum_s += sum_s

    def copy(self) -> Histogram:
        """Return a copy for another thread."""
        made = Histogram(self.ends_s)
        made.counts, made.sum_s = self.counts.copy(), self.sum_s
        return made


def gauge(name: str, help_: str, value: float) -> Family:
    """A gauge of this server without labels."""
    return Family(MetricType.GAUGE, f"rest_server_{name}", help_, (), [Sample((), value)])


@dataclass
class RequestCounts:
    """
    Counters of requests.

    @ivar blobs: objects and bytes by operation, user, repository and type.
    @ivar requests: by method and status.
    @ivar durations: of requests.
    @ivar syncs: the durations of C{fsync}.
    @ivar limited: what limits refused, by the limit (L{LIMITS}).
    """

    blobs: dict[tuple[str, str, str, str], tuple[int, int]] = field(default_factory=dict)
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS_S))
    syncs: Histogram = field(default_factory=lambda: Histogram(SYNC_BUCKETS_S))
    received_bytes: int = 0
    sent_bytes: int = 0
    handshake_failures: int = 0
    limited: Counter[str] = field(default_factory=Counter)

    def copy(self) -> RequestCounts:
        """Return a copy for another thread."""
        return replace(
            self,
            blobs=self.blobs.copy(),
            requests=self.requests.copy(),
            durations=self.durations.copy(),
            syncs=self.syncs.copy(),
            limited=self.limited.copy(),
        )

    def families(self) -> Iterator[Family]:
        """All families except the histograms."""
        labels = ("user", "repo", "type")
        done_to: dict[str, list[tuple[tuple[str, ...], tuple[int, int]]]] = {each.value: [] for each in _DONE}
        for key, both in sorted(self.blobs.items()):
            done_to[key[0]].append((key[1:], both))
        for operation, done in _DONE.items():
            counted = done_to[operation.value]
            name = f"rest_server_blob_{operation.value}"
            numbers = [Sample(key, number) for key, (number, _) in counted]
            yield Family(MetricType.COUNTER, name, f"Number of objects {done}", labels, numbers)
            sizes = [Sample(key, size_bytes) for key, (_, size_bytes) in counted]
            yield Family(MetricType.COUNTER, f"{name}_bytes", f"Bytes of objects {done}", labels, sizes)
        requests = [Sample((method, str(code)), number) for (method, code), number in sorted(self.requests.items())]
        yield Family(
            MetricType.COUNTER,
            "rest_server_http_requests",
            "Requests by method and status",
            ("method", "code"),
            requests,
        )
        for name, help_, value in (
            ("rest_server_http_received_bytes", "Bytes of request bodies", self.received_bytes),
            ("rest_server_http_sent_bytes", "Bytes of response bodies", self.sent_bytes),
            ("rest_server_tls_handshake_failures", "Failed TLS handshakes", self.handshake_failures),
        ):
            yield Family(MetricType.COUNTER, name, help_, (), [Sample((), value)])
        limited = [Sample((limit,), self.limited[limit]) for limit in LIMITS]
        yield Family(MetricType.COUNTER, "rest_server_limited", "What limits refused, by limit", ("limit",), limited)


class Tally:
    """
    Counts requests, and measures the disk. All methods except L{synced} must be called in the same thread.

    @ivar counted: the counters since the start, or since the last L{take}.
    @ivar writes: the last upload to each repository, likewise.
    """

    def __init__(self) -> None:
        self.counted = RequestCounts()
        self.writes = LastWrites()
        self._syncing = threading.Lock()

    def __call__(self, record: Record) -> None:
        """Count a request that has ended (a L{resticserver.telemetry.record.Recorder})."""
        counted = self.counted
        counted.requests[_METHODS.get(record.method, "other"), record.status] += 1
        counted.durations.observe(record.duration_s)
        counted.received_bytes += record.received_bytes
        counted.sent_bytes += record.sent_bytes
        effect, target = record.effect, record.target
        if effect is not None and target is not None:
            size_bytes = record.sent_bytes if effect.operation is Operation.READ else effect.size_bytes
            # Only existing objects have an effect, so a client cannot invent label values.
            repository, user = "/".join(target.repository), record.user or ""
            self._add((effect.operation.value, user, repository, target.type), 1, size_bytes)
            # restic locks a repository for reading, too.
            if effect.operation is Operation.WRITE and target.type != "locks":
                self.writes.add(repository, Written(user, record.started + record.duration_s))

    def handshake_failed(self) -> None:
        """Count a failed TLS handshake."""
        self.counted.handshake_failures += 1

    def limited(self, limit: str) -> None:
        """Count what a limit (one of L{LIMITS}) refused."""
        self.counted.limited[limit] += 1

    def synced(self, duration_s: float) -> None:
        """Record the duration of an C{fsync}. May be called in any thread."""
        with self._syncing:
            self.counted.syncs.observe(duration_s)

    def _add(self, key: tuple[str, str, str, str], number: int, size_bytes: int) -> None:
        before = self.counted.blobs.get(key, (0, 0))
        self.counted.blobs[key] = (before[0] + number, before[1] + size_bytes)

    def take(self) -> dict[str, Any]:
        """Return the counters as JSON types, and reset them."""
        with self._syncing:
            taken, self.counted = self.counted, RequestCounts()
        return {
            "blobs": [[*key, *both] for key, both in taken.blobs.items()],
            "requests": [[*key, number] for key, number in taken.requests.items()],
            "durations": [taken.durations.counts, taken.durations.sum_s],
            "syncs": [taken.syncs.counts, taken.syncs.sum_s],
            "sums": [taken.received_bytes, taken.sent_bytes, taken.handshake_failures],
            "limited": dict(taken.limited),
            "writes": self.writes.take(),
        }

    def add(self, taken: dict[str, Any]) -> None:
        """Add the result of another process's L{take}."""
        for operation, user, repository, kind, number, size_bytes in taken["blobs"]:
            self._add((operation, user, repository, kind), number, size_bytes)
        counted = self.counted
        for method, status, number in taken["requests"]:
            counted.requests[method, status] += number
        counted.durations.add(*taken["durations"])
        with self._syncing:
            counted.syncs.add(*taken["syncs"])
        received_bytes, sent_bytes, handshake_failures = taken["sums"]
        counted.received_bytes += received_bytes
        counted.sent_bytes += sent_bytes
        counted.handshake_failures += handshake_failures
        counted.limited.update(taken["limited"])
        self.writes.load(taken["writes"])

    def forget(self, repositories: set[str]) -> None:
        """Drop the series of repositories that no longer exist."""
        blobs = self.counted.blobs
        self.counted.blobs = {key: counted for key, counted in blobs.items() if key[2] not in repositories}
        self.writes.forget(repositories)


class Exposition:
    """
    Formats metrics as text for Prometheus. Lines are cached until their values change: with a thousand repositories
    nearly all lines stay the same, and formatting them takes most of the time. Thread-safe.
    """

    def __init__(self) -> None:
        #: For each family: the text before its samples, and for each sample, by its labels, its value and its line.
        self._written: dict[str, tuple[bytes, dict[tuple[str, ...], tuple[float, bytes]]]] = {}
        self._lock = threading.Lock()

    def text(self, counted: RequestCounts, families: Iterable[Family]) -> bytes:
        """Format all metrics. This may take a while, and the arguments must not change meanwhile."""
        with self._lock:
            pieces = [self._piece(family) for family in (*counted.families(), *families)]
            pieces.append(
                _histogram(
                    "rest_server_http_request_duration_seconds",
                    "Duration of requests, from the request line to the end of the response",
                    counted.durations,
                )
            )
            pieces.append(
                _histogram(
                    "rest_server_fsync_duration_seconds",
                    "Duration of fsync of a file or directory",
                    counted.syncs,
                )
            )
            return b"".join(pieces)

    def _piece(self, family: Family) -> bytes:
        before, known = self._written.get(family.name, (b"", {}))
        samples = family.samples
        fresh = [sample for sample in samples if (line := known.get(sample.labels)) is None or line[0] != sample.value]
        if fresh or not before:
            # Label values contain no line breaks. The comments before the first sample are present even without
            # samples.
            before, *lines = _family(family._replace(samples=fresh)).rsplit(b"\n", len(fresh) + 1)[:-1]
            known.update((labels, (value, line)) for (labels, value), line in zip(fresh, lines, strict=True))
        if len(known) != len(samples):
            known = {sample.labels: known[sample.labels] for sample in samples}
        self._written[family.name] = (before, known)
        return b"\n".join((before, *[known[sample.labels][1] for sample in samples], b""))


def _family(family: Family) -> bytes:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    made_by = CounterMetricFamily if family.type is MetricType.COUNTER else GaugeMetricFamily
    made = made_by(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        made.add_metric([label.encode("utf-8", "backslashreplace").decode("utf-8") for label in labels], value)
    return _text(made)


def _histogram(name: str, help_: str, histogram: Histogram) -> bytes:
    from prometheus_client.core import HistogramMetricFamily

    ends = (*map(str, histogram.ends_s), "+Inf")
    return _text(
        HistogramMetricFamily(
            name,
            help_,
            buckets=list(zip(ends, accumulate(histogram.counts), strict=True)),
            sum_value=histogram.sum_s,
        )
    )


def _text(metric: Any) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        """A collector of this one metric."""

        def collect(self) -> Iterator[Any]:
            """Called by the client library."""
            yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return bytes(generate_latest(registry))
