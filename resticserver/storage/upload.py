"""
One upload to a file: written where nothing sees it, verified, made durable, and then given its name without replacing
anything. How it gets its name is in L{resticserver.storage.publish}.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from twisted.logger import Logger

from ..errors import Forbidden, HashMismatch, InsufficientStorage, NoSuchRepository, NotFound
from ..names import CONFIG
from ..sizes import Amount
from ..threads.steps import Steps, stepped_method
from .directories import DataDirectory, as_missing
from .free_space import FreeSpaceGuard, Sent, no_space, space_errors
from .interface import Chunks, Outcome
from .layout import PRUNE_NEEDS, Repository, object_directory, repository_path
from .publish import TemporaryFile
from .reading import hash_of, opened, same_bytes

#: writev(2) takes this many buffers at most (IOV_MAX on Linux).
_MOST_BUFFERS = 1024
_GROUP_BYTES = 64 << 10
#: How much an upload writes between two checks of the free space.
_CHECK_FREE_BYTES = 4 << 20
#: What a file system gives a file at least.
_BLOCK_BYTES = 4096
#: How often a name is tried again that was taken, and free a moment later.
_ATTEMPTS = 8
#: What a file system reports for a file whose bytes or metadata it has lost.
_DAMAGE = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EUCLEAN", "EBADMSG", "ENODATA", "EREMOTEIO", "EILSEQ")
    if hasattr(errno, name)
)

_log = Logger()


class LocalUpload:
    """
    One object on its way to disk.

    @param length: of the body in bytes, if it is known.
    @ivar size_bytes: how much has been written.
    @ivar change: by how much the commit has changed what is stored.
    """

    def __init__(
        self, directories: DataDirectory, repository: Repository, object_type: str, name: str, length: int | None = None
    ) -> None:
        self._directories = directories
        self._publisher = directories.publisher
        self._repository = repository
        self._object_type = object_type
        self._name = name
        self._hash = hashlib.sha256() if directories.verify and object_type != CONFIG else None
        self._directory_fd = -1
        self._file: TemporaryFile | None = None
        self._outcome: Outcome | None = None
        #: The bytes that this upload still reserves for C{--min-free}.
        self._coming_bytes = 0
        self._length = length or 0
        self._length_is_known = length is not None
        self._came_bytes = 0
        self._unchecked_bytes = 0
        self.size_bytes = 0
        self.change = Amount()
        #: What is on a disk can be told.
        self.is_uncertain = False

    def open(self) -> None:
        """
        Open the directory and a temporary file in it.

        @raise NotFound: the repository is missing.
        @raise InsufficientStorage: the disk is full.
        """
        directories = self._directories
        try:
            with space_errors():
                self._directory_fd = directories.open_object_directory(self._repository, self._object_type, self._name)
                if directories.free_space is not None:
                    # A file takes whole blocks, also for its last bytes.
                    self._coming(directories.free_space, (self._length // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
                    self._check_free(directories.free_space)
            self._file = self._publisher.temporary(
                object_directory(directories.path, self._repository, self._object_type, self._name),
                self._directory_fd,
                repository_path(directories.path, self._repository),
            )
        except InsufficientStorage as error:
            raise self._with_figures(error) from error.__cause__

    def write(self, chunks: Chunks) -> None:
        """
        Hash and write the next bytes.

        @raise InsufficientStorage: the disk is full.
        """
        assert self._file is not None
        free_space = self._directories.free_space
        size_bytes = sum(map(len, chunks))
        self._came_bytes += size_bytes
        try:
            with space_errors():
                if free_space is not None:
                    self._reserve(free_space, size_bytes)
                self._write(self._file.fd, chunks)
        except InsufficientStorage as error:
            raise self._with_figures(error) from error.__cause__
        if free_space is not None:
            # After the write: the file system itself counts what is written.
            self._coming(free_space, -size_bytes)

    def _write(self, fd: int, chunks: Chunks) -> None:
        if self._hash is None:
            for first in range(0, len(chunks), _MOST_BUFFERS):
                self.size_bytes += _write_all(fd, chunks[first : first + _MOST_BUFFERS])
        else:
            # In groups small enough that the processor's cache still has the bytes when they are written, and large enough
            # that thousands of tiny chunks need few calls.
            for group in _groups(chunks):
                for chunk in group:
                    self._hash.update(chunk)
                self.size_bytes += _write_all(fd, group)

    # --- free space

    def _sent(self) -> Sent:
        """How far the upload has come."""
        size_bytes = self._length if self._length_is_known else self._came_bytes
        stored_bytes = os.fstat(self._file.fd).st_blocks * 512 if self._file is not None else 0
        return Sent(size_bytes, self._length_is_known, self._coming_bytes, stored_bytes)

    def _with_figures(self, error: InsufficientStorage) -> InsufficientStorage:
        """The error of a full disk, with how much was sent, how much is left, and how much is in the trash."""
        cause = error.__cause__
        if isinstance(cause, OSError):  # otherwise it is from --min-free, which has the figures already
            with suppress(OSError):
                fd = self._directory_fd
                status = os.fstatvfs(fd) if fd >= 0 else os.statvfs(self._directories.path)
                error = no_space(self._sent(), status, cause)
        return error.with_words(self._directories.trash_words(self._repository))

    def _reserve(self, free_space: FreeSpaceGuard, size_bytes: int) -> None:
        """Before bytes are written: check the free space, once for every few MiB."""
        surprise = size_bytes - self._coming_bytes  # a chunked body has no known length
        if surprise > 0:
            self._coming(free_space, surprise)
        self._unchecked_bytes += size_bytes
        if surprise > 0 or self._unchecked_bytes >= _CHECK_FREE_BYTES:
            self._unchecked_bytes = 0
            self._check_free(free_space)

    def _check_free(self, free_space: FreeSpaceGuard) -> None:
        free_space.check(self._directory_fd, self._object_type in PRUNE_NEEDS, self._sent())

    def _coming(self, free_space: FreeSpaceGuard, size_bytes: int) -> None:
        """Reserve so many bytes more, or (negative) fewer."""
        free_space.coming(size_bytes)
        self._coming_bytes += size_bytes

    # --- the end

    def fence(self, check: Callable[[], object]) -> None:
        """Nothing: there are no other servers whose limits matter."""

    @stepped_method
    def commit(self) -> Steps[Outcome]:
        """
        Verify, fsync, publish without replacing, fsync the directory.

        @raise NoSuchRepository: the repository was deleted during the upload.
        @raise HashMismatch: the name is free and is not the hash of the bytes.
        @raise Forbidden: the name is taken and is not the hash of the bytes.
        @raise InsufficientStorage: the disk is full.
        """
        if self._outcome is None:
            try:
                with space_errors():
                    self._outcome = yield from self._commit()
            except InsufficientStorage as error:
                raise self._with_figures(error) from error.__cause__
            except FileNotFoundError:
                # The directory was removed, or is gone with its volume.
                self._directories.volume.check()
                if not self._directory_is_gone():
                    raise
                raise NoSuchRepository() from None
            self._close()
        return self._outcome

    def _directory_is_gone(self) -> bool:
        """Whether the directory that the upload began in is not there any more, or another one has its name."""
        assert self._file is not None
        try:
            there = os.stat(self._file.directory)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not os.path.samestat(there, os.fstat(self._directory_fd))

    def _commit(self) -> Steps[Outcome]:
        assert self._file is not None
        # Where a folder is found in other spellings, this path may lead to another repository by now.
        self._directories.find_repository(self._repository)
        if self._hash is not None and self._hash.hexdigest() != self._name:
            if os.path.lexists(os.path.join(self._file.directory, self._name)):
                raise self._does_not_match()
            raise HashMismatch()
        yield self._publisher, self._file.fd
        outcome = self._publish()
        yield self._publisher, self._directory_fd
        self._publisher.settle(self._file.directory, self._directories.path)
        return outcome

    def _does_not_match(self) -> Forbidden:
        return Forbidden(
            f"{self._object_type} {self._name[:16]} exists, and the hash of the content does not match the name"
        )

    def _publish(self) -> Outcome:
        assert self._file is not None
        attempts = _ATTEMPTS
        while True:
            attempts -= 1
            try:
                self._publisher.publish(self._file, self._name)
                self.change = Amount(self.size_bytes, 1)
                return Outcome.STORED
            except FileExistsError:
                try:
                    return self._compare_with_stored()
                except NotFound:
                    # Removed between our attempt and our look, so the name is free again. Or what has the name is no file
                    # at all (a directory, a dangling link), which the administrator must see.
                    if not attempts:
                        raise FileExistsError(
                            errno.EEXIST, "the name is not that of a regular file", self._name
                        ) from None

    def _compare_with_stored(self) -> Outcome:
        """The name is taken: equal bytes stay, a damaged object is replaced, anything else is refused."""
        assert self._file is not None
        path = os.path.join(self._file.directory, self._name)
        if self._object_type == CONFIG:
            return self._compare_config(self._file, path)
        if self._hash is None and hash_of(self._file.fd) != self._name:
            raise self._does_not_match()
        try:
            with opened(path) as stored_fd:
                self._directories.compare_size(self._repository, self._object_type, self._name, os.fstat(stored_fd))
                if hash_of(stored_fd) == self._name:
                    # Another upload may have linked it and not reached its fsync.
                    self._publisher.fsync(stored_fd)
                    return Outcome.UNCHANGED
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise as_missing(error) from error
            _log.warn("{path} cannot be read ({error}); replaced by a verified upload", path=path, error=error.strerror)
        else:
            _log.warn("{path} was damaged; replaced by a verified upload", path=path)
        before = self._publisher.replace(self._file, self._name)
        if before is None:
            before = self.size_bytes  # the size that it had when it was stored
        # -1: it was removed before it could be replaced.
        self.change = Amount(self.size_bytes - max(0, before), int(before < 0))
        return Outcome.HEALED

    def _compare_config(self, file: TemporaryFile, path: str) -> Outcome:
        """A config is never replaced."""
        try:
            with opened(path) as stored_fd:
                if not same_bytes(file.fd, stored_fd):
                    raise Forbidden("the repository already has a config")
                self._publisher.fsync(stored_fd)
                return Outcome.UNCHANGED
        except OSError as error:
            raise as_missing(error) from error

    def abort(self) -> None:
        """Leave nothing behind; after a commit, do nothing."""
        self._close()

    def _close(self) -> None:
        if self._directories.free_space is not None:
            self._coming(self._directories.free_space, -self._coming_bytes)
        file, self._file = self._file, None
        fd, self._directory_fd = self._directory_fd, -1
        try:
            if file is not None:
                file.discard()
        finally:
            if fd >= 0:
                os.close(fd)


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
    """Write all buffers, as C{writev} may write fewer bytes; returns how many bytes they have."""
    total = sum(map(len, chunks))
    written = os.writev(fd, chunks)
    if written < total:
        rest = memoryview(b"".join(chunks))[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]
    return total
