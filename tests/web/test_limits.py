"""
Limits as a client meets them: time-outs, the size of objects, uploads at once, bandwidth of what goes through the reactor.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.limits.bandwidth import BURST_S, Bandwidth, BothDirections
from resticserver.limits.uploads import UploadGate
from resticserver.telemetry.limited import Limited
from resticserver.telemetry.record import Ending
from resticserver.web.http1.options import SiteOptions

from ..support.memory import Bench, Connection, HeldPool, request
from ..support.scratch import files_below

KIB = 1 << 10
BLOB = os.urandom(100 * KIB)
NAME = hashlib.sha256(BLOB).hexdigest()


def chunked(body: bytes, ends: bool = True) -> bytes:
    """An upload in chunks of 10 KiB."""
    head = f"POST /data/{hashlib.sha256(body).hexdigest()} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[begin : begin + 10 * KIB] for begin in range(0, len(body), 10 * KIB)]
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n" * ends


class LimitsCase(SynchronousTestCase):
    """A bench with limits."""

    def setUp(self) -> None:
        self.counted: list[str] = []
        self.limited = Limited(Clock(), self.counted.append)

    def bench(self, **options: Any) -> Bench:
        """A bench with a repository at the root."""
        options.setdefault("options", SiteOptions(limited=self.limited, header_timeout_s=20, stall_timeout_s=400))
        bench = Bench(self.mktemp(), **options)
        bench.store.create_repository(())
        return bench

    def files(self, bench: Bench) -> list[str]:
        """Every file below the data directory."""
        return sorted(map(os.path.basename, files_below(Path(bench.store.path))))


class TimeoutTests(LimitsCase):
    """C{--header-timeout} and C{--stall-timeout}."""

    def test_head(self) -> None:
        """A head that does not end is answered 408, however many bytes of it come."""
        bench = self.bench()
        connection = bench.ask(b"GET /config HTTP/1.1\r\nHost: x\r\n")
        for _ in range(19):
            bench.clock.advance(1)
            connection.send(b"X-More: 1\r\n")
        self.assertEqual([], connection.statuses())
        bench.clock.advance(1)
        self.assertEqual([408], connection.statuses())
        self.assertIn(b" 408 the request's head did not end within 20 s\r\n", connection.received)
        self.assertIn(b"Connection: close\r\n", connection.received)
        self.assertTrue(connection.closed)
        self.assertEqual(["header-timeout"], self.counted)
        self.assertEqual([408], [record.status for record in bench.records])

    def test_idle(self) -> None:
        """A connection without a byte of a head is idle: closed later, and no refusal."""
        bench = self.bench()
        connection = bench.connect()
        bench.clock.advance(179)
        self.assertFalse(connection.closed)
        bench.clock.advance(2)
        self.assertTrue(connection.closed)
        self.assertEqual(([], []), (connection.statuses(), self.counted))

    def test_long_head(self) -> None:
        """Counted as well."""
        connection = self.bench().ask(b"GET /config HTTP/1.1\r\nX: " + b"x" * (40 * KIB))
        self.assertEqual(([431], ["header-size"]), (connection.statuses(), self.counted))

    def test_body(self) -> None:
        """A body that does not move ends its connection, and leaves nothing."""
        bench = self.bench()
        connection = bench.ask(request("POST", f"/data/{NAME}", BLOB)[:-1])
        bench.clock.advance(399)
        self.assertFalse(connection.closed)
        bench.clock.advance(2)
        self.assertTrue(connection.closed)
        connection.lose()
        self.assertEqual((["stall-timeout"], []), (self.counted, self.files(bench)))

    def test_answer(self) -> None:
        """An answer that is not taken, likewise."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        connection = bench.ask(request("GET", "/data/"))
        connection.channel.pauseProducing()
        pool.release(3)
        self.assertEqual([200], connection.statuses())


class ObjectSizeTests(LimitsCase):
    """C{--max-object-size}."""

    def small(self) -> Bench:
        """A bench that takes objects up to 64 KiB."""
        return self.bench(gate=UploadGate(self.limited, 64 * KIB))

    def test_length(self) -> None:
        """By its length, before the body: it is not asked for."""
        bench = self.small()
        connection = bench.ask(
            f"POST /data/{NAME} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        self.assertEqual([413], connection.statuses())
        self.assertIn(
            b" 413 the object is larger than 64 KiB, the most that this server takes\r\n", connection.received
        )
        self.assertEqual((["max-object-size"], []), (self.counted, self.files(bench)))

    def test_next(self) -> None:
        """The connection goes on behind a body that was swallowed."""
        connection = self.small().ask(request("POST", f"/data/{NAME}", BLOB) + request("HEAD", f"/data/{NAME}"))
        self.assertEqual([413, 404], connection.statuses())

    def test_chunked(self) -> None:
        """In the middle of a body of unknown length, also if all of it is here."""
        for ends in (True, False):
            bench = self.small()
            connection = bench.ask(chunked(BLOB, ends))
            self.assertEqual([413], connection.statuses(), ends)
            self.assertEqual([], self.files(bench))
            self.assertEqual([Ending.REFUSED], [record.ending for record in bench.records])

    def test_fits(self) -> None:
        """What is not larger is stored."""
        for ask in (request("POST", f"/data/{hashlib.sha256(BLOB[: 64 * KIB]).hexdigest()}", BLOB[: 64 * KIB]),):
            self.assertEqual([200], self.small().ask(ask).statuses())
        self.assertEqual([200], self.small().ask(chunked(BLOB[: 64 * KIB])).statuses())


class UploadsTests(LimitsCase):
    """C{--max-uploads}."""

    def test_uploads(self) -> None:
        """One too many is 503 and comes again; ends of any kind make room; locks are no uploads here."""
        bench = self.bench(gate=UploadGate(self.limited, 0, 2))
        whole = request("POST", f"/data/{NAME}", BLOB)
        first, second = (bench.ask(whole[:-1]) for _ in range(2))
        third = bench.ask(whole)
        self.assertEqual([503], third.statuses())
        self.assertIn(b" 503 too many uploads at once: try again later\r\n", third.received)
        self.assertIn(b"Retry-After: 2\r\n", third.received)
        lock = BLOB[: 1 * KIB]
        self.assertEqual(
            [200], bench.ask(request("POST", f"/locks/{hashlib.sha256(lock).hexdigest()}", lock)).statuses()
        )
        first.lose()
        self.assertEqual([200], bench.ask(whole).statuses())
        second.send(whole[-1:])
        self.assertEqual([200], second.statuses())
        for _ in range(5):
            self.assertEqual([400], bench.ask(request("POST", f"/data/{NAME[::-1]}", b"other")).statuses())
            self.assertEqual([404], bench.ask(request("POST", f"/none/data/{NAME}", BLOB)).statuses())
        self.assertEqual([200], bench.ask(whole).statuses())
        self.assertEqual(["max-uploads"], self.counted)


class BandwidthTests(LimitsCase):
    """Objects and lists that go through the reactor."""

    def limited_bench(self, up: int = 0, down: int = 0) -> Bench:
        """A bench with bandwidths, in KiB a second."""
        return self.bench(
            bandwidth=lambda clock: BothDirections(
                Bandwidth(clock, up * KIB), Bandwidth(clock, down * KIB), lambda user, repository: None
            )
        )

    def time_of(self, bench: Bench, connection: Connection, answers: int) -> float:
        """How long it takes until so many answers are there."""
        begin_s = bench.clock.seconds()
        while len(connection.statuses()) < answers:
            bench.clock.advance(0.01)
            self.assertLess(bench.clock.seconds() - begin_s, 60)
        return bench.clock.seconds() - begin_s

    def stored(self, bench: Bench) -> None:
        """Put the blob there."""
        upload: Any = bench.store.upload((), "data", NAME, len(BLOB))
        upload.open()
        upload.write((BLOB,))
        upload.commit()

    def test_objects(self) -> None:
        """Ten of 100 KiB, at 100 KiB a second."""
        bench = self.limited_bench(down=100)
        self.stored(bench)
        connection = bench.ask(request("GET", f"/data/{NAME}") * 10)
        took_s = self.time_of(bench, connection, 10)
        self.assertTrue(8 < took_s < 10.5, took_s)
        self.assertEqual([200] * 10, connection.statuses())
        bench.clock.pump([0.01] * 200)
        self.assertEqual(10, connection.received.count(BLOB))

    def test_ranges(self) -> None:
        """Only what is sent counts."""
        bench = self.limited_bench(down=100)
        self.stored(bench)
        connection = bench.ask(request("GET", f"/data/{NAME}", Range=f"bytes=0-{10 * KIB - 1}") * 20)
        took_s = self.time_of(bench, connection, 20)
        self.assertTrue(1.5 < took_s < 2.2, took_s)

    def test_lists(self) -> None:
        """Their JSON counts."""
        bench = self.limited_bench(down=64)
        self.stored(bench)
        for number in range(2000):
            path = os.path.join(bench.store.path, "data", "00", f"00{number:062x}")
            with open(path, "wb"):
                pass
        connection = bench.connect()
        connection.send(request("GET", "/data/"))
        begin_s = bench.clock.seconds()
        while not connection.received.endswith(b"0\r\n\r\n"):
            bench.clock.advance(0.01)
            self.assertLess(bench.clock.seconds() - begin_s, 60)
        size_bytes = len(connection.received)
        self.assertGreater(size_bytes, 2000 * 66)
        self.assertGreater(bench.clock.seconds() - begin_s, size_bytes / (64 * KIB) - 2 * BURST_S)

    def test_uploads(self) -> None:
        """Of known length and chunked, at 100 KiB a second."""
        for ask in (request("POST", f"/data/{NAME}", BLOB), chunked(BLOB)):
            bench = self.limited_bench(up=100)
            connection = bench.ask(ask * 10)
            took_s = self.time_of(bench, connection, 10)
            self.assertTrue(8 < took_s < 10.5, took_s)
            self.assertEqual([200] * 10, connection.statuses())

    def test_lost(self) -> None:
        """A client that goes away while it waits leaves no timer of its own, nor a file."""
        bench = self.limited_bench(up=64, down=64)
        self.stored(bench)
        for ask in (request("GET", f"/data/{NAME}") * 2, request("POST", f"/data/{NAME[::-1]}", BLOB * 2)):
            connection = bench.ask(ask)
            bench.clock.advance(0.5)
            connection.lose()
            bench.clock.advance(10)
        self.assertEqual([NAME], self.files(bench))
        self.assertEqual([], bench.clock.getDelayedCalls())

    def test_other_direction(self) -> None:
        """A limit of one direction is none for the other."""
        bench = self.limited_bench(up=64)
        self.stored(bench)
        connection = bench.ask(request("GET", f"/data/{NAME}") * 5)
        self.assertLess(self.time_of(bench, connection, 5), 0.1)
