"""
The contract of stores, for files on disk: with each way of publishing that a file system may or may not take, and
with file
systems that refuse a way only when it is tried.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.storage import publish
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.interface import Listing, Outcome
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher

from .files import FileStoreContract, failing
from .store import ROOT, id_of, key_of, load, save


class WithEverything(FileStoreContract, SynchronousTestCase):
    """A usual Linux file system: unnamed files and hard links."""


class WithoutUnnamedFiles(FileStoreContract, SynchronousTestCase):
    """Named temporary files and hard links (most network file systems; no /proc)."""

    mechanisms = Mechanisms(unnamed=False)


class WithoutHardLinks(FileStoreContract, SynchronousTestCase):
    """Named temporary files and a rename that never replaces."""

    mechanisms = Mechanisms(unnamed=False, hard_links=False)


class WithNothing(FileStoreContract, SynchronousTestCase):
    """Named temporary files and a plain rename under a lock (exFAT, some FUSE and SMB)."""

    mechanisms = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)


def refuse(test: SynchronousTestCase, unnamed_open: int, unnamed_link: int, link: int, noreplace: int) -> None:
    """A file system that answers these calls with these errors; 0 where it takes them."""
    real_open, real_link, real_rename = os.open, os.link, publish.rename_noreplace

    def fake_open(path: Any, flags: int, *args: Any, **named: Any) -> int:
        if unnamed_open and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(unnamed_open, os.strerror(unnamed_open))
        return real_open(path, flags, *args, **named)

    def fake_link(source: str, *args: Any, **named: Any) -> None:
        code = unnamed_link if str(source).startswith("/proc/") else link
        if code:
            raise OSError(code, os.strerror(code))
        real_link(source, *args, **named)

    test.patch(os, "open", fake_open)
    test.patch(os, "link", fake_link)
    test.patch(publish, "rename_noreplace", failing(noreplace) if noreplace else real_rename)


def believed(store: LocalStore) -> Mechanisms:
    """What a store believes of the file system of its data directory."""
    directory_fd = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return store.publisher.mechanisms_on(directory_fd)
    finally:
        os.close(directory_fd)


class RefusedAtRunTime(FileStoreContract, SynchronousTestCase):
    """A file system that has none of the ways and says so only when they are tried."""

    def setUp(self) -> None:
        """Every way but the last is refused, as FUSE file systems do."""
        refuse(self, errno.EOPNOTSUPP, errno.EPERM, errno.EPERM, errno.EINVAL)


class UnnamedCannotBeLinked(FileStoreContract, SynchronousTestCase):
    """
    A file system with unnamed files that cannot be given a name afterwards (a container without /proc, old overlays).
    """

    def setUp(self) -> None:
        """The file is there, its link is not."""
        refuse(self, 0, errno.EPERM, 0, 0)


class RemembersLists(FileStoreContract, SynchronousTestCase):
    """
    Every list from snapshots, also of directories that changed a moment ago: the clock is an hour ahead. The two seconds
    for which the server waits stand for the steps of the kernel's clock, which here pass before each list.
    """

    def make_snapshots(self) -> Snapshots:
        """All that is read is kept."""
        return Snapshots(now_ns=lambda: time.time_ns() + 3600 * 10**9, keeps_times=lambda fd: True)

    def make_store(self, verify: bool = True, group_accessible: bool = False) -> LocalStore:
        """A store that keeps all it reads."""
        store = super().make_store(verify, group_accessible)
        list_objects = store.list_objects

        def after_a_step(*args: Any, **named: Any) -> Listing:
            time.sleep(0.02)
            return list_objects(*args, **named)

        store.list_objects = after_a_step  # type: ignore[method-assign]
        return store


class Fallbacks(SynchronousTestCase):
    """What is refused is left out, and each way falls back to the next."""

    #: errors of: open an unnamed file, link it, link a named file, rename without replacing
    cases = (
        ("nothing refused", (0, 0, 0, 0), Mechanisms(True, True, True)),
        ("no unnamed files", (errno.EOPNOTSUPP, 0, 0, 0), Mechanisms(False, True, True)),
        ("an old kernel takes the flag for a directory's", (errno.EISDIR, 0, 0, 0), Mechanisms(False, True, True)),
        ("unnamed files cannot be linked", (0, errno.EPERM, 0, 0), Mechanisms(False, True, True)),
        ("they lie on another device", (0, errno.EXDEV, 0, 0), Mechanisms(False, True, True)),
        ("no hard links at all", (0, errno.EPERM, errno.EPERM, 0), Mechanisms(False, False, True)),
        ("too many links", (0, errno.EMLINK, errno.EMLINK, 0), Mechanisms(False, False, True)),
        ("nor renameat2", (0, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS), Mechanisms(False, False, False)),
        ("nor its flag", (errno.EOPNOTSUPP, 0, errno.ENOSYS, errno.EINVAL), Mechanisms(False, False, False)),
    )

    def each_case(self, check: Callable[[LocalStore], None]) -> None:
        """Run a check on a store whose file system behaves as each case says."""
        for what, codes, left in self.cases:
            store = LocalStore(self.mktemp(), publisher=Publisher(mechanisms=Mechanisms(True, True, True)))
            refuse(self, *codes)
            store.prepare()
            store.create_repository(ROOT)
            check(store)
            self.assertEqual(left, believed(store), what)

    def test_store(self) -> None:
        """A new object is published, and the next one too."""

        def check(store: LocalStore) -> None:
            for content in (b"one", b"two"):
                self.assertEqual(Outcome.STORED, save(store, ROOT, "data", content))
                self.assertEqual(content, load(store, ROOT, "data", id_of(content)))
                self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, "data", content))
            self.assertEqual([], [name for name in os.listdir(f"{store.path}/.tmp")] if self.has_tmp(store) else [])

        self.each_case(check)

    def test_heal(self) -> None:
        """A damaged object is healed."""

        def check(store: LocalStore) -> None:
            path = os.path.join(store.path, key_of(ROOT, "data", id_of(b"one")))
            with open(path, "wb") as file:
                file.write(b"damaged")
            self.assertEqual(Outcome.HEALED, save(store, ROOT, "data", b"one"))
            self.assertEqual(b"one", load(store, ROOT, "data", id_of(b"one")))
            self.assertEqual(Outcome.STORED, save(store, ROOT, "data", b"two"))

        self.each_case(check)

    @staticmethod
    def has_tmp(store: LocalStore) -> bool:
        """Whether the root repository has a directory for temporary files."""
        return os.path.isdir(f"{store.path}/.tmp")

    def test_other_errors_are_passed_on(self) -> None:
        """An error that says nothing about the file system's abilities changes nothing in what is believed of them."""
        store = LocalStore(self.mktemp())
        store.prepare()
        store.create_repository(ROOT)
        before = believed(store)
        self.patch(os, "link", failing(errno.EIO))
        error = self.assertRaises(OSError, save, store, ROOT, "data", b"one")
        self.assertEqual(errno.EIO, error.errno)
        self.assertEqual(before, believed(store))


class Prepare(SynchronousTestCase):
    """The data directory at the start."""

    def test_makes_the_directory(self) -> None:
        """A data directory that is missing is made, with its parents."""
        path = os.path.join(self.mktemp(), "a", "b")
        LocalStore(path).prepare()
        self.assertEqual([], os.listdir(path))

    def test_leaves_no_trace(self) -> None:
        """To see whether it can write the store leaves nothing, whatever way it writes."""
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            path = self.mktemp()
            LocalStore(path, publisher=Publisher(mechanisms=mechanisms)).prepare()
            self.assertEqual([], os.listdir(path))

    def test_a_file_is_there(self) -> None:
        """A path that is a file, or lies below one, is a line that names it."""
        path = self.mktemp()
        with open(path, "wb"):
            pass
        for below in (path, os.path.join(path, "repositories")):
            error = self.assertRaises(StartError, LocalStore(below).prepare)
            self.assertEqual(
                f"--path: cannot use the data directory {os.path.abspath(below)}: Not a directory", str(error)
            )

    def test_cannot_be_made_or_written(self) -> None:
        """A directory that cannot be made, or not be written, is a line with the system's reason."""
        for call, code in (("mkdir", errno.EACCES), ("open", errno.EROFS), ("open", errno.EACCES)):
            path = self.mktemp()
            patch = self.patch(os, call, failing(code))
            try:
                error = self.assertRaises(StartError, LocalStore(path).prepare)
            finally:
                patch.restore()
            hint = "; use --read-only to serve it anyway" if code == errno.EROFS else ""
            words = f"--path: cannot use the data directory {os.path.abspath(path)}: {os.strerror(code)}{hint}"
            self.assertEqual(words, str(error))

    def test_max_depth(self) -> None:
        """The sweep looks as deep as repositories may lie."""
        for max_depth, left in ((0, 3), (1, 2), (3, 0)):
            root = self.mktemp()
            for folder in ("a", "a/b", "a/b/c"):
                os.makedirs(f"{root}/{folder}/.tmp")
                for name in ("config", f".tmp/{'0' * 32}.upload"):
                    with open(f"{root}/{folder}/{name}", "wb"):
                        pass
            LocalStore(root, max_depth=max_depth).prepare()
            self.assertEqual(left, sum(name.endswith(".upload") for _, _, files in os.walk(root) for name in files))

    def test_not_ours(self) -> None:
        """What others keep in folders of that name stays, in the data directory too, also where no file can be unnamed."""
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            root = self.mktemp()
            os.makedirs(f"{root}/x/.tmp")
            os.makedirs(f"{root}/.tmp")
            for path in (
                f"{root}/x/.tmp/precious",
                f"{root}/x/.tmp/{'0' * 32}.upload",
                f"{root}/.tmp/{'0' * 32}.upload",
            ):
                with open(path, "wb"):
                    pass
            os.makedirs(f"{root}/y/.tmp")
            LocalStore(root, publisher=Publisher(mechanisms=mechanisms)).prepare()
            self.assertEqual(3, sum(len(files) for _, _, files in os.walk(root)))
            self.assertTrue(os.path.isdir(f"{root}/y/.tmp"))
