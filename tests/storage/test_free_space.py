"""
What must stay free of the file system: whom it stops, and that nothing is left of uploads that have ended, however they did.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Forbidden, HashMismatch, InsufficientStorage, NoSuchRepository
from resticserver.sizes import FreeSpace, format_size
from resticserver.storage import upload as upload_module
from resticserver.storage.free_space import FreeSpaceGuard, Sent
from resticserver.storage.local import LocalStore

from ..contract.store import id_of, save
from ..support.memory import Bench, HeldPool, request

MIB = 1 << 20
GIB = 1 << 30
#: An upload may be taken for so much longer, since files have whole blocks.
BLOCK = 4096
ROOT = ()


class RoomCase(SynchronousTestCase):
    """A file system of 100 GiB."""

    def setUp(self) -> None:
        self.total = 100 * GIB
        self.free = 10 * GIB
        self.patch(os, "fstatvfs", self.fstatvfs)

    def fstatvfs(self, fd: int) -> Any:
        """What the file system says: what is free for root only is not free."""
        return SimpleNamespace(
            f_frsize=512,
            f_bsize=4096,
            f_blocks=self.total // 512,
            f_bavail=self.free // 512,
            f_bfree=self.total // 512,
            f_files=100,
            f_favail=50,
        )


class CheckTests(RoomCase):
    """L{FreeSpaceGuard.check}."""

    def admits(self, guard: FreeSpaceGuard, above: bool = False) -> bool:
        """Whether there is room."""
        try:
            guard.check(0, above)
        except InsufficientStorage:
            return False
        return True

    def test_bounds(self) -> None:
        """By bytes and per cent, to the byte that the file system tells; with the reserve one per cent of it, or a GiB."""
        for min_free, total, free, bulk, locks in (
            (FreeSpace(5 * GIB), 100 * GIB, 5 * GIB, True, True),
            (FreeSpace(5 * GIB), 100 * GIB, 5 * GIB - 512, False, True),
            (FreeSpace(5 * GIB), 100 * GIB, 4 * GIB, False, True),
            (FreeSpace(5 * GIB), 100 * GIB, 4 * GIB - 512, False, False),
            (FreeSpace(5 * GIB), 1000 * GIB, 4 * GIB, False, True),
            (FreeSpace(5 * GIB), 1000 * GIB, 4 * GIB - 512, False, False),
            (FreeSpace(percent=5), 100 * GIB, 5 * GIB, True, True),
            (FreeSpace(percent=5), 100 * GIB, 5 * GIB - 512, False, True),
            (FreeSpace(percent=5), 100 * GIB, 4 * GIB, False, True),
            (FreeSpace(percent=5), 100 * GIB, 4 * GIB - 512, False, False),
            (FreeSpace(percent=5), 10 * GIB, GIB // 2, True, True),
            (FreeSpace(percent=5), 10 * GIB, GIB // 2 - 512, False, True),
            (FreeSpace(512), 100 * GIB, 0, False, True),
            (FreeSpace(0), 100 * GIB, 0, True, True),
        ):
            self.total, self.free = total, free
            guard = FreeSpaceGuard(min_free)
            self.assertEqual((bulk, locks), (self.admits(guard), self.admits(guard, True)), (min_free, total, free))

    def test_what_comes_counts(self) -> None:
        """What is on its way is as good as written, until it is written or will not be."""
        guard = FreeSpaceGuard(FreeSpace(GIB))
        self.free = 3 * GIB
        guard.coming(2 * GIB)
        self.assertTrue(self.admits(guard))
        guard.coming(1)
        self.assertFalse(self.admits(guard))
        self.assertTrue(self.admits(guard, True))
        guard.coming(-1)
        self.assertTrue(self.admits(guard))

    def test_words(self) -> None:
        """What is said."""
        self.free = 512 * MIB
        for min_free, words in (
            (FreeSpace(GIB), "1 GiB of the server's disk must stay free (512 MiB are free)"),
            (FreeSpace(percent=5), "5 GiB of the server's disk must stay free (512 MiB are free)"),
        ):
            error = self.assertRaises(InsufficientStorage, FreeSpaceGuard(min_free).check, 0, False)
            self.assertEqual(words, error.message)

    def test_words_for_an_upload(self) -> None:
        """
        What is left for an upload is what is above that which must stay free, without what others have still to write, and
        with what it has written itself.
        """
        self.free = 3 * GIB
        guard = FreeSpaceGuard(FreeSpace(GIB))
        guard.coming(GIB + 7 * GIB)
        for above, sent, words in (
            (False, Sent(9 * GIB, True, 7 * GIB, 2 * GIB), "upload of 9 GiB, 3 GiB left"),
            (False, Sent(2 * GIB, False, 0, 2 * GIB), "upload of 2 GiB so far, 0 bytes left"),
            (True, Sent(9 * GIB, True, 7 * GIB, 0), "upload of 9 GiB, 1.99 GiB left"),
        ):
            error = self.assertRaises(InsufficientStorage, guard.check, 0, above, sent)
            self.assertEqual("min-free", error.cause)
            if not above:
                self.assertEqual(f"1 GiB of the server's disk must stay free: {words}", error.message)
            self.assertRegex(error.message, r"^1 GiB of the server's disk must stay free: upload of .* left$")

    def test_the_files_own(self) -> None:
        """It is the file system of the descriptor that is asked."""
        asked: list[int] = []

        def fstatvfs(fd: int) -> Any:
            asked.append(fd)
            return self.fstatvfs(fd)

        self.patch(os, "fstatvfs", fstatvfs)
        FreeSpaceGuard(FreeSpace(GIB)).check(7, False)
        self.assertEqual([7], asked)


class UploadTests(RoomCase):
    """Uploads of a store with C{--min-free 1GiB}."""

    def setUp(self) -> None:
        super().setUp()
        self.store = LocalStore(self.mktemp(), min_free=FreeSpace(GIB))
        self.store.prepare()
        self.store.create_repository(ROOT)

    def coming(self) -> int:
        """What is believed to be on its way."""
        assert self.store.free_space is not None
        return self.store.free_space._coming_bytes

    def assert_coming(self, size_bytes: int) -> None:
        """So much is on its way."""
        self.assertLessEqual(size_bytes, self.coming())
        self.assertLessEqual(self.coming(), size_bytes + BLOCK)

    def upload(self, content: bytes, length: int | None, kind: str = "data", name: str = "", piece: int = MIB) -> None:
        """An upload as the routes make it, in pieces."""
        upload = self.store.upload(ROOT, kind, name or id_of(content), length)
        try:
            upload.open()
            for first in range(0, len(content), piece):
                upload.write([content[first : first + piece]])
            upload.commit()
        except BaseException:
            upload.abort()
            upload.abort()
            raise

    def test_nothing_leaks(self) -> None:
        """However an upload ends, with or without a known length, nothing of it is counted as on its way any more."""
        content = os.urandom(9 * MIB)

        def broken(*_: Any) -> Any:
            raise OSError(errno.EIO, "broken")

        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "full")

        def with_patch(
            name: str, value: Callable[..., Any], call: Callable[[], None], owner: Any = upload_module
        ) -> None:
            patch = self.patch(owner, name, value)
            try:
                call()
            finally:
                patch.restore()

        for length in (len(content), None):
            ends: list[tuple[str, type[Exception] | None, Callable[[], None]]] = [
                ("stored", None, lambda: self.upload(content, length)),
                ("there already", None, lambda: self.upload(content, length)),
                ("another hash", HashMismatch, lambda: self.upload(content, length, name=id_of(b"x"))),
                (
                    "another hash of one that is there",
                    Forbidden,
                    lambda: self.upload(content + b"x", length, name=id_of(content)),
                ),
                ("no such repository", NoSuchRepository, lambda: self.no_repository(content, length)),
                (
                    "write fails",
                    OSError,
                    lambda: with_patch("_write_all", broken, lambda: self.upload(content, length)),
                ),
                (
                    "disk is full",
                    InsufficientStorage,
                    lambda: with_patch("_write_all", full, lambda: self.upload(content, length)),
                ),
                (
                    "no temporary file",
                    OSError,
                    lambda: with_patch("temporary", broken, lambda: self.upload(content, length), self.store.publisher),
                ),
                (
                    "fsync fails",
                    OSError,
                    lambda: with_patch("fsync", broken, lambda: self.upload(content, length), self.store.publisher),
                ),
                (
                    "publish fails",
                    OSError,
                    lambda: with_patch(
                        "publish", broken, lambda: self.upload(b"q" + content, length), self.store.publisher
                    ),
                ),
                ("no room", InsufficientStorage, lambda: self.without_room(lambda: self.upload(content, length))),
                ("no room later", InsufficientStorage, lambda: self.room_goes(content, length)),
                (
                    "statvfs fails",
                    OSError,
                    lambda: with_patch("fstatvfs", broken, lambda: self.upload(content, length), os),
                ),
                ("shorter than it said", None, lambda: self.upload(b"short", length)),
                ("longer than it said", None, lambda: self.upload(content[:-1], 5)),
                ("never begun", None, lambda: self.store.upload(ROOT, "data", id_of(content), length).abort()),
                ("aborted", None, lambda: self.aborted(content, length)),
            ]
            for how, error, call in ends:
                if error is None:
                    call()
                else:
                    self.assertRaises(error, call)
                self.assertEqual(0, self.coming(), (how, length))

    def no_repository(self, content: bytes, length: int | None) -> None:
        """A repository that is not there."""
        upload = self.store.upload(("nobody",), "data", id_of(content), length)
        try:
            upload.open()
        finally:
            upload.abort()

    def aborted(self, content: bytes, length: int | None) -> None:
        """A client that goes half way."""
        upload = self.store.upload(ROOT, "data", id_of(content), length)
        upload.open()
        upload.write([content[:100]])
        if length is not None:
            self.assert_coming(length - 100)
        upload.abort()
        upload.abort()

    def without_room(self, call: Callable[[], None]) -> None:
        """The disk has less than must stay free."""
        self.free, before = GIB - 512, self.free
        try:
            call()
        finally:
            self.free = before

    def room_goes(self, content: bytes, length: int | None) -> None:
        """Others fill the disk while an upload comes."""
        before = self.free
        upload = self.store.upload(ROOT, "data", id_of(content), length)
        try:
            upload.open()
            upload.write([content[:MIB]])
            self.free = GIB // 2
            for first in range(MIB, len(content), MIB):
                upload.write([content[first : first + MIB]])
        finally:
            self.free = before
            upload.abort()

    def test_known_length(self) -> None:
        """An upload that would not fit does not begin, and two that fit one by one do not both begin."""
        self.free = GIB + 10 * MIB
        one = self.store.upload(ROOT, "data", id_of(b"1"), 8 * MIB)
        one.open()
        other = self.store.upload(ROOT, "data", id_of(b"2"), 8 * MIB)
        self.assertRaises(InsufficientStorage, other.open)
        other.abort()
        one.abort()
        other = self.store.upload(ROOT, "data", id_of(b"2"), 10 * MIB - BLOCK)
        other.open()
        other.abort()
        more = self.store.upload(ROOT, "data", id_of(b"2"), 10 * MIB + 1)
        self.assertRaises(InsufficientStorage, more.open)
        more.abort()

    def test_what_was_written_does_not_count_twice(self) -> None:
        """What is written the file system counts itself."""
        upload = self.store.upload(ROOT, "data", id_of(b"1"), 8 * MIB)
        upload.open()
        for left in range(7, -1, -1):
            upload.write([b"x" * MIB])
            self.assert_coming(left * MIB)
        upload.abort()

    def test_chunked(self) -> None:
        """One of unknown length is stopped when it would take what must stay free."""
        self.free = GIB + MIB // 2
        upload = self.store.upload(ROOT, "data", id_of(b"1"))
        upload.open()
        upload.write([b"x" * (MIB // 2)])
        self.free = GIB
        self.assertRaises(InsufficientStorage, upload.write, [b"x"])
        upload.abort()

    def test_reserve(self) -> None:
        """Locks and indexes may use one per cent of the disk, at most a GiB: else nobody could prune it."""
        self.free = GIB - MIB
        for kind in ("data", "keys", "snapshots"):
            self.assertRaises(InsufficientStorage, save, self.store, ROOT, kind, b"x")
        self.assertRaises(InsufficientStorage, save, self.store, ROOT, "config", b"x", "config")
        for kind in ("locks", "index"):
            save(self.store, ROOT, kind, b"x")

    def test_removals(self) -> None:
        """To remove and to read needs no room."""
        save(self.store, ROOT, "data", b"x")
        self.free = 0
        self.assertEqual(-1, self.store.remove_object(ROOT, "data", id_of(b"x")).objects)

    def test_without(self) -> None:
        """Without C{--min-free} nobody asks."""
        store = LocalStore(self.mktemp())
        store.prepare()
        store.create_repository(ROOT)
        self.patch(os, "fstatvfs", lambda fd: self.fail("asked"))
        save(store, ROOT, "data", b"x")


class RoutesTests(RoomCase):
    """What clients see."""

    def start(self, **options: Any) -> FreeSpaceGuard:
        """A site whose disk has a GiB that must stay free."""
        self.bench = Bench(self.mktemp(), min_free=FreeSpace(GIB), **options)
        self.bench.store.create_repository(ROOT)
        assert self.bench.store.free_space is not None
        return self.bench.store.free_space

    def test_507(self) -> None:
        """It is 507 with the reason, for small and large bodies, and nothing leaks."""
        guard = self.start()
        self.free = GIB - MIB
        for length in (1, 70_000, 3 * MIB):
            body = b"x" * length
            connection = self.bench.ask(request("POST", f"/data/{id_of(body)}", body))
            self.assertEqual([507], connection.statuses())
            words = f"1 GiB of the server's disk must stay free: upload of {format_size(length)}, 0 bytes left"
            self.assertIn(words.encode(), connection.received)
            self.assertEqual(0, guard._coming_bytes)

    def test_clients_that_go(self) -> None:
        """Clients that go at any moment, with jobs in the pool."""
        for stage in range(4):
            pool = HeldPool()
            guard = self.start(pool=pool)
            for chunked in (False, True):
                body = b"x" * 300_000
                connection = self.bench.connect()
                if chunked:
                    connection.send(
                        f"POST /data/{id_of(body)} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
                        b"%x\r\n" % 200_000 + body[:200_000] + b"\r\n",
                    )
                else:
                    connection.send(request("POST", f"/data/{id_of(body)}", body)[:-100_000])
                pool.release(stage)
                connection.lose()
                pool.release(10)
                self.assertEqual(0, guard._coming_bytes, (stage, chunked))
                self.assertEqual([], pool.jobs)
