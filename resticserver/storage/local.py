"""
Repositories as files on disk, in the layout of restic's own local backend, so that both may use them at once.

C{config}, C{keys/ID}, C{locks/ID}, C{snapshots/ID}, C{index/ID}, C{data/ab/ID}. An object is on disk, verified and
durable before anyone can see it; see L{resticserver.storage.publish} for how.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from twisted.logger import Logger

from ..errors import Forbidden, HashMismatch, InsufficientStorage, NoSuchRepository, NotFound, StartError
from ..files import is_directory, is_link
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount, FreeSpace
from .counting import Counting
from .folding import Spelling
from .free_space import FreeSpaceGuard, Sent
from .interface import Chunks, Listing, NotDurable, Outcome, SizeChange, Stored, Upload
from .layout import PRUNE_NEEDS
from .listing import DirectoryListing
from .nowait import FileSystemTraits, Nowait
from .publish import TEMPORARY_FOLDER, Mechanisms, Publisher, TemporaryFile, no_space, space_errors, sweep
from .snapshots import SETTLED_NS, Snapshot, Snapshots
from .volume import Volume

#: writev(2) takes this many buffers at most (IOV_MAX on Linux).
_MOST_BUFFERS = 1024
_GROUP_BYTES = 64 << 10
_READ_BYTES = 1 << 20
#: How much an upload writes between two looks at the free space.
_CHECK_ROOM_BYTES = 4 << 20
#: What a file system gives a file at least.
_BLOCK_BYTES = 4096
#: What a file system says of a file whose bytes or metadata it cannot bring back.
_DAMAGE = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EUCLEAN", "EBADMSG", "ENODATA", "EREMOTEIO", "EILSEQ")
    if hasattr(errno, name)
)
#: How long it is believed what kind of file system a repository lies on, and of how many that is remembered.
_TRUST_S = 60.0
_MOST_TRUSTED = 10_000

_log = Logger()


class LocalStore:
    """
    A L{resticserver.storage.interface.RepositoryStore} of files below one directory.

    @param path: the data directory.
    @param verify: whether a body's hash must be its name. A name conflict is always decided by hash.
    @param group_accessible: files 0660 and directories 0770 instead of 0600 and 0700, whatever the umask.
    @param max_depth: how many folders deep repositories may lie, for the sweep at the start.
    @param snapshots: keeps what lists have read, but for locks.
    @param min_free: how much of the file system uploads must leave free.
    @ivar on_size_change: called from any thread when an object is seen to have another size than before; L{is_damaged} tells
        what that means.
    @cvar read_only: whether it does its work also where it cannot write.
    """

    read_only = False

    def __init__(
        self,
        path: str,
        *,
        verify: bool = True,
        group_accessible: bool = False,
        max_depth: int = 2,
        mechanisms: Mechanisms | None = None,
        snapshots: Snapshots | None = None,
        min_free: FreeSpace | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self.verify = verify
        self.max_depth = max_depth
        file_mode, directory_mode = (0o660, 0o770) if group_accessible else (0o600, 0o700)
        self.publisher = Publisher(file_mode, directory_mode, mechanisms)
        self.volume = Volume(self.path, self.publisher)
        self.nowait = Nowait()
        self._trusts: dict[tuple[str, ...], tuple[FileSystemTraits, float]] = {}
        self.snapshots = snapshots if snapshots is not None else Snapshots()
        self._no_snapshots = Snapshots(bound_bytes=0)
        self.on_size_change: Callable[[SizeChange], object] = lambda change: None
        self.spelling = Spelling(self.path)
        self.counting = Counting(
            self.path,
            self.volume,
            self.snapshots,
            max_depth,
            lambda change: self.on_size_change(change),
            self.spelling,
        )
        self.free_space = FreeSpaceGuard(min_free) if min_free is not None else None

    def prepare(self) -> None:
        """
        Make the data directory if it is missing, see that it can be written, remove what a killed server left. Where the volume
        that is known from an earlier run is missing, do nothing.

        @raise StartError: it cannot be made or written.
        """
        try:
            missing = self.volume.is_missing()
        except OSError as error:
            raise StartError(f"--path: cannot read the volume's marker {error.filename}: {error.strerror}") from error
        if missing:
            return  # nothing is made in an empty mount point
        try:
            self._make_directories(self.path)
            may_write = self._try_to_write()
        except OSError as error:
            hint = (
                "; --read-only serves what is there" if error.errno == errno.EROFS and os.path.isdir(self.path) else ""
            )
            raise StartError(f"--path: cannot use the data directory {self.path}: {error.strerror}{hint}") from error
        if not may_write:
            self.volume.check()
            return
        left = 0
        in_use = False
        for repository in self.counting.possible_repositories():
            with suppress(OSError):  # a .tmp that cannot be read holds nothing that this server could remove
                left += sweep(self.path, repository)
            in_use = in_use or os.path.isfile(os.path.join(self.repository_path(repository), CONFIG))
        if in_use:
            self.volume.mark()
        self.volume.check()
        if left:
            _log.info("removed {left} unfinished uploads of an earlier run", left=left)

    def _try_to_write(self) -> bool:
        """
        Whether the data directory can be written, or only be read where that will do.

        @raise OSError: it cannot be used.
        """
        folder = os.path.join(self.path, TEMPORARY_FOLDER)
        was_there = os.path.lexists(folder)
        directory_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.publisher.temporary(self.path, directory_fd, self.path).discard()
            if not was_there:
                _remove_if_empty(folder)
        except InsufficientStorage:
            _log.warn("the file system of {path} is full: uploads will be refused", path=self.path)
        finally:
            os.close(directory_fd)
        return True

    def _make_directories(self, path: str) -> None:
        missing = []
        while not is_directory(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            self.publisher.make_directory(directory)

    def repository_path(self, repository: tuple[str, ...]) -> str:
        """Where a repository's directory is or would be."""
        return "/".join((self.path, *repository))

    def _directory(self, repository: tuple[str, ...], kind: str, name: str) -> str:
        path = self.repository_path(repository)
        if kind == CONFIG:
            return path
        if kind == "data":
            return f"{path}/data/{name[:2]}"
        return f"{path}/{kind}"

    def _object_path(self, repository: tuple[str, ...], kind: str, name: str) -> str:
        return f"{self._directory(repository, kind, name)}/{name}"

    def find_repository(self, repository: tuple[str, ...]) -> None:
        """
        See that a repository is spelled as on disk, where the file system knows it in other spellings too.

        @raise NoSuchRepository: it is not, or it is not there.
        """
        try:
            found = self.spelling.look(repository)
        except NoSuchRepository:
            found = False
        if not found:
            self.volume.check()
            self._way(repository, CONFIG)  # only what nobody has put there is missing
            raise NoSuchRepository()

    def create_repository(self, repository: tuple[str, ...]) -> None:
        """
        Make the directories of a repository, as far as they are missing; those of C{data} as restic makes them.

        @raise NotFound: the file system cannot have it under this name.
        @raise InsufficientStorage: the disk is full.
        @raise OSError: what has the name of one is no directory.
        """
        self.volume.check()
        self.spelling.look(repository)
        path = self.repository_path(repository)
        _log.info("Creating repository directories in {path}", path=ascii(path)[1:-1])
        with space_errors():
            self._make_directories(self.path)
            self.spelling.make(repository, self.publisher.make_directory)
            for kind in TYPES:
                self.publisher.make_directory(os.path.join(path, kind))
            data = os.path.join(path, "data")
            with self.publisher.new_directory_names(data):
                for number in range(256):
                    directory = os.path.join(data, f"{number:02x}")
                    try:
                        os.mkdir(directory, 0o700)
                    except FileExistsError:
                        is_directory(directory)
                    else:
                        self.publisher.set_directory_mode(directory)
            # Those that were there may be what a killed server has just made.
            self.publisher.settle(path, self.path)
        self.volume.mark()

    def delete_repository(self, repository: tuple[str, ...]) -> None:
        """
        Remove what restic stores in a repository, the config first: from then on it is none. Repositories below it and
        files that are not restic's stay, and so do the directories that hold them.

        @raise NotFound: there is no repository.
        """
        self.volume.check()
        try:
            self.find_repository(repository)
        except NoSuchRepository:
            self._fsync_way(repository)  # whoever removed it may not have come to make that durable
            raise
        path = self.repository_path(repository)
        way = self._way(repository, CONFIG)
        if not way.in_repository:
            self.volume.check()
            # Whoever removed it may not have come to make that durable.
            self._fsync_way(repository)
            raise NoSuchRepository()
        # Before anything is removed: what cannot be looked at, or leads nowhere, is not passed over.
        directories = self._object_directories(path)
        _log.info("Deleting repository in {path}", path=ascii(path)[1:-1])
        if not self._remove_file(os.path.join(path, CONFIG)) and not directories:
            self.publisher.fsync_directory(path)
            raise NoSuchRepository()
        for directory in directories:
            self._remove_objects(directory)
        if repository:
            _remove_if_empty(os.path.join(path, TEMPORARY_FOLDER))
            _remove_if_empty(path)
        self._fsync_way(repository)

    @staticmethod
    def _object_directories(path: str) -> list[str]:
        """
        A repository's directories for objects that are there, inner ones first.

        @raise OSError: what has the name of one is none, or cannot be looked at.
        """
        found: list[str] = []
        for kind in TYPES:
            directory = os.path.join(path, kind)
            if is_directory(directory):
                if kind == "data":
                    inner = (os.path.join(directory, name) for name in os.listdir(directory) if is_object_id(name * 32))
                    found += filter(is_directory, inner)
                found.append(directory)
        return found

    def _remove_objects(self, directory: str) -> None:
        """
        Remove a directory's objects, and the directory if nothing else is in it. Durable where it stays; else when what it
        was in is.
        """
        for name in _names_in(directory):
            if is_object_id(name):
                self._remove_file(os.path.join(directory, name), durable=False)
        if not _remove_if_empty(directory):
            self.publisher.fsync_directory(directory)

    def _remove_file(self, path: str, durable: bool = True) -> bool:
        """Remove a file; whether there was one."""
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if durable:
            self.publisher.fsync_directory(os.path.dirname(path))
        return True

    def _way(self, repository: tuple[str, ...], kind: str, name: str = "") -> Way:
        """
        How far the way to an object, or to the directory of a type, leads. It is looked at where something is missing: only
        what nobody has put there is missing.

        @raise OSError: something that is no directory has the name of one of the repository's, a link leads nowhere, or
            that cannot be told.
        """
        path = self.path
        try:
            if not is_directory(path):
                return Way(None, False)
            for folder in repository:
                if not is_directory(f"{path}/{folder}"):
                    return Way(path, False)
                path = f"{path}/{folder}"
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
            return Way(path, False)  # a file of somebody's is no repository
        if kind != CONFIG:
            for directory in (f"{path}/{kind}", *([f"{path}/{kind}/{name[:2]}"] if kind == "data" and name else [])):
                if not is_directory(directory):
                    break
                path = directory
        return Way(path, True)

    def _fsync_way(self, repository: tuple[str, ...], kind: str = CONFIG, name: str = "") -> None:
        """Make durable what is missing on the way to an object: the last directory that is there says so."""
        attempts = 8
        while (path := self._way(repository, kind, name).path) is not None:
            attempts -= 1
            try:
                self.publisher.fsync_directory(path)
                return
            except FileNotFoundError:  # it went away meanwhile
                if not attempts:
                    raise

    def _missing(self, error: OSError, repository: tuple[str, ...], kind: str, name: str) -> Exception:
        """
        What a failed look at an object means: missing is missing, everything else stays a fault of the server.

        @raise OSError: that it cannot be found is such a fault.
        """
        self.volume.check()
        found = _as_missing(error)
        if isinstance(found, NotFound):
            way = self._way(repository, kind, name)
            if kind == CONFIG and way.in_repository:
                path = self._object_path(repository, kind, name)
                if error.errno == errno.ENXIO or is_link(path):
                    return _not_a_file(path)
        return found

    def upload(self, repository: tuple[str, ...], kind: str, name: str, length: int | None = None) -> Upload:
        """A new upload, of so many bytes if that is known; does no I/O yet."""
        return LocalUpload(self, repository, kind, name, length)

    def open_object_directory(self, repository: tuple[str, ...], kind: str, name: str) -> int:
        """
        An open descriptor of the directory that an object goes to; made if it is missing and its repository is not.

        @raise NotFound: the repository's directory is not there.
        """
        self.volume.check()
        self.find_repository(repository)
        directory = self._directory(repository, kind, name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(directory, flags)
        except (FileNotFoundError, NotADirectoryError):
            if not self._way(repository, kind, name).in_repository:
                self.volume.check()
                raise NoSuchRepository() from None
        self._make_directories(directory)
        return os.open(directory, flags)

    def stored(self, repository: tuple[str, ...], kind: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""
        return LocalObject(self, repository, kind, name)

    def traits(self, repository: tuple[str, ...]) -> FileSystemTraits | None:
        """How files of a repository may be asked without waiting; C{None} as long as nobody has found out."""
        found = self._trusts.get(repository)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def find_trust(self, repository: tuple[str, ...], fd: int) -> None:
        """Find out, by an open file of that repository; blocks."""
        if not self.nowait.available or self.traits(repository) is not None:
            return
        if len(self._trusts) >= _MOST_TRUSTED:
            self._trusts.clear()
        # Where a repository has several names each request looks which one it has, and that takes waiting.
        traits = FileSystemTraits.of(fd) if self.spelling.is_exact(repository) else FileSystemTraits(False, False)
        self._trusts[repository] = (traits, time.monotonic() + _TRUST_S)

    def size_nowait(self, repository: tuple[str, ...], kind: str, name: str) -> int | None:
        """An object's size in bytes; C{None} where that cannot be had without waiting, or there is no such object."""
        traits = self.traits(repository)
        if traits is None or not traits.names or not self.volume.seen_lately():
            return None
        directory = self._directory(repository, kind, name)
        try:
            status = self.nowait.look(f"{directory}/{name}")
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        snapshot = self.snapshots.peek(directory)
        if snapshot is not None:
            self._compare_size(snapshot, repository, kind, name, status)
        return status.st_size

    def size_of(self, repository: tuple[str, ...], kind: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is no file of that name.
        """
        self.volume.check_now_and_then()
        self.find_repository(repository)
        path = self._object_path(repository, kind, name)
        try:
            status = os.stat(path)
        except OSError as error:
            raise self._missing(error, repository, kind, name) from error
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(path)
        if self.nowait.available and self.traits(repository) is None:
            with suppress(OSError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    self.find_trust(repository, fd)
                finally:
                    os.close(fd)
        self.compare_size(repository, kind, name, status)
        return status.st_size

    def compare_size(self, repository: tuple[str, ...], kind: str, name: str, status: os.stat_result) -> None:
        """
        Compare an object's size with the known one, as far as memory has that. Waits for nothing.

        @param status: what C{stat} says of its file.
        """
        snapshot = self.snapshots.peek(self._directory(repository, kind, name))
        if snapshot is not None:
            self._compare_size(snapshot, repository, kind, name, status)

    def _compare_size(
        self, snapshot: Snapshot, repository: tuple[str, ...], kind: str, name: str, status: os.stat_result
    ) -> None:
        # Nothing can have changed a file since then whose change time is older, and that is nearly all of them.
        if status.st_ctime_ns <= snapshot.taken_ns - SETTLED_NS or kind == CONFIG:
            return
        known_bytes = snapshot.size_of(name)
        if known_bytes is not None and known_bytes != status.st_size:
            self.on_size_change(SizeChange(repository, kind, name, known_bytes, status.st_size))

    def forget_directory(self, repository: tuple[str, ...], kind: str, name: str) -> None:
        """Read the directory of an object again the next time, whatever its times say."""
        self.snapshots.forget(self._directory(repository, kind, name))

    def is_damaged(self, change: SizeChange) -> bool:
        """
        Whether an object whose size has changed is damaged: its hash is not its name. If it is (a copy that has come to its end,
        a restored file), or it is gone, there is no damage. Either way the directory's snapshot is not used again.

        @raise OSError: it cannot be read.
        """
        repository, kind, name, *_ = change
        self.forget_directory(repository, kind, name)
        try:
            with _opened(self._object_path(repository, kind, name)) as fd:
                return _hash_of(fd) != name
        except (FileNotFoundError, NotFound):
            return False

    def list_objects(self, repository: tuple[str, ...], kind: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""
        path = os.path.join(self.repository_path(repository), kind)
        # A lock that a list does not have may cost a repository its data: these are read every time.
        snapshots = self._no_snapshots if kind == "locks" else self.snapshots
        missing = partial(self._way, repository, kind)
        return LocalListing(
            path,
            self.volume,
            snapshots,
            two_levels=kind == "data",
            with_sizes=with_sizes,
            find=partial(self.find_repository, repository),
            missing=missing,
            size_changed=lambda name, known, found: self.on_size_change(
                SizeChange(repository, kind, name, known, found)
            ),
        )

    def remove_object(self, repository: tuple[str, ...], kind: str, name: str) -> Amount:
        """
        Remove an object; by how much that changes what is stored: nothing if there was none.

        The removal is made durable: restic removes an index before the packs that it names, and after a power cut the
        index must not come back without them. Also that of an object that is gone already: whoever removed it (another
        request, a server that was killed) may not have come to the fsync.

        @raise NoSuchRepository: the repository has another spelling on disk.
        @raise NotDurable: it is gone, but its directory could not be made durable.
        """
        self.volume.check()
        if not self.spelling.look(repository):
            self._fsync_way(repository, kind, name)
            return Amount()
        path = self._object_path(repository, kind, name)
        try:
            status = os.stat(path)  # as lists count it, also behind a symlink
        except OSError:
            status = None
        if not self._remove_file(path, durable=False):
            self.volume.check()
            self._fsync_way(repository, kind, name)
            return Amount()
        # Of two removals at once only one has found the name.
        counts = status is not None and stat.S_ISREG(status.st_mode)
        change = Amount(-status.st_size, -1) if status is not None and counts else Amount()
        try:
            try:
                self.publisher.fsync_directory(os.path.dirname(path))
            except FileNotFoundError:  # it went away meanwhile
                self._fsync_way(repository, kind, name)
        except OSError as error:
            raise NotDurable(error, change) from error
        return change


class Way(NamedTuple):
    """
    How far a way from the data directory leads.

    @ivar path: the last directory that is there; C{None} where the data directory is not.
    @ivar in_repository: whether that is the repository's, or one in it.
    """

    path: str | None
    in_repository: bool


class LocalListing(DirectoryListing):
    """
    The objects of one type.

    @param missing: called when its directory is not found.
    """

    def __init__(self, *args: Any, missing: Callable[[], object], **named: Any) -> None:
        super().__init__(*args, **named)
        self._missing = missing

    def open(self) -> None:
        """
        Open the directory.

        @raise NotFound: nothing has its name.
        @raise OSError: what has its name is no directory, or cannot be looked at.
        """
        try:
            super().open()
        except NotFound:
            self._missing()
            raise


class LocalObject:
    """
    A stored file.

    @ivar size_bytes: its size when it was opened.
    """

    size_bytes = 0
    _fd = -1
    _traits: FileSystemTraits | None = None

    def __init__(self, store: LocalStore, repository: tuple[str, ...], kind: str, name: str) -> None:
        self._store = store
        self._repository = repository
        self._kind = kind
        self._name = name
        self._directory = store._directory(repository, kind, name)
        self._path = f"{self._directory}/{name}"

    def open(self) -> None:
        """
        Open the file.

        @raise NotFound: there is no file of that name.
        """
        self._store.volume.check_now_and_then()
        self._store.find_repository(self._repository)
        try:
            self._fd, self.size_bytes = _open_file(self._path)
        except OSError as error:
            raise self._store._missing(error, self._repository, self._kind, self._name) from error
        self._store.compare_size(self._repository, self._kind, self._name, os.fstat(self._fd))
        self._store.find_trust(self._repository, self._fd)

    def open_nowait(self) -> bool:
        """Open the file if that takes no waiting; whether it is open."""
        store = self._store
        traits = store.traits(self._repository)
        if traits is None or not traits.names or not store.volume.seen_lately():
            return False
        try:
            fd = store.nowait.open(self._path)
        except OSError:
            return False
        self._fd = fd  # closed from now on in any case
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            return False
        self.size_bytes, self._traits = status.st_size, traits
        snapshot = store.snapshots.peek(self._directory)
        if snapshot is not None:
            store._compare_size(snapshot, self._repository, self._kind, self._name, status)
        return True

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        """C{length} bytes from C{offset}; fewer only at the file's end."""
        return _read_part(self._fd, length, offset)

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """All of a part, if that takes no waiting."""
        if self._traits is None:
            return None
        try:
            return self._traits.read(self._fd, length, offset)
        except OSError:
            return None

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class LocalUpload:
    """
    One object on its way to disk.

    @ivar size_bytes: how much has been written.
    """

    def __init__(
        self, store: LocalStore, repository: tuple[str, ...], kind: str, name: str, length: int | None = None
    ) -> None:
        self._store = store
        self._publisher = store.publisher
        self._repository = repository
        self._kind = kind
        self._name = name
        self._hash = hashlib.sha256() if store.verify and kind != CONFIG else None
        self._directory_fd = -1
        self._file: TemporaryFile | None = None
        self._outcome: Outcome | None = None
        #: What is still to come, as far as that is known and C{--min-free} wants to know it.
        self._coming_bytes = 0
        self._length = length or 0
        self._length_is_known = length is not None
        #: How much of it has come.
        self._came_bytes = 0
        self._unchecked_bytes = 0
        self.size_bytes = 0
        self.change = Amount()

    def open(self) -> None:
        """
        Open the directory and a temporary file in it.

        @raise NotFound: the repository is not there.
        @raise InsufficientStorage: the disk is full.
        """
        store = self._store
        try:
            with space_errors():
                self._directory_fd = store.open_object_directory(self._repository, self._kind, self._name)
                if store.free_space is not None:
                    # A file takes whole blocks, also for its last bytes.
                    self._coming(store.free_space, (self._length // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
                    store.free_space.check(self._directory_fd, self._kind in PRUNE_NEEDS, self._sent())
            self._file = self._publisher.temporary(
                store._directory(self._repository, self._kind, self._name),
                self._directory_fd,
                store.repository_path(self._repository),
            )
        except InsufficientStorage as error:
            raise self._with_figures(error) from error.__cause__

    def write(self, chunks: Chunks) -> None:
        """
        Hash and write the next bytes.

        @raise InsufficientStorage: the disk is full.
        """
        assert self._file is not None
        free_space = self._store.free_space
        size_bytes = sum(map(len, chunks))
        self._came_bytes += size_bytes
        try:
            with space_errors():
                if free_space is not None:
                    self._make_room(free_space, size_bytes)
                self._write(self._file.fd, chunks)
        except InsufficientStorage as error:
            raise self._with_figures(error) from error.__cause__
        if free_space is not None:
            # Only now: what is written the file system counts itself.
            self._coming(free_space, -size_bytes)

    def _write(self, fd: int, chunks: Chunks) -> None:
        if self._hash is None:
            for first in range(0, len(chunks), _MOST_BUFFERS):
                self.size_bytes += _write_all(fd, chunks[first : first + _MOST_BUFFERS])
        else:
            # A little at a time, so that the processor's cache still has it when it is written; but not a call for
            # each of thousands of tiny pieces.
            for group in _groups(chunks):
                for chunk in group:
                    self._hash.update(chunk)
                self.size_bytes += _write_all(fd, group)

    def _sent(self) -> Sent:
        """How far it has come."""
        size_bytes = self._length if self._length_is_known else self._came_bytes
        stored_bytes = os.fstat(self._file.fd).st_blocks * 512 if self._file is not None else 0
        return Sent(size_bytes, self._length_is_known, self._coming_bytes, stored_bytes)

    def _with_figures(self, error: InsufficientStorage) -> InsufficientStorage:
        """A full disk, in words that also say how much was sent and how much is left."""
        if not isinstance(error.__cause__, OSError):
            return error  # --min-free, which has said so
        try:
            status = os.fstatvfs(self._directory_fd) if self._directory_fd >= 0 else os.statvfs(self._store.path)
            return no_space(self._sent(), status, error.__cause__)
        except OSError:
            return error

    def _make_room(self, free_space: FreeSpaceGuard, size_bytes: int) -> None:
        """Before bytes are written: see now and then whether there is still room."""
        surprise = size_bytes - self._coming_bytes  # a chunked body, whose length nobody knows
        if surprise > 0:
            self._coming(free_space, surprise)
        self._unchecked_bytes += size_bytes
        if surprise > 0 or self._unchecked_bytes >= _CHECK_ROOM_BYTES:
            self._unchecked_bytes = 0
            free_space.check(self._directory_fd, self._kind in PRUNE_NEEDS, self._sent())

    def _coming(self, free_space: FreeSpaceGuard, size_bytes: int) -> None:
        """So many more bytes are going to be written, or (negative) have been."""
        free_space.coming(size_bytes)
        self._coming_bytes += size_bytes

    def commit(self) -> Outcome:
        """
        Verify, fsync, publish without replacing, fsync the directory.

        @raise NoSuchRepository: it was deleted meanwhile.
        @raise HashMismatch: the name is free and is not the hash of the bytes.
        @raise Forbidden: the name is taken and the bytes are not what it promises.
        @raise InsufficientStorage: the disk is full.
        """
        if self._outcome is None:
            try:
                with space_errors():
                    self._outcome = self._commit()
            except InsufficientStorage as error:
                raise self._with_figures(error) from error.__cause__
            except FileNotFoundError:
                # The directory that it was to be in was removed meanwhile, or is away with its volume.
                self._store.volume.check()
                if not self._directory_gone():
                    raise
                raise NoSuchRepository() from None
            self._close()
        return self._outcome

    def _directory_gone(self) -> bool:
        """Whether the directory is not the one any more that was there when the upload began."""
        assert self._file is not None
        try:
            there = os.stat(self._file.directory)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not os.path.samestat(there, os.fstat(self._directory_fd))

    def _commit(self) -> Outcome:
        assert self._file is not None
        # Where folders are found in other spellings, this one may be another repository's by now.
        self._store.find_repository(self._repository)
        if self._hash is not None and self._hash.hexdigest() != self._name:
            if os.path.lexists(os.path.join(self._file.directory, self._name)):
                raise Forbidden(f"{self._kind} {self._name[:16]} exists and the hash of the content does not match it")
            raise HashMismatch()
        self._publisher.fsync(self._file.fd)
        outcome = self._publish()
        self._publisher.fsync(self._directory_fd)
        self._publisher.settle(self._file.directory, self._store.path)
        return outcome

    def _publish(self) -> Outcome:
        assert self._file is not None
        attempts = 8
        while True:
            attempts -= 1
            try:
                self._publisher.publish(self._file, self._name)
                self.change = Amount(self.size_bytes, 1)
                return Outcome.STORED
            except FileExistsError:
                try:
                    return self._meet_the_stored()
                except NotFound:
                    # Removed between our attempt and our look, so the name is free again; unless what has the name
                    # is no file at all (a directory, a dangling link), which is for the administrator to see.
                    if not attempts:
                        raise FileExistsError(errno.EEXIST, "no regular file has this name", self._name) from None

    def _meet_the_stored(self) -> Outcome:
        """The name is taken: equal bytes stay, a damaged object is healed, anything else is refused."""
        assert self._file is not None
        path = os.path.join(self._file.directory, self._name)
        if self._kind == CONFIG:
            try:
                with _opened(path) as stored_fd:
                    if not _same_bytes(self._file.fd, stored_fd):
                        raise Forbidden("the repository has a config already")
                    self._publisher.fsync(stored_fd)
                    return Outcome.UNCHANGED
            except OSError as error:
                raise _as_missing(error) from error
        if self._hash is None and _hash_of(self._file.fd) != self._name:
            raise Forbidden(f"{self._kind} {self._name[:16]} exists and the hash of the content does not match it")
        try:
            with _opened(path) as stored_fd:
                self._store.compare_size(self._repository, self._kind, self._name, os.fstat(stored_fd))
                if _hash_of(stored_fd) == self._name:
                    # Another upload may have linked it without having come to the fsync.
                    self._publisher.fsync(stored_fd)
                    return Outcome.UNCHANGED
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise _as_missing(error) from error
            _log.warn("{path} cannot be read ({error}); replaced by a verified upload", path=path, error=error.strerror)
        else:
            _log.warn("{path} was damaged; replaced by a verified upload", path=path)
        before = self._publisher.replace(self._file, self._name)
        if before is None:
            before = self.size_bytes  # as it was when it was stored
        # Gone meanwhile is less than nothing.
        self.change = Amount(self.size_bytes - max(0, before), int(before < 0))
        return Outcome.HEALED

    def abort(self) -> None:
        """Leave nothing behind; after a commit, do nothing."""
        self._close()

    def _close(self) -> None:
        if self._store.free_space is not None:
            self._coming(self._store.free_space, -self._coming_bytes)
        file, self._file = self._file, None
        fd, self._directory_fd = self._directory_fd, -1
        try:
            if file is not None:
                file.discard()
        finally:
            if fd >= 0:
                os.close(fd)


def _open_file(path: str) -> tuple[int, int]:
    """
    A regular file's descriptor for reading, and its size.

    @raise NotFound: there is something of that name, and it is no regular file.
    """
    # O_NONBLOCK: opening a FIFO of that name must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """A regular file's descriptor for reading, for as long as it is wanted."""
    fd, _ = _open_file(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _not_a_file(path: str) -> Exception:
    """
    What it means that something else has the name of a file: such a thing is no object. But who hears that there is no config
    takes it that there is no repository.
    """
    if os.path.basename(path) == CONFIG:
        return OSError(errno.EINVAL, "not a regular file", path)
    return NotFound()


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_empty(directory: str) -> bool:
    """Remove a directory that has nothing in it; whether it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        # ENOTDIR: a link to a directory, which is the administrator's.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _as_missing(error: OSError) -> Exception:
    """What a failed look means: missing is missing, everything else stays a fault of the server."""
    # ENXIO: a unix socket, which is no object.
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO):
        return NotFound()
    return error


def _groups(chunks: Chunks) -> Iterator[Chunks]:
    """Chunks in as few groups as C{writev} takes, each of little more than L{_GROUP_BYTES} or one large chunk."""
    group: list[bytes | memoryview] = []
    size_bytes = 0
    for chunk in chunks:
        group.append(chunk)
        size_bytes += len(chunk)
        if size_bytes >= _GROUP_BYTES or len(group) == _MOST_BUFFERS:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _write_all(fd: int, chunks: Chunks) -> int:
    """Write all buffers; C{writev} may write short. How many bytes that were."""
    total = sum(map(len, chunks))
    written = os.writev(fd, chunks)
    if written < total:
        rest = memoryview(b"".join(chunks))[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]
    return total


def _read_part(fd: int, length: int, offset: int) -> bytes:
    """A part of a file, cut only by the file's end: C{pread} may give less for other reasons, on FUSE for one."""
    chunk = os.pread(fd, length, offset)
    if len(chunk) == length or not chunk:
        return chunk
    chunks = [chunk]
    got = len(chunk)
    while got < length and (chunk := os.pread(fd, length - got, offset + got)):
        chunks.append(chunk)
        got += len(chunk)
    return b"".join(chunks)


def _hash_of(fd: int) -> str:
    """The SHA-256 of a whole file, in hex."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, _READ_BYTES, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def _same_bytes(one: int, other: int) -> bool:
    """Whether two files have the same content."""
    offset = 0
    while True:
        left, right = _read_part(one, _READ_BYTES, offset), _read_part(other, _READ_BYTES, offset)
        if left != right:
            return False
        if not left:
            return True
        offset += len(left)
