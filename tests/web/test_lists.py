"""
Lists on the wire: JSON that is whole whatever parts it is made of, what is kept of it, and how it leaves.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.lru import BoundedCache
from resticserver.storage import listing as listing_module
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.interface import Objects
from resticserver.web import lists
from resticserver.web.lists import CHUNK_BYTES, FIRST_CHUNK_BYTES, ListResponses, ListText
from tests.contract.store import id_of
from tests.support.descriptors import left_open, open_descriptors
from tests.support.memory import Bench, HeldPool, request
from tests.web.test_routes import unchunked

ACCEPT_V2 = {"Accept": "application/vnd.x.restic.rest.v2"}


def objects(first: int, count: int, number: int | None = None, with_sizes: bool = True) -> Objects:
    """A part of a list."""
    numbers = range(first, first + count)
    ids = b"".join(bytes.fromhex(id_of(b"%d" % each)) for each in numbers)
    return Objects(ids, array("Q", numbers) if with_sizes else None, number)


def lines(parts: Sequence[Objects], with_sizes: bool) -> list[Any]:
    """What a list of these parts has to be."""
    entries = [entry for part in parts for entry in part]
    return [{"name": entry.name, "size": entry.size_bytes} if with_sizes else entry.name for entry in entries]


class FakeListing:
    """A list of given parts; an exception among them is raised."""

    def __init__(self, parts: Sequence[Objects | Exception]) -> None:
        self._parts = parts
        self.calls: list[str] = []

    def open(self) -> None:
        """Open it."""
        self.calls.append("open")

    def __iter__(self) -> Iterator[Objects]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    def close(self) -> None:
        """Close it."""
        self.calls.append("close")


def chunks_of(
    parts: Sequence[Objects],
    with_sizes: bool = True,
    cache: BoundedCache[tuple[int, bool], bytes] | None = None,
) -> list[bytes]:
    """The chunks in which a list leaves."""
    text = ListText(FakeListing(parts), with_sizes, cache if cache is not None else BoundedCache(1 << 20))
    chunks = [text.open()]
    while chunk := text.read():
        chunks.append(chunk)
    return chunks


class TextTests(SynchronousTestCase):
    """L{ListText}."""

    def test_versions(self) -> None:
        """To the byte; version 1 has use for no sizes."""
        part = objects(1, 2)
        one, two = part.names()
        self.assertEqual([f'["{one}","{two}"]'.encode()], chunks_of([part], False))
        self.assertEqual([f'["{one}","{two}"]'.encode()], chunks_of([objects(1, 2, with_sizes=False)], False))
        expected = f'[{{"name":"{one}","size":1}},{{"name":"{two}","size":2}}]'
        self.assertEqual([expected.encode()], chunks_of([part]))

    def test_empty(self) -> None:
        """No part, and parts with nothing in them."""
        for parts in ([], [objects(0, 0)], [objects(0, 0, 1), objects(0, 0)]):
            for with_sizes in (True, False):
                self.assertEqual([b"[]"], chunks_of(parts, with_sizes))

    @settings(deadline=None, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
        st.booleans(),
        st.sampled_from([1, 100, 300, 10_000]),
    )
    def test_any_parts(self, shape: list[tuple[int, bool]], with_sizes: bool, chunk_bytes: int) -> None:
        """Empty parts between full ones, parts that are kept and that are not, chunks of any size: the list is whole."""
        parts = [objects(10 * n, count, n if keeps else None) for n, (count, keeps) in enumerate(shape)]
        patches = [self.patch(lists, name, chunk_bytes) for name in ("FIRST_CHUNK_BYTES", "CHUNK_BYTES")]
        cache: BoundedCache[tuple[int, bool], bytes] = BoundedCache(1 << 20)
        try:
            for _ in range(2):
                chunks = chunks_of(parts, with_sizes, cache)
                self.assertEqual(lines(parts, with_sizes), json.loads(b"".join(chunks)))
                self.assertNotIn(b"", chunks)
        finally:
            for patch in patches:
                patch.restore()

    def test_chunks(self) -> None:
        """The first is small, the later ones are larger, and none holds more than a part above what it should."""
        chunks = chunks_of([objects(n, 100) for n in range(0, 30_000, 100)])
        part_bytes = 9_500
        sizes = [len(chunk) for chunk in chunks]
        for size, wanted in zip(sizes, [FIRST_CHUNK_BYTES << n for n in range(4)], strict=False):
            self.assertTrue(wanted <= size < wanted + part_bytes, sizes)
        self.assertLess(max(sizes), CHUNK_BYTES + part_bytes)
        self.assertLess(len(chunks), 10)

    def test_slow_store(self) -> None:
        """What there is leaves before it makes a chunk when the next part keeps it waiting."""
        ticks = iter(range(1000))
        self.patch(time, "monotonic", lambda: next(ticks) * lists.CHUNK_S * 0.4)
        parts = [objects(n, 1) for n in range(6)]
        chunks = chunks_of(parts)
        self.assertEqual(3, len(chunks))
        self.assertEqual(lines(parts, True), json.loads(b"".join(chunks)))

    def test_kept(self) -> None:
        """JSON is made once for a number and version, and each time where there is no number."""
        made: list[tuple[int | None, bool]] = []
        real = lists._json

        def count(part: Objects, with_sizes: bool) -> bytes:
            made.append((part.cache_key, with_sizes))
            return real(part, with_sizes)

        self.patch(lists, "_json", count)
        cache: BoundedCache[tuple[int, bool], bytes] = BoundedCache(1 << 20)
        parts = [objects(0, 3, 7), objects(3, 3), objects(6, 3, 8)]
        for with_sizes in (True, False):
            made.clear()
            first = chunks_of(parts, with_sizes, cache)
            self.assertEqual([(7, with_sizes), (None, with_sizes), (8, with_sizes)], made)
            made.clear()
            self.assertEqual(first, chunks_of(parts, with_sizes, cache))
            self.assertEqual([(None, with_sizes)], made)
        self.assertEqual(4, len(cache))
        texts = [real(part, with_sizes) for part in (parts[0], parts[2]) for with_sizes in (True, False)]
        self.assertEqual(sum(len(text) + lists._PIECE_BYTES for text in texts), cache.used_bytes)

    def test_bound(self) -> None:
        """What does not fit is made each time, and the list is the same."""
        cache: BoundedCache[tuple[int, bool], bytes] = BoundedCache(10_000)
        parts = [objects(n, 10, n) for n in range(0, 300, 10)]
        for _ in range(3):
            self.assertEqual(lines(parts, True), json.loads(b"".join(chunks_of(parts, True, cache))))
            self.assertTrue(5_000 < cache.used_bytes <= 10_000)


class SendTests(SynchronousTestCase):
    """L{Lists}, through the API."""

    def bench(self, **options: Any) -> Bench:
        """A repository whose lists are kept at once."""
        snapshots = Snapshots(now_ns=lambda: time.time_ns() + 3600 * 10**9, keeps_times=lambda fd: True)
        bench = Bench(self.mktemp(), snapshots=snapshots, **options)
        bench.store.create_repository(())
        return bench

    def fill(self, bench: Bench, count: int) -> set[str]:
        """Objects of C{data}; their names."""
        names = {id_of(b"%d" % number) for number in range(count)}
        for name in names:
            with open(os.path.join(bench.store.path, "data", name[:2], name), "wb") as file:
                file.write(b"x" * (int(name[:4], 16) % 50))
        return names

    def ask(self, bench: Bench, **headers: str) -> bytes:
        """The list of C{data}."""
        head, _, body = bench.ask(request("GET", "/data/", **headers)).received.partition(b"\r\n\r\n")
        return unchunked(body) if b"chunked" in head else body

    def test_repeated(self) -> None:
        """From memory it is the same, in both versions, which name the same objects in the same order."""
        for count in (0, 1, 40, 3000):
            bench = self.bench()
            names = self.fill(bench, count)
            first = self.ask(bench, **ACCEPT_V2)
            self.assertEqual(first, self.ask(bench, **ACCEPT_V2))
            v2 = json.loads(first)
            self.assertEqual(names, {entry["name"] for entry in v2})
            self.assertEqual([int(entry["name"][:4], 16) % 50 for entry in v2], [entry["size"] for entry in v2])
            for _ in range(2):
                self.assertEqual([entry["name"] for entry in v2], json.loads(self.ask(bench)))

    def test_repeated_after_a_change(self) -> None:
        """An object that came is in it, one that went is not."""
        bench = self.bench()
        names = self.fill(bench, 500)
        self.ask(bench, **ACCEPT_V2)
        time.sleep(0.02)
        gone = min(names)
        self.assertEqual([200], bench.ask(request("DELETE", f"/data/{gone}")).statuses())
        self.assertEqual([200], bench.ask(request("POST", f"/data/{id_of(b'new')}", b"new")).statuses())
        for headers in (ACCEPT_V2, {}):
            found = json.loads(self.ask(bench, **headers))
            found_names = {entry["name"] if headers else entry for entry in found}
            self.assertEqual(names - {gone} | {id_of(b"new")}, found_names)

    def test_back_pressure(self) -> None:
        """While a client takes nothing two chunks at most are in memory for it, and the rest is not read."""
        self.patch(lists, "CHUNK_BYTES", FIRST_CHUNK_BYTES)
        pool = HeldPool()
        bench = self.bench(pool=pool)
        names = self.fill(bench, 5000)
        connection = bench.ask(request("GET", "/data/", **ACCEPT_V2))
        pool.release()
        connection.channel.pauseProducing()
        pool.release(20)
        self.assertEqual([], pool.jobs)
        self.assertLess(len(connection.received), 3 * FIRST_CHUNK_BYTES)
        connection.channel.resumeProducing()
        pool.release(30)
        body = unchunked(connection.received.partition(b"\r\n\r\n")[2])
        self.assertEqual(names, {entry["name"] for entry in json.loads(body)})

    def test_lost_client(self) -> None:
        """The directory that was being read is given back when a client goes away."""
        self.patch(lists, "CHUNK_BYTES", FIRST_CHUNK_BYTES)
        self.patch(listing_module, "PART_OBJECTS", 64)
        pool = HeldPool()
        bench = self.bench(pool=pool)
        for number in range(5000):
            with open(os.path.join(bench.store.path, "index", id_of(b"%d" % number)), "wb"):
                pass
        path = os.path.join(bench.store.path, "index")
        before = open_descriptors()
        connection = bench.ask(request("GET", "/index/", **ACCEPT_V2))
        pool.release(2)
        self.assertTrue(bench.store.snapshots.is_drafted(path))
        connection.lose()
        pool.release(3)
        self.assertFalse(bench.store.snapshots.is_drafted(path))
        self.assertEqual([], left_open(before))
        self.assertEqual(["truncated"], [record.ending.value for record in bench.records])

    def test_failure_before_the_first_byte(self) -> None:
        """A real error is 500, and the list is closed; a later one ends the connection (tests/test_api.py)."""
        error = OSError(5, "Input/output error")
        cases: tuple[list[Objects | Exception], ...] = ([error], [objects(0, 3), error])
        for parts in cases:
            bench = self.bench()
            listing = FakeListing(parts)
            bench.store.list_objects = lambda *args: listing  # type: ignore[assignment, method-assign]
            connection = bench.ask(request("GET", "/data/"))
            self.assertEqual([500], connection.statuses())
            self.assertEqual(["open", "close"], listing.calls)

    def test_bound(self) -> None:
        """How much JSON is kept can be said; none is a bound as well."""
        bench = self.bench()
        bench.api._lists = ListResponses(bench.pool, 0)
        names = self.fill(bench, 500)
        for _ in range(2):
            self.assertEqual(names, set(json.loads(self.ask(bench))))
        self.assertEqual(0, bench.api._lists.pieces.used_bytes)
