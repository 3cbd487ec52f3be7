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
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from twisted.logger import Logger

from ..errors import Forbidden, HashMismatch, InsufficientStorage, NoSuchRepository, NotFound, StartError
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount, FreeSpace
from .atonce import AtOnce, Trust
from .counting import Counting, possible_repositories
from .folding import Spelling
from .interface import Chunks, Listing, Outcome, Stored, Upload
from .ledger import PRUNE_NEEDS
from .listing import DirectoryListing
from .publish import TEMPORARY_FOLDER, Mechanisms, Publisher, TemporaryFile, space_errors, sweep
from .room import Room
from .snapshots import Snapshots
from .volume import Volume

#: writev(2) takes this many buffers at most (IOV_MAX on Linux).
_MOST_BUFFERS = 1024
_GROUP_BYTES = 64 << 10
_READ_BYTES = 1 << 20
#: How much an upload writes between two looks at the free space.
_CHECK_ROOM_BYTES = 4 << 20
#: What a file system gives a file at least.
_BLOCK_BYTES = 4096
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
    """

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
        self.at_once = AtOnce()
        self._trusts: dict[tuple[str, ...], tuple[Trust, float]] = {}
        self.snapshots = snapshots if snapshots is not None else Snapshots()
        self._no_snapshots = Snapshots(bound_bytes=0)
        self.spelling = Spelling(self.path)
        self.counting = Counting(self.path, self.volume, self.snapshots, max_depth, self.spelling)
        self.room = Room(min_free) if min_free is not None else None

    def prepare(self) -> None:
        """
        Make the data directory if it is missing, see that it can be written, remove what a killed server left.

        @raise StartError: it cannot be made or written.
        """
        try:
            self._make_directories(self.path)
            self._try_to_write()
        except OSError as error:
            raise StartError(f"cannot use the data directory {self.path}: {error.strerror}") from error
        left = 0
        in_use = False
        for repository in possible_repositories(self.path, self.max_depth):
            path = self.repository_path(repository)
            left += sweep(path)
            in_use = in_use or os.path.isfile(os.path.join(path, CONFIG))
        if in_use:
            self.volume.mark()
        self.volume.check()
        if left:
            _log.info("removed {left} unfinished uploads of an earlier run", left=left)

    def _try_to_write(self) -> None:
        directory_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.publisher.temporary(self.path, directory_fd, self.path).discard()
        except InsufficientStorage:
            _log.warn("the file system of {path} is full: uploads will be refused", path=self.path)
        finally:
            os.close(directory_fd)

    def _make_directories(self, path: str) -> None:
        missing = []
        while not os.path.isdir(path):
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
            raise NoSuchRepository()

    def create_repository(self, repository: tuple[str, ...]) -> None:
        """
        Make the directories of a repository, as far as they are missing; those of C{data} as restic makes them.

        @raise NotFound: the file system cannot have it under this name.
        @raise InsufficientStorage: the disk is full.
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
                    with suppress(FileExistsError):
                        os.mkdir(directory, 0o700)
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
        self.find_repository(repository)
        path = self.repository_path(repository)
        if not os.path.isdir(path):
            self.volume.check()
            raise NoSuchRepository()
        _log.info("Deleting repository in {path}", path=ascii(path)[1:-1])
        found = self._remove_file(os.path.join(path, CONFIG))
        for kind in TYPES:
            directory = os.path.join(path, kind)
            found = os.path.isdir(directory) or found
            if kind == "data":
                for name in _names_in(directory):
                    if len(name) == 2:
                        self._remove_objects(os.path.join(directory, name))
            self._remove_objects(directory)
        if not found:
            raise NoSuchRepository()
        if repository:
            _remove_if_empty(os.path.join(path, TEMPORARY_FOLDER))
            _remove_if_empty(path)

    def _remove_objects(self, directory: str) -> None:
        """Remove a directory's objects, and the directory if nothing else is in it."""
        for name in _names_in(directory):
            if is_object_id(name):
                self._remove_file(os.path.join(directory, name), durable=False)
        _remove_if_empty(directory)
        if os.path.isdir(directory):
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
            if not os.path.isdir(self.repository_path(repository)):
                self.volume.check()
                raise NoSuchRepository() from None
        self._make_directories(directory)
        return os.open(directory, flags)

    def stored(self, repository: tuple[str, ...], kind: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""
        return LocalObject(self, repository, self._object_path(repository, kind, name))

    def trust(self, repository: tuple[str, ...]) -> Trust | None:
        """How files of a repository may be asked without waiting; C{None} as long as nobody has found out."""
        found = self._trusts.get(repository)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def find_trust(self, repository: tuple[str, ...], fd: int) -> None:
        """Find out, by an open file of that repository; blocks."""
        if not self.at_once.available or self.trust(repository) is not None:
            return
        if len(self._trusts) >= _MOST_TRUSTED:
            self._trusts.clear()
        # Where a repository has several names each request looks which one it has, and that takes waiting.
        trust = Trust.of(fd) if self.spelling.is_exact(repository) else Trust(False, False)
        self._trusts[repository] = (trust, time.monotonic() + _TRUST_S)

    def size_at_once(self, repository: tuple[str, ...], kind: str, name: str) -> int | None:
        """An object's size in bytes; C{None} where that cannot be had without waiting, or there is no such object."""
        trust = self.trust(repository)
        if trust is None or not trust.names:
            return None
        try:
            status = self.at_once.look(self._object_path(repository, kind, name))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def size_of(self, repository: tuple[str, ...], kind: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is no file of that name.
        """
        self.find_repository(repository)
        path = self._object_path(repository, kind, name)
        try:
            status = os.stat(path)
        except OSError as error:
            self.volume.check()
            raise _as_missing(error) from error
        if not stat.S_ISREG(status.st_mode):
            raise NotFound()
        if self.at_once.available and self.trust(repository) is None:
            with suppress(OSError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    self.find_trust(repository, fd)
                finally:
                    os.close(fd)
        return status.st_size

    def list_objects(self, repository: tuple[str, ...], kind: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""
        path = os.path.join(self.repository_path(repository), kind)
        # A lock that a list does not have may cost a repository its data: these are read every time.
        snapshots = self._no_snapshots if kind == "locks" else self.snapshots
        find = partial(self.find_repository, repository)
        return DirectoryListing(path, self.volume, snapshots, two_levels=kind == "data", with_sizes=with_sizes, find=find)

    def remove_object(self, repository: tuple[str, ...], kind: str, name: str) -> Amount:
        """
        Remove an object; by how much that changes what is stored: nothing if there was none.

        The removal is made durable: restic removes an index before the packs that it names, and after a power cut the
        index must not come back without them.

        @raise NoSuchRepository: the repository has another spelling on disk.
        """
        self.volume.check()
        if not self.spelling.look(repository):
            return Amount()
        path = self._object_path(repository, kind, name)
        try:
            status = os.stat(path)  # as lists count it, also behind a symlink
        except OSError:
            status = None
        if self._remove_file(path):
            # Of two removals at once only one has found the name.
            counts = status is not None and stat.S_ISREG(status.st_mode)
            return Amount(-status.st_size, -1) if status is not None and counts else Amount()
        self.volume.check()
        return Amount()


class LocalObject:
    """
    A stored file.

    @ivar size_bytes: its size when it was opened.
    """

    def __init__(self, store: LocalStore, repository: tuple[str, ...], path: str) -> None:
        self._store = store
        self._repository = repository
        self._path = path
        self._fd = -1
        self._trust: Trust | None = None
        self.size_bytes = 0

    def open(self) -> None:
        """
        Open the file.

        @raise NotFound: there is no file of that name.
        """
        self._store.find_repository(self._repository)
        try:
            self._fd, self.size_bytes = _open_file(self._path)
        except NotFound:
            self._store.volume.check()
            raise
        self._store.find_trust(self._repository, self._fd)

    def open_at_once(self) -> bool:
        """Open the file if that takes no waiting; whether it is open."""
        trust = self._store.trust(self._repository)
        if trust is None or not trust.names:
            return False
        try:
            fd = self._store.at_once.open(self._path)
        except OSError:
            return False
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return False
        self._fd, self.size_bytes, self._trust = fd, status.st_size, trust
        return True

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        """Up to C{length} bytes from C{offset}."""
        return os.pread(self._fd, length, offset)

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """All of a part, if that takes no waiting."""
        if self._trust is None:
            return None
        try:
            return self._trust.read(self._fd, length, offset)
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
        with space_errors():
            self._directory_fd = store.open_object_directory(self._repository, self._kind, self._name)
            if store.room is not None:
                # A file takes whole blocks, also for its last bytes.
                self._coming(store.room, (self._length // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
                store.room.check(self._directory_fd, self._kind in PRUNE_NEEDS)
        self._file = self._publisher.temporary(
            store._directory(self._repository, self._kind, self._name),
            self._directory_fd,
            store.repository_path(self._repository),
        )

    def write(self, chunks: Chunks) -> None:
        """
        Hash and write the next bytes.

        @raise InsufficientStorage: the disk is full.
        """
        assert self._file is not None
        room = self._store.room
        size_bytes = sum(map(len, chunks)) if room is not None else 0
        with space_errors():
            if room is not None:
                self._make_room(room, size_bytes)
            if self._hash is None:
                for first in range(0, len(chunks), _MOST_BUFFERS):
                    self.size_bytes += _write_all(self._file.fd, chunks[first : first + _MOST_BUFFERS])
            else:
                # A little at a time, so that the processor's cache still has it when it is written; but not a call for
                # each of thousands of tiny pieces.
                for group in _groups(chunks):
                    for chunk in group:
                        self._hash.update(chunk)
                    self.size_bytes += _write_all(self._file.fd, group)
        if room is not None:
            # Only now: what is written the file system counts itself.
            self._coming(room, -size_bytes)

    def _make_room(self, room: Room, size_bytes: int) -> None:
        """Before bytes are written: see now and then whether there is still room."""
        surprise = size_bytes - self._coming_bytes  # a chunked body, whose length nobody knows
        if surprise > 0:
            self._coming(room, surprise)
        self._unchecked_bytes += size_bytes
        if surprise > 0 or self._unchecked_bytes >= _CHECK_ROOM_BYTES:
            self._unchecked_bytes = 0
            room.check(self._directory_fd, self._kind in PRUNE_NEEDS)

    def _coming(self, room: Room, size_bytes: int) -> None:
        """So many more bytes are going to be written, or (negative) have been."""
        room.coming(size_bytes)
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
            except FileNotFoundError:
                # The directory that it was to be in was removed meanwhile, or is away with its volume.
                self._store.volume.check()
                raise NoSuchRepository() from None
            self._close()
        return self._outcome

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
        stored_fd, _ = _open_file(path)
        try:
            if self._kind == CONFIG:
                if not _same_bytes(self._file.fd, stored_fd):
                    raise Forbidden("the repository has a config already")
            else:
                if self._hash is None and _hash_of(self._file.fd) != self._name:
                    raise Forbidden(
                        f"{self._kind} {self._name[:16]} exists and the hash of the content does not match it"
                    )
                if _hash_of(stored_fd) != self._name:
                    _log.warn("{path} was damaged; replaced by a verified upload", path=path)
                    before = self._publisher.replace(self._file, self._name)
                    # Gone meanwhile is less than nothing.
                    self.change = Amount(self.size_bytes - max(0, before), int(before < 0))
                    return Outcome.HEALED
            # Another upload may have linked it without having come to the fsync.
            self._publisher.fsync(stored_fd)
            return Outcome.UNCHANGED
        finally:
            os.close(stored_fd)

    def abort(self) -> None:
        """Leave nothing behind; after a commit, do nothing."""
        self._close()

    def _close(self) -> None:
        if self._store.room is not None:
            self._coming(self._store.room, -self._coming_bytes)
        file, self._file = self._file, None
        if file is not None:
            file.discard()
        fd, self._directory_fd = self._directory_fd, -1
        if fd >= 0:
            os.close(fd)


def _open_file(path: str) -> tuple[int, int]:
    """
    A regular file's descriptor for reading, and its size.

    @raise NotFound: there is no regular file of that name.
    """
    # O_NONBLOCK: opening a FIFO of that name must not wait for a writer.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _as_missing(error) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise NotFound()
    return fd, status.st_size


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_empty(directory: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


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
        left, right = os.pread(one, _READ_BYTES, offset), os.pread(other, _READ_BYTES, offset)
        if left != right:
            return False
        if not left:
            return True
        offset += len(left)
