"""
What a store of files must do beyond L{tests.contract.store.StoreContract}: modes, durability and its order, full
disks, what
else may stand in a directory, what a killed server leaves.

Faults come from replaced calls of C{os}, each for one test; nothing here knows how the store is built inside.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs

from resticserver.errors import Forbidden, HashMismatch, InsufficientStorage, NotFound
from resticserver.names import TYPES
from resticserver.sizes import Amount
from resticserver.storage import publish
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.interface import NotDurable, Outcome, RepositoryStore
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher

from ..support.descriptors import left_open, open_descriptors
from ..support.scratch import scratch_directory
from .store import DEEP, ROOT, StoreContract, at_once, entries, id_of, key_of, lines_of, load, save, write_all

NAME = id_of(b"a pack")
#: What an upload is called that has a name.
UPLOAD = "0123456789abcdef" * 2 + ".upload"


def failing(code: int) -> Callable[..., Any]:
    """A system call that always fails."""

    def fail(*args: object, **named: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


class Fsyncs:
    """
    Stands where C{os.fsync} is and notes, call by call, which file or directory was made durable and which inode a
    watched path had at that moment.
    """

    def __init__(self, watched: Path) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self._watched = watched
        self._fsync = os.fsync

    def __call__(self, fd: int) -> None:
        self._fsync(fd)
        self.calls.append((os.fstat(fd).st_ino, inode_of(self._watched)))


def inode_of(path: Path) -> int | None:
    """The inode number of what has this name now, if anything has."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def mode_of(path: Path) -> int:
    """The permission bits of a path, set-id bits included."""
    return stat.S_IMODE(path.lstat().st_mode)


class FileStoreContract(StoreContract):
    """
    The checks for L{LocalStore}, with one choice of ways to publish.
    """

    mechanisms = Mechanisms()

    _root: Path | None = None

    @property
    def root(self) -> Path:
        """The data directory of this test."""
        if self._root is None:
            # In memory, where there is room: a repository is 261 directories, made and synced a thousand times.
            self._root = scratch_directory(self) / "data"
        return self._root

    def make_store(self, verify: bool = True, group_accessible: bool = False) -> LocalStore:
        """A prepared store over this test's data directory."""
        modes = (0o660, 0o770) if group_accessible else (0o600, 0o700)
        publisher = Publisher(*modes, self.mechanisms)
        store = LocalStore(str(self.root), verify=verify, publisher=publisher, snapshots=self.make_snapshots())
        store.prepare()
        return store

    def make_snapshots(self) -> Snapshots:
        """What a store keeps of its lists."""
        return Snapshots()

    def contents(self) -> dict[str, bytes]:
        """Every file below the data directory."""
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.files()}

    def plant(self, key: str, content: bytes) -> None:
        """A file under a key."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def files(self) -> list[Path]:
        """Whatever is no directory below the data directory, but for the volume's marker (tests/test_volume.py)."""
        marker = self.root / ".rest-server" / "id"
        found = [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]
        return [path for path in found if path != marker]

    def path_of(self, kind: str, name: str) -> Path:
        """Where an object of the root repository lies."""
        return self.root / key_of(ROOT, kind, name)

    @contextmanager
    def no_descriptor_left(self) -> Iterator[None]:
        """Whatever happens inside, every descriptor is given back."""
        before = open_descriptors()
        yield
        self.assertEqual([], left_open(before))

    # --- the data directory

    def test_layout(self) -> None:
        """
        A new repository has the directories of restic's local backend, all 256 of C{data} among them, and no file.
        """
        store = self.make_store()
        store.create_repository(DEEP)
        repository = self.root / "alice/laptop"
        self.assertEqual(sorted(TYPES), sorted(path.name for path in repository.iterdir()))
        self.assertEqual(
            [f"{n:02x}" for n in range(256)], sorted(path.name for path in (repository / "data").iterdir())
        )
        self.assertEqual([], self.files())

    def test_missing_object_directory_is_made(self) -> None:
        """A repository that lacks the directory of an object gets it by the upload."""
        store = self.store_with()
        for kind in TYPES:
            shutil.rmtree(self.root / kind)
        for kind in TYPES:
            self.assertEqual(Outcome.STORED, save(store, ROOT, kind, b"a pack"))
            self.assertEqual(b"a pack", load(store, ROOT, kind, NAME))

    def test_missing_object_directory_made_by_many(self) -> None:
        """Several uploads may find the same directory missing."""
        store = self.store_with()
        shutil.rmtree(self.root / "data")
        contents = [b"%d" % number for number in range(8)]
        outcomes = at_once([partial(save, store, ROOT, "data", content) for content in contents])
        self.assertEqual([Outcome.STORED] * 8, outcomes)

    def test_missing_type_directory(self) -> None:
        """A list is NotFound only where the directory of its type is missing; an empty one is an empty list."""
        store = self.store_with()
        shutil.rmtree(self.root / "locks")
        for child in (self.root / "data").iterdir():
            child.rmdir()
        for with_sizes in (True, False):
            with self.assertRaises(NotFound):
                entries(store, ROOT, "locks", with_sizes)
            self.assertEqual([], entries(store, ROOT, "data", with_sizes))
            self.assertEqual([], entries(store, ROOT, "keys", with_sizes))

    def test_inner_directory_vanishes_while_listed(self) -> None:
        """One of C{data}'s directories that goes away while the list is read does not make it fail."""
        for with_sizes in (True, False):
            store = self.store_with()
            for number in range(20):
                save(store, ROOT, "data", b"%d" % number)
            listing = store.list_objects(ROOT, "data", with_sizes)
            listing.open()
            reading = lines_of(listing)
            first = next(reading).name
            for directory in (self.root / "data").iterdir():
                if directory.name != first[:2]:
                    shutil.rmtree(directory)
            listed = [first, *(entry.name for entry in reading)]
            listing.close()
            self.assertEqual({first[:2]}, {name[:2] for name in listed})

    def test_list_without_its_directory_half_way(self) -> None:
        """Also when the whole repository goes away, its volume being there, the list comes to its end."""
        store = self.store_with()
        for number in range(20):
            save(store, ROOT, "data", b"%d" % number)
        listing = store.list_objects(ROOT, "data", True)
        listing.open()
        reading = lines_of(listing)
        next(reading)
        for kind in TYPES:
            shutil.rmtree(self.root / kind)
        self.assertEqual([], list(reading))
        listing.close()

    def test_directories_named_like_objects(self) -> None:
        """A directory under an object's name is no object: not listed, not found, not replaced, not removed."""
        store = self.store_with()
        for kind in TYPES:
            directory = self.path_of(kind, NAME)
            directory.mkdir()
            (directory / "inside").write_bytes(b"foreign")
            for with_sizes in (True, False):
                self.assertEqual([], entries(store, ROOT, kind, with_sizes))
            self.not_an_object(store, kind)
            with self.assertRaises(OSError):
                store.remove_object(ROOT, kind, NAME)
            self.assertEqual(b"foreign", (directory / "inside").read_bytes())

    def test_fifo_named_like_an_object(self) -> None:
        """A FIFO under an object's name makes nothing wait: it is no object."""

        def waits(*_: object) -> None:
            raise AssertionError("it waits for the other end of the FIFO")

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, waits))
        self.addCleanup(signal.alarm, 0)
        signal.alarm(60)
        store = self.store_with()
        for kind in TYPES:
            os.mkfifo(self.path_of(kind, NAME))
            for with_sizes in (True, False):
                self.assertEqual([], entries(store, ROOT, kind, with_sizes))
            self.not_an_object(store, kind)

    def test_dangling_link_named_like_an_object(self) -> None:
        """A symbolic link to nothing under an object's name is no object either."""
        store = self.store_with()
        self.path_of("keys", NAME).symlink_to("nowhere")
        for with_sizes in (True, False):
            self.assertEqual([], entries(store, ROOT, "keys", with_sizes))
        self.not_an_object(store, "keys")

    def not_an_object(self, store: RepositoryStore, kind: str) -> None:
        """
        There is something under the name, and it cannot be taken for an object; an upload fails and leaves nothing.
        """
        before = sorted(self.files())
        with self.no_descriptor_left():
            with self.assertRaises(NotFound):
                load(store, ROOT, kind, NAME)
            with self.assertRaises(NotFound):
                store.size_of(ROOT, kind, NAME)
            with self.assertRaises(OSError):
                save(store, ROOT, kind, b"a pack")
        self.assertEqual(before, sorted(self.files()))

    # --- modes

    def test_modes(self) -> None:
        """Files are 0600 and directories 0700, or 0660 and 0770: exactly, whatever the umask."""
        for umask in (0o000, 0o022, 0o077):
            for group_accessible, file_mode, directory_mode in ((False, 0o600, 0o700), (True, 0o660, 0o770)):
                self._root = None
                previous = os.umask(umask)
                try:
                    store = self.make_store(group_accessible=group_accessible)
                    store.create_repository(DEEP)
                    save(store, DEEP, "data", b"a pack")
                    save(store, DEEP, "locks", b"a lock")
                    save(store, DEEP, "config", b"a config", "config")
                    shutil.rmtree(self.root / "alice/laptop/index")
                    save(store, DEEP, "index", b"an index")
                    self.plant(key_of(DEEP, "keys", id_of(b"a key")), b"damaged")
                    self.assertEqual(Outcome.HEALED, save(store, DEEP, "keys", b"a key"))
                finally:
                    os.umask(previous)
                for path in (self.root, *self.root.rglob("*")):
                    wanted = directory_mode if path.is_dir() else file_mode
                    self.assertEqual(oct(wanted), oct(mode_of(path)), f"{path}, umask {umask:03o}")

    def test_shared_by_a_group(self) -> None:
        """
        Below a set-group-id directory, which is how people share one, new directories are such too: else only
        the first level would be the group's.
        """
        self.root.mkdir()
        self.root.chmod(0o2770)
        store = self.make_store(group_accessible=True)
        store.create_repository(DEEP)
        shutil.rmtree(self.root / "alice/laptop/index")
        save(store, DEEP, "index", b"an index")
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir():
                self.assertEqual(oct(0o2770), oct(mode_of(path)), path)
            else:
                self.assertEqual(oct(0o660), oct(mode_of(path)), path)

    def test_modes_while_written(self) -> None:
        """The temporary file has its final mode before the first byte is in it, and never had more."""
        modes: list[int] = []
        writev, fchmod = os.writev, os.fchmod

        def noting_writev(fd: int, buffers: Sequence[bytes]) -> int:
            modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
            return writev(fd, buffers)

        def noting_fchmod(fd: int, mode: int) -> None:
            self.assertEqual(0, stat.S_IMODE(os.fstat(fd).st_mode) & ~0o600)
            self.assertEqual(0, os.fstat(fd).st_size)
            fchmod(fd, mode)

        self.patch(os, "writev", noting_writev)
        self.patch(os, "fchmod", noting_fchmod)
        for umask in (0o000, 0o077):
            for group_accessible, mode in ((False, 0o600), (True, 0o660)):
                self._root = None
                previous = os.umask(umask)
                try:
                    store = self.make_store(group_accessible=group_accessible)
                    store.create_repository(ROOT)
                    del modes[:]
                    save(store, ROOT, "data", b"a pack")
                finally:
                    os.umask(previous)
                self.assertEqual([mode], modes)

    # --- a name that is taken

    def test_unchanged_keeps_the_file(self) -> None:
        """The same bytes again leave the very file in its place; that of a refused upload too."""
        for verify in (True, False):
            store = self.store_with(verify=verify)
            save(store, ROOT, "data", b"a pack")
            save(store, ROOT, "config", b"a config", "config")
            pack, config = self.path_of("data", NAME), self.root / "config"
            before = (pack.stat(), config.stat())
            self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, "data", b"a pack"))
            self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, "config", b"a config", "config"))
            with self.assertRaises(Forbidden):
                save(store, ROOT, "data", b"other bytes", NAME)
            with self.assertRaises(Forbidden):
                save(store, ROOT, "config", b"another config", "config")
            after = (pack.stat(), config.stat())
            for old, new in zip(before, after, strict=True):
                self.assertEqual((old.st_ino, old.st_mtime_ns, 1), (new.st_ino, new.st_mtime_ns, new.st_nlink))

    def test_healing_is_atomic(self) -> None:
        """
        A damaged object is replaced in one step: at every moment its name is there, with the old or the new bytes.
        """
        store = self.store_with()
        path = self.path_of("data", NAME)
        self.plant(key_of(ROOT, "data", NAME), b"damaged")
        seen: list[bytes] = []

        def looking(name: str) -> None:
            call = getattr(os, name)

            def look(*args: Any, **named: Any) -> Any:
                seen.append(path.read_bytes())
                result = call(*args, **named)
                seen.append(path.read_bytes())
                return result

            self.patch(os, name, look)

        for name in ("link", "unlink", "rename", "fsync", "writev", "fchmod"):
            looking(name)
        self.assertEqual(Outcome.HEALED, save(store, ROOT, "data", b"a pack"))
        self.assertEqual({b"damaged", b"a pack"}, set(seen))
        self.assertEqual(sorted(seen, reverse=True), seen)  # first all the old, then all the new

    def test_removed_between_attempt_and_look(self) -> None:
        """A name that was taken and is free again when it is looked at is tried again."""
        store = self.store_with()
        publisher = store.publisher  # type: ignore[attr-defined]
        publish = publisher.publish
        refusals = iter((True, True, False))

        def taken_at_first(file: Any, name: str) -> None:
            if next(refusals):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            publish(file, name)

        self.patch(publisher, "publish", taken_at_first)
        self.assertEqual(Outcome.STORED, save(store, ROOT, "locks", b"a lock"))
        self.assertEqual({f"locks/{id_of(b'a lock')}": b"a lock"}, self.contents())

    # --- failures

    def test_no_descriptor_is_left(self) -> None:
        """However an upload, a load or a list ends, its descriptors are given back."""
        store = self.store_with()
        save(store, ROOT, "data", b"a pack")
        with self.no_descriptor_left():
            for number in range(3):
                save(store, ROOT, "data", b"%d" % number)
                save(store, ROOT, "data", b"a pack")
                self.plant(key_of(ROOT, "data", id_of(b"%d" % number)), b"damaged")
                save(store, ROOT, "data", b"%d" % number)
                for error, name in ((HashMismatch, id_of(b"free")), (Forbidden, NAME)):
                    with self.assertRaises(error):
                        save(store, ROOT, "data", b"other bytes", name)
                with self.assertRaises(NotFound):
                    save(store, ("nobody",), "data", b"a pack")
                upload = store.upload(ROOT, "data", id_of(b"aborted"))
                upload.open()
                upload.abort()
                entries(store, ROOT, "data")
                listing = store.list_objects(ROOT, "data", True)
                listing.open()
                reading = lines_of(listing)
                next(reading)
                listing.close()
                del reading
                load(store, ROOT, "data", NAME)

    def test_full_disk_while_written(self) -> None:
        """
        A disk or a disk quota that is full half-way is InsufficientStorage; nothing stays, and what is there stays.
        """
        for code in (errno.ENOSPC, errno.EDQUOT):
            store = self.store_with()
            save(store, ROOT, "keys", b"a key")
            before = self.contents()
            with self.no_descriptor_left():
                for repository, kind, name in ((ROOT, "data", NAME), (ROOT, "config", "config")):
                    upload = store.upload(repository, kind, name)
                    upload.open()
                    upload.write([b"a "])
                    patch = self.patch(os, "writev", failing(code))
                    with self.assertRaises(InsufficientStorage):
                        upload.write([b"pack"])
                    upload.abort()
                    patch.restore()
            self.assertEqual(before, self.contents())
            self.assertEqual(Outcome.STORED, save(store, ROOT, "data", f"{code}".encode()))
            store.remove_object(ROOT, "data", id_of(f"{code}".encode()))

    def test_full_disk_at_any_call(self) -> None:
        """The same wherever else a full disk shows itself: at the temporary file, at the fsync, at the name."""
        for code in (errno.ENOSPC, errno.EDQUOT):
            for call in ("open", "writev", "fsync", "link", "fchmod"):
                if call == "link" and not self.mechanisms.hard_links:
                    continue
                store = self.store_with()
                patch = self.patch(os, call, failing_for_files(call, code))
                try:
                    with self.no_descriptor_left(), self.assertRaises(InsufficientStorage, msg=f"{call} {code}"):
                        save(store, ROOT, "data", b"a pack")
                finally:
                    patch.restore()
                self.assertEqual({}, self.contents(), call)

    def test_full_disk_while_healing(self) -> None:
        """A full disk leaves a damaged object as it was."""
        store = self.store_with()
        self.plant(key_of(ROOT, "data", NAME), b"damaged")
        patch = self.patch(os, "rename", failing(errno.ENOSPC))
        try:
            with self.assertRaises(InsufficientStorage):
                save(store, ROOT, "data", b"a pack")
        finally:
            patch.restore()
        self.assertEqual({key_of(ROOT, "data", NAME): b"damaged"}, self.contents())
        self.assertEqual(Outcome.HEALED, save(store, ROOT, "data", b"a pack"))

    def test_full_disk_at_create(self) -> None:
        """
        No room for a new repository's directories is InsufficientStorage too; a later attempt makes what is missing.
        """
        store = self.make_store()
        patch = self.patch(os, "mkdir", failing(errno.ENOSPC))
        try:
            with self.assertRaises(InsufficientStorage):
                store.create_repository(DEEP)
        finally:
            patch.restore()
        store.create_repository(DEEP)
        self.assertEqual([], entries(store, DEEP, "data"))

    def test_full_disk_at_start(self) -> None:
        """A server starts on a full disk, since it can be read and things can be removed; it says so."""
        self.make_store()
        patch = self.patch(os, "open", failing_for_files("open", errno.ENOSPC))
        try:
            with capturedLogs() as events:
                self.make_store()
        finally:
            patch.restore()
        self.assertIn("full", "".join(str(event["log_format"]) for event in events))

    def test_short_writes(self) -> None:
        """A system that takes only a part of what is written loses nothing."""
        writev, write = os.writev, os.write
        self.patch(os, "writev", lambda fd, buffers: writev(fd, [b"".join(buffers)[:3]]))
        self.patch(os, "write", lambda fd, buffer: write(fd, bytes(buffer)[:2]))
        store = self.store_with()
        content = b"0123456789" * 3
        outcome = write_all(store, ROOT, "data", id_of(content), [content[:7], b"", content[7:8], content[8:]])
        self.assertEqual(Outcome.STORED, outcome)
        self.assertEqual(content, load(store, ROOT, "data", id_of(content)))

    def test_permission_error_is_not_not_found(self) -> None:
        """What may not be looked at is an error of the server, never "not there": restic would believe it."""
        store = self.store_with()
        save(store, ROOT, "locks", b"a lock")
        name = id_of(b"a lock")
        looks: tuple[tuple[str, Callable[[], object]], ...] = (
            ("stat", lambda: store.size_of(ROOT, "locks", name)),
            ("open", lambda: load(store, ROOT, "locks", name)),
            ("open", lambda: save(store, ROOT, "locks", b"another lock")),
            ("scandir", lambda: entries(store, ROOT, "locks")),
            ("scandir", lambda: entries(store, ROOT, "data", with_sizes=False)),
            ("unlink", lambda: store.remove_object(ROOT, "locks", name)),
        )
        for code in (errno.EACCES, errno.EIO):
            for call, look in looks:
                patch = self.patch(os, call, failing(code))
                try:
                    error = self.assertRaises(OSError, look)
                finally:
                    patch.restore()
                self.assertEqual(code, error.errno, call)
        self.assertEqual({f"locks/{name}": b"a lock"}, self.contents())

    def test_entry_that_cannot_be_looked_at(self) -> None:
        """An entry that is there and cannot be looked at fails the list: one that is short would be believed."""
        store = self.store_with()
        loop = self.path_of("locks", NAME)
        loop.symlink_to(loop.name)
        error = self.assertRaises(OSError, entries, store, ROOT, "locks")
        self.assertEqual(errno.ELOOP, error.errno)

    def test_name_cannot_be_removed(self) -> None:
        """
        A temporary name that cannot be removed once the object has its own: the object is stored and counts, as all can see
        it, and every descriptor is given back.
        """
        store = self.store_with()
        with self.no_descriptor_left():
            patch = self.patch(os, "unlink", failing(errno.EIO))
            try:
                with capturedLogs():
                    for number in range(8):
                        upload = store.upload(ROOT, "data", id_of(b"%d" % number))
                        upload.open()
                        upload.write([b"%d" % number])
                        self.assertEqual(Outcome.STORED, upload.commit())
                        self.assertEqual(Amount(1, 1), upload.change)
            finally:
                patch.restore()
        self.assertEqual(8, len(entries(store, ROOT, "data")))
        self.make_store()
        self.assertEqual({key_of(ROOT, "data", id_of(b"%d" % number)) for number in range(8)}, set(self.contents()))

    def test_published_and_failed(self) -> None:
        """Once an object can be seen it counts, whatever fails then."""
        store = self.store_with()
        upload = store.upload(ROOT, "data", NAME)
        upload.open()
        upload.write([b"a pack"])
        real = os.fsync

        def fsync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        patch = self.patch(os, "fsync", fsync)
        try:
            with self.no_descriptor_left():
                self.assertRaises(OSError, save, store, ROOT, "keys", b"a key")
            self.assertRaises(OSError, upload.commit)
            upload.abort()
        finally:
            patch.restore()
        if upload.change != Amount():
            self.assertEqual(Amount(6, 1), upload.change)
        self.assertEqual(upload.change.objects, len(entries(store, ROOT, "data")))

    def test_failing_looks_leave_nothing_open(self) -> None:
        """A file that is open and then cannot be looked at is closed."""
        store = self.store_with()
        save(store, ROOT, "data", b"a pack")
        name = id_of(b"a pack")
        for at_once_ in (False, True):
            with self.no_descriptor_left():
                patch = self.patch(os, "fstat", failing(errno.EIO))
                try:
                    stored = store.stored(ROOT, "data", name)
                    self.assertRaises(OSError, stored.open)
                    stored.close()
                    if at_once_:
                        load_at_once(store, name)
                    with suppress(OSError):  # an unnamed file is not looked at
                        save(store, ROOT, "data", b"another")
                finally:
                    patch.restore()

    # --- what cannot be read

    def failing_for(self, path: Path, code: int) -> Callable[[str], Callable[..., Any]]:
        """Makes calls that fail for one file, by its path or its descriptor."""

        def fails(call: str) -> Callable[..., Any]:
            real, inode = getattr(os, call), path.stat().st_ino

            def fail(what: Any, *args: Any, **named: Any) -> Any:
                if (fstat(what).st_ino == inode) if isinstance(what, int) else (os.path.abspath(what) == str(path)):
                    raise OSError(code, os.strerror(code))
                return real(what, *args, **named)

            return fail

        fstat = os.fstat
        return fails

    def test_unreadable_object_is_replaced(self) -> None:
        """
        An object whose bytes the disk does not bring back, or whose inode, is replaced by the verified upload of the same
        object, as one with other bytes is.
        """
        for verify in (True, False):
            for code in (errno.EIO, errno.EUCLEAN, errno.EBADMSG):
                for calls in (("pread",), ("open",), ("fsync",), ("open", "stat")):
                    store = self.store_with(verify=verify)
                    path = self.path_of("data", NAME)
                    self.plant(key_of(ROOT, "data", NAME), b"a pack")
                    before = inode_of(path)
                    upload = store.upload(ROOT, "data", NAME)
                    with self.no_descriptor_left(), capturedLogs() as events:
                        upload.open()
                        upload.write([b"a pack"])
                        fails = self.failing_for(path, code)
                        patches = [self.patch(os, call, fails(call)) for call in calls]
                        try:
                            self.assertEqual(Outcome.HEALED, upload.commit(), f"{calls} {errno.errorcode[code]}")
                        finally:
                            for patch in patches:
                                patch.restore()
                    self.assertEqual(Amount(), upload.change)
                    self.assertNotEqual(before, inode_of(path))
                    self.assertEqual(b"a pack", load(store, ROOT, "data", NAME))
                    self.assertIn(
                        "replaced by a verified upload", "".join(str(event["log_format"]) for event in events)
                    )
        self.assertEqual({key_of(ROOT, "data", NAME): b"a pack"}, self.contents())

    def test_unreadable_is_not_replaced_by_anything_else(self) -> None:
        """Not by bytes that are not what the name says, not a config, and not what may only not be read."""
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for kind, name, body, code, error in (
                ("data", NAME, b"other bytes", errno.EIO, Forbidden),
                ("data", NAME, b"a pack", errno.EACCES, PermissionError),
                ("config", "config", b"a config", errno.EIO, OSError),
            ):
                path = self.path_of(kind, name)
                self.plant(key_of(ROOT, kind, name), b"a pack")
                upload = store.upload(ROOT, kind, name)
                upload.open()
                upload.write([body])
                fails = self.failing_for(path, code)
                before = inode_of(path)
                patch = self.patch(os, "open", fails("open"))
                try:
                    self.assertRaises(error, upload.commit)
                finally:
                    patch.restore()
                upload.abort()
                self.assertEqual((before, b"a pack"), (inode_of(path), path.read_bytes()))

    def test_short_reads(self) -> None:
        """A system that gives less than it was asked for, though there is more, shortens nothing and damages nothing."""
        store = self.store_with(verify=False)
        content = b"0123456789" * 1000
        name = id_of(content)
        save(store, ROOT, "data", content)
        save(store, ROOT, "config", content, "config")
        pread = os.pread
        turns = count()

        def short(fd: int, length: int, offset: int) -> bytes:
            return pread(fd, min(length, 7 + next(turns) % 5), offset)

        self.patch(os, "pread", short)
        for kind, object_name in (("data", name), ("config", "config")):
            stored = store.stored(ROOT, kind, object_name)
            stored.open()
            self.addCleanup(stored.close)
            self.assertEqual(content, stored.read(0, len(content)))
            self.assertEqual(content[9:1000], stored.read(9, 991))
            self.assertEqual(content[9990:], stored.read(9990, 100))
            self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, kind, content, object_name))
        self.assertRaises(Forbidden, save, store, ROOT, "config", content[:-1], "config")

    def test_something_else_in_a_directory_s_place(self) -> None:
        """
        A type's directory, or one of C{data}'s, that is something else or a link to nothing is a fault of the server for
        every request that needs it: restic would take "not there" for "empty".
        """
        for directory, kind in (*((kind, kind) for kind in TYPES), (f"data/{NAME[:2]}", "data")):
            for make in (
                lambda path: path.write_bytes(b""),
                lambda path: path.symlink_to("nowhere"),
                lambda path: path.symlink_to(path.name),
                os.mkfifo,
            ):
                store = self.store_with()
                shutil.rmtree(self.root / directory)
                make(self.root / directory)
                for look in (
                    partial(entries, store, ROOT, kind),
                    partial(entries, store, ROOT, kind, with_sizes=False),
                    partial(load, store, ROOT, kind, NAME),
                    partial(store.size_of, ROOT, kind, NAME),
                    partial(save, store, ROOT, kind, b"a pack"),
                    partial(store.remove_object, ROOT, kind, NAME),
                    partial(store.create_repository, ROOT),
                    partial(store.delete_repository, ROOT),
                ):
                    with self.no_descriptor_left():
                        error = self.assertRaises(OSError, look)
                    self.assertIsNot(FileNotFoundError, type(error), f"{directory} {look}")
                (self.root / directory).unlink()

    def test_linked_directories(self) -> None:
        """A type's directory may be a link to one elsewhere, as long as that is there."""
        store = self.store_with()
        elsewhere = self.root.with_name("elsewhere")
        shutil.move(self.root / "keys", elsewhere)
        (self.root / "keys").symlink_to(elsewhere)
        store.create_repository(ROOT)
        save(store, ROOT, "keys", b"a key")
        self.assertEqual(b"a key", load(store, ROOT, "keys", id_of(b"a key")))
        self.assertEqual(1, len(entries(store, ROOT, "keys")))
        self.assertEqual(-1, store.remove_object(ROOT, "keys", id_of(b"a key")).objects)
        save(store, ROOT, "keys", b"a key")
        store.delete_repository(ROOT)
        self.assertEqual([], list(elsewhere.iterdir()))

    def test_config_is_no_file(self) -> None:
        """
        Something else in the config's place is a fault of the server: restic takes "not there" for "no repository", and
        scripts make one then.
        """
        for make in (
            lambda path: path.mkdir(),
            lambda path: path.symlink_to("nowhere"),
            lambda path: path.symlink_to(path.name),
            os.mkfifo,
            make_socket,
        ):
            store = self.store_with()
            path = self.root / "config"
            make(path)
            for look in (
                partial(load, store, ROOT, "config", "config"),
                partial(store.size_of, ROOT, "config", "config"),
                partial(save, store, ROOT, "config", b"a config", "config"),
            ):
                with self.no_descriptor_left():
                    error = self.assertRaises(OSError, look)
                self.assertNotIsInstance(error, FileNotFoundError)
            path.rmdir() if path.is_dir() else path.unlink()

    def test_repository_is_a_link_to_nothing(self) -> None:
        """As a disk that is not mounted leaves it: no request may take it for a repository that was never made."""
        store = self.make_store()
        (self.root / "alice").symlink_to("nowhere")
        for repository in (("alice",), DEEP):
            for look in (
                partial(entries, store, repository, "locks"),
                partial(store.size_of, repository, "config", "config"),
                partial(load, store, repository, "config", "config"),
                partial(save, store, repository, "data", b"a pack"),
                partial(store.remove_object, repository, "data", NAME),
                partial(store.create_repository, repository),
                partial(store.delete_repository, repository),
            ):
                error = self.assertRaises(OSError, look)
                self.assertEqual(errno.ENOLINK, error.errno)

    def test_file_in_a_repository_s_place(self) -> None:
        """Some file below the data directory is no repository, and nothing is in it."""
        store = self.make_store()
        (self.root / "alice").write_bytes(b"")
        for repository in (("alice",), DEEP):
            for look in (
                partial(entries, store, repository, "locks"),
                partial(store.size_of, repository, "config", "config"),
                partial(load, store, repository, "data", NAME),
                partial(save, store, repository, "data", b"a pack"),
                partial(store.delete_repository, repository),
            ):
                self.assertRaises(NotFound, look)
            self.assertEqual(Amount(), store.remove_object(repository, "data", NAME))

    def test_directory_that_cannot_be_looked_at(self) -> None:
        """Nobody is told that there is no repository, or nothing in it, because the disk or a permission is in the way."""
        store = self.store_with(DEEP)
        shutil.rmtree(self.root / "alice/laptop/data")
        real = os.stat
        for code in (errno.EIO, errno.EACCES, errno.ELOOP):
            for below in ("alice", "alice/laptop", "alice/laptop/data"):

                def look(path: Any, *args: Any, below: str = below, code: int = code, **named: Any) -> Any:
                    if isinstance(path, str) and f"{path}/".startswith(f"{self.root}/{below}/"):
                        raise OSError(code, os.strerror(code))
                    return real(path, *args, **named)

                for ask in (
                    partial(entries, store, DEEP, "data"),
                    partial(store.size_of, DEEP, "data", NAME),
                    partial(load, store, DEEP, "data", NAME),
                    partial(save, store, DEEP, "data", b"a pack"),
                    partial(store.remove_object, DEEP, "data", NAME),
                    partial(store.delete_repository, DEEP),
                ):
                    patch = self.patch(os, "stat", look)
                    try:
                        self.assertEqual(code, self.assertRaises(OSError, ask).errno, f"{below} {ask}")
                    finally:
                        patch.restore()

    def test_file_vanishes_while_it_is_published(self) -> None:
        """That something needed is missing means that the repository is gone only if its directory is."""
        store = self.store_with()
        for call in ("link", "rename"):
            self.patch(os, call, failing(errno.ENOENT))
        error = self.assertRaises((NotFound, OSError), self.publish_without_help, store)
        self.assertNotIsInstance(error, NotFound)

    def publish_without_help(self, store: RepositoryStore) -> None:
        """An upload that no C{renameat2} helps."""
        patch = self.patch(publish, "rename_noreplace", failing(errno.ENOENT))
        try:
            save(store, ROOT, "data", b"a pack")
        finally:
            patch.restore()

    # --- durability

    def fsyncs_of(self, path: Path, call: Callable[[], object]) -> list[tuple[int, int | None]]:
        """What a call made durable, in order, and which inode C{path} had each time."""
        fsyncs = Fsyncs(path)
        patch = self.patch(os, "fsync", fsyncs)
        try:
            call()
        finally:
            patch.restore()
        return fsyncs.calls

    def test_file_is_durable_before_its_name(self) -> None:
        """
        First the bytes are on disk, then they get their name, then the name is on disk; only then the upload is done.
        """
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for kind, name in ((kind, NAME) for kind in TYPES):
                path = self.path_of(kind, name)
                path.unlink(missing_ok=True)
                calls = self.fsyncs_of(path, partial(save, store, ROOT, kind, b"a pack", name))
                inode, directory = inode_of(path), path.parent.stat().st_ino
                self.assertIn((inode, None), calls)
                self.assertIn((directory, inode), calls)

    def test_config_is_durable_before_its_name(self) -> None:
        """The config too."""
        store = self.store_with()
        path = self.root / "config"
        calls = self.fsyncs_of(path, lambda: save(store, ROOT, "config", b"a config", "config"))
        self.assertIn((inode_of(path), None), calls)
        self.assertEqual((self.root.stat().st_ino, inode_of(path)), calls[-1])

    def test_unchanged_is_durable(self) -> None:
        """
        The stored file and its directory are made durable: the racing upload that linked it may not have come to
        that.
        """
        store = self.store_with()
        for kind, name in (("data", NAME), ("config", "config")):
            path = self.path_of(kind, name)
            self.plant(key_of(ROOT, kind, name), b"a pack")
            inode, directory = inode_of(path), path.parent.stat().st_ino
            calls = self.fsyncs_of(path, partial(save, store, ROOT, kind, b"a pack", name))
            self.assertIn((inode, inode), calls)
            self.assertIn((directory, inode), calls)

    def test_healing_is_durable(self) -> None:
        """The new bytes are on disk before they replace the old, and their name after."""
        store = self.store_with()
        path = self.path_of("data", NAME)
        self.plant(key_of(ROOT, "data", NAME), b"damaged")
        old = inode_of(path)
        calls = self.fsyncs_of(path, lambda: save(store, ROOT, "data", b"a pack"))
        new = inode_of(path)
        self.assertNotEqual(old, new)
        self.assertIn((new, old), calls)
        self.assertIn((path.parent.stat().st_ino, new), calls)

    def test_removal_is_durable(self) -> None:
        """An object does not come back by a power cut: restic removes an index before the packs that it names."""
        store = self.store_with()
        save(store, ROOT, "index", b"an index")
        path = self.path_of("index", id_of(b"an index"))
        calls = self.fsyncs_of(path, lambda: store.remove_object(ROOT, "index", path.name))
        self.assertEqual([(path.parent.stat().st_ino, None)], calls)

    def test_repeated_removal_is_durable(self) -> None:
        """
        So is the removal of what is gone already: whoever removed it may not have come to the fsync. Where even the
        directory is gone it is the one that this was in.
        """
        store = self.store_with(DEEP)
        repository = self.root / "alice/laptop"
        for kind in TYPES:
            path = self.root / key_of(DEEP, kind, NAME)
            self.plant(key_of(DEEP, kind, NAME), b"a pack")
            store.remove_object(DEEP, kind, NAME)
            while True:
                calls = self.fsyncs_of(path, lambda: store.remove_object(DEEP, kind, NAME))
                directory = next(parent for parent in path.parents if parent.exists())
                self.assertEqual([(directory.stat().st_ino, None)], calls, directory)
                if directory == repository:
                    break
                shutil.rmtree(directory)
        shutil.rmtree(repository)
        calls = self.fsyncs_of(repository, lambda: store.remove_object(DEEP, "keys", NAME))
        self.assertEqual([((self.root / "alice").stat().st_ino, None)], calls)
        calls = self.fsyncs_of(self.root / "config", lambda: store.remove_object(ROOT, "config", "config"))
        self.assertEqual([(self.root.stat().st_ino, None)], calls)

    def test_repeated_removal_whose_fsync_fails(self) -> None:
        """What may come back is not said to be gone, however often it is asked for."""
        store = self.store_with()
        save(store, ROOT, "index", b"an index")
        name = id_of(b"an index")
        patch = self.patch(os, "fsync", failing(errno.EIO))
        try:
            error = self.assertRaises(NotDurable, store.remove_object, ROOT, "index", name)
            self.assertEqual((errno.EIO, Amount(-8, -1)), (error.errno, error.change))
            for _ in range(2):
                error = self.assertRaises(OSError, store.remove_object, ROOT, "index", name)
                self.assertNotIsInstance(error, NotDurable)
        finally:
            patch.restore()
        self.assertEqual(Amount(), store.remove_object(ROOT, "index", name))

    def test_repeated_removal_waits_for_the_first(self) -> None:
        """While the first removal hangs in its fsync the second has no answer before an fsync of its own."""
        store = self.store_with()
        save(store, ROOT, "locks", b"a lock")
        name = id_of(b"a lock")
        real, hangs, goes_on = os.fsync, threading.Event(), threading.Event()
        fsyncs = []

        def fsync(fd: int) -> None:
            fsyncs.append(fd)
            if len(fsyncs) == 1:
                hangs.set()
                goes_on.wait(60)
            real(fd)

        self.patch(os, "fsync", fsync)
        first = threading.Thread(target=store.remove_object, args=(ROOT, "locks", name))
        first.start()
        self.assertTrue(hangs.wait(60))
        self.assertEqual(Amount(), store.remove_object(ROOT, "locks", name))
        self.assertEqual(2, len(fsyncs))
        goes_on.set()
        first.join()

    def test_deletion_of_a_repository_is_durable(self) -> None:
        """All that is gone is gone for good: each directory that stays, and what those were in that do not."""
        for foreign in ((), ("notes",), ("keys/notes",), ("data/ab/notes", "data/notes")):
            self._root = None
            store = self.store_with(DEEP)
            repository = self.root / "alice/laptop"
            for kind in TYPES:
                save(store, DEEP, kind, b"a pack")
            save(store, DEEP, "config", b"a config", "config")
            for path in foreign:
                (repository / path).write_bytes(b"foreign")
            calls = self.fsyncs_of(self.root, lambda: store.delete_repository(DEEP))
            left = {path.stat().st_ino for path in [repository, *repository.rglob("*")] if path.is_dir()}
            left |= set() if foreign else {(self.root / "alice").stat().st_ino}
            self.assertEqual(set(), left - {inode for inode, _ in calls}, foreign)
            if not any("/" in path for path in foreign):  # else some of it is still there
                calls = self.fsyncs_of(self.root, lambda: self.assertRaises(NotFound, store.delete_repository, DEEP))
                self.assertEqual(1, len(calls))

    def test_new_directories_are_durable(self) -> None:
        """Each new directory is made durable in its parent, from the data directory down."""
        store = self.make_store()
        repository = self.root / "alice/laptop"
        watched = (
            (self.root / "alice", self.root),
            (repository, self.root / "alice"),
            *((repository / kind, repository) for kind in TYPES),
            (repository / "data/ff", repository / "data"),
        )
        for path, parent in watched:
            shutil.rmtree(self.root / "alice", ignore_errors=True)
            calls = self.fsyncs_of(path, lambda: store.create_repository(DEEP))
            self.assertIn((parent.stat().st_ino, inode_of(path)), calls, path)

    def test_new_object_directory_is_durable(self) -> None:
        """So is one that an upload made."""
        store = self.store_with()
        shutil.rmtree(self.root / "data")
        for path in (self.root / "data", self.root / "data" / NAME[:2]):
            shutil.rmtree(self.root / "data", ignore_errors=True)
            calls = self.fsyncs_of(path, lambda: save(store, ROOT, "data", b"a pack"))
            self.assertIn((path.parent.stat().st_ino, inode_of(path)), calls)

    def test_directories_of_others_are_durable(self) -> None:
        """So are those that another process made and did not come to make durable, each once."""
        path = self.root / "alice/laptop/data" / NAME[:2]
        self.make_store().create_repository(DEEP)
        others = self.make_store()
        for store in (self.make_store(), others):
            for _ in range(2):
                calls = self.fsyncs_of(path, lambda: save(store, DEEP, "data", b"a pack"))
                for parent in (self.root, self.root / "alice", self.root / "alice/laptop", path.parent):
                    self.assertIn((parent.stat().st_ino, inode_of(path)), calls, parent)

    def test_fsync_not_supported(self) -> None:
        """Where a file system knows no fsync one warning is given, and all goes on."""
        for code in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
            self._root = None
            store = self.store_with()
            patch = self.patch(os, "fsync", failing(code))
            try:
                with capturedLogs() as events:
                    self.assertEqual(Outcome.STORED, save(store, ROOT, "data", b"a pack"))
                    self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, "data", b"a pack"))
                    self.assertEqual(Outcome.STORED, save(store, ROOT, "keys", b"a key"))
                    self.assertEqual(-1, store.remove_object(ROOT, "keys", id_of(b"a key")).objects)
            finally:
                patch.restore()
            self.assertEqual(1, sum("fsync" in str(event["log_format"]) for event in events))

    def test_fsync_fails(self) -> None:
        """Bytes that could not be brought to the disk never get their name."""
        store = self.store_with()
        patch = self.patch(os, "fsync", failing(errno.EIO))
        try:
            error = self.assertRaises(OSError, save, store, ROOT, "data", b"a pack")
        finally:
            patch.restore()
        self.assertEqual(errno.EIO, error.errno)
        self.assertEqual({}, self.contents())

    # --- what a killed server left

    def test_sweep(self) -> None:
        """
        At its start a server removes the unfinished uploads of one that was killed, in every repository; nothing
        else.
        """
        store = self.store_with()
        store.create_repository(("alice",))
        store.create_repository(DEEP)
        save(store, DEEP, "data", b"a pack")
        kept = self.contents()
        for folder in ("", "alice/", "alice/laptop/"):
            self.plant(f"{folder}.tmp/{UPLOAD}", b"half a pa")
        foreign = {
            f"too/deep/for/a/repository/.tmp/{UPLOAD}": b"foreign",
            f"bob/.tmp/{UPLOAD}": b"foreign",
            "bob/.tmp/precious": b"foreign",
            "alice/.tmp/precious": b"foreign",
        }
        for key, content in foreign.items():
            self.plant(key, content)
        self.make_store()
        self.assertEqual({**kept, **foreign}, self.contents())
        self.assertFalse((self.root / ".tmp").exists())

    def test_sweep_leaves_live_uploads(self) -> None:
        """A second server on the same directory leaves the uploads of the first alone."""
        store = self.store_with()
        upload = store.upload(ROOT, "data", NAME)
        upload.open()
        upload.write([b"a "])
        self.make_store()
        upload.write([b"pack"])
        self.assertEqual(Outcome.STORED, upload.commit())
        self.assertEqual({key_of(ROOT, "data", NAME): b"a pack"}, self.contents())

    def test_sweep_meets_odd_things(self) -> None:
        """
        What cannot be an upload (a directory, a link to elsewhere) does not stop a start, and what it points to
        stays.
        """
        self.store_with()
        self.plant(f".tmp/{UPLOAD}", b"half a pa")
        self.plant("elsewhere", b"foreign")
        (self.root / ".tmp/directory").mkdir()
        (self.root / ".tmp/link").symlink_to(self.root / "elsewhere")
        os.mkfifo(self.root / ".tmp/fifo")
        self.make_store()
        self.assertFalse((self.root / ".tmp" / UPLOAD).exists())
        self.assertEqual(b"foreign", (self.root / "elsewhere").read_bytes())


def make_socket(path: Path) -> None:
    """A unix socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        # Its path may be too long for a socket's.
        folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listener.bind(f"/proc/self/fd/{folder_fd}/{path.name}")
        finally:
            os.close(folder_fd)


def load_at_once(store: RepositoryStore, name: str) -> None:
    """Open an object as the reactor's thread does it, which may fail."""
    store.size_of(ROOT, "data", name)
    stored = store.stored(ROOT, "data", name)
    try:
        stored.open_nowait()
    except OSError:
        pass
    finally:
        stored.close()


def failing_for_files(call: str, code: int) -> Callable[..., Any]:
    """
    A system call that fails wherever it would take room for a file; C{open} goes on for what only reads.
    """
    real = getattr(os, call)

    def fail(*args: Any, **named: Any) -> Any:
        if call == "open" and not args[1] & (os.O_RDWR | os.O_WRONLY):
            return real(*args, **named)
        raise OSError(code, os.strerror(code))

    return fail
