"""
The store of repositories as files on disk, in the layout of restic's own local backend, so that both may use them at once.

An object is verified and durable before it can be seen; see L{resticserver.storage.upload}.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from twisted.logger import Logger

from ..errors import InsufficientStorage, NoSuchRepository, NotFound, ServerError, StartError
from ..files import is_directory, is_there
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount, FreeSpace
from ..threads.steps import Steps, stepped_method
from .counting import Counting
from .directories import DataDirectory, not_a_file
from .directory_snapshots import Snapshots
from .free_space import space_errors
from .interface import Listing, NotDurable, SizeChange, Stored, Upload
from .layout import TRASH_CELL, Repository, object_directory, repository_path
from .listing import LocalListing
from .publish import TEMPORARY_FOLDER, UNWRITABLE, Publisher
from .reading import LocalObject, hash_of, opened
from .sweep import sweep
from .trash import is_kept, trash_words
from .trash_restore import Trash
from .upload import LocalUpload

#: For how many seconds a refusal repeats what it says about the trash.
_TRASH_WORDS_S = 10.0

_log = Logger()


class LocalStore(DataDirectory):
    """
    A L{resticserver.storage.interface.RepositoryStore} of files below one directory.

    @param path: the data directory.
    @param verify: whether the hash of an upload must be its name. A name conflict is always decided by hash.
    @param max_depth: how many folders deep repositories may lie.
    @param min_free: how much of the file system uploads must leave free.
    @param publisher: makes files and directories; has their modes.
    @param snapshots: keeps what lists have read, except for locks.
    @ivar counting: counts what is stored.
    @ivar trash: what was deleted and is kept.
    @cvar read_only: whether the store works also where it cannot write.
    """

    read_only = False

    def __init__(
        self,
        path: str,
        *,
        verify: bool = True,
        max_depth: int = 2,
        min_free: FreeSpace | None = None,
        publisher: Publisher | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        super().__init__(
            path,
            publisher if publisher is not None else Publisher(),
            snapshots if snapshots is not None else Snapshots(),
            verify,
            min_free,
        )
        self._no_snapshots = Snapshots(bound_bytes=0)
        self.trash = Trash(self.path, self.publisher)
        #: What refusals say about the trash of repositories, and until when on the monotonic clock.
        self._trash_words: dict[Repository, tuple[float, str]] = {}
        self.counting = Counting(
            self.path, self.volume, self.snapshots, max_depth, lambda change: self.on_size_change(change), self.spelling
        )

    # --- the start

    def prepare(self) -> None:
        """
        Make the data directory if it is missing, check that it can be written, and remove what a killed server has left. Does
        nothing while the volume of an earlier run is missing.

        @raise StartError: the directory cannot be made or written.
        """
        try:
            missing = self.volume.is_missing()
        except OSError as error:
            raise StartError(f"--path: cannot read the volume's marker {error.filename}: {error.strerror}") from error
        if missing:
            return  # make nothing in an empty mount point
        try:
            self.make_directories(self.path)
            may_write = self._try_to_write()
        except OSError as error:
            hint = (
                "; use --read-only to serve it anyway"
                if error.errno == errno.EROFS and os.path.isdir(self.path)
                else ""
            )
            raise StartError(f"--path: cannot use the data directory {self.path}: {error.strerror}{hint}") from error
        if may_write and self._sweep():
            self.volume.mark()
        self.volume.check()

    def _try_to_write(self) -> bool:
        """
        Whether the data directory can be written; C{False} where reading it is enough.

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

    def _sweep(self) -> bool:
        """Remove the uploads of a killed server from all repositories; whether there is any repository."""
        left = 0
        in_use = False
        for repository in self.counting.possible_repositories():
            with suppress(OSError):  # this server could remove nothing from a .tmp that it cannot read
                left += sweep(self.path, repository)
            in_use = in_use or os.path.isfile(self.object_path(repository, CONFIG, CONFIG))
        if left:
            _log.info("removed {left} unfinished uploads of an earlier run", left=left)
        return in_use

    def try_out(self) -> str:
        """See L{resticserver.storage.interface.ServedStore.try_out}: a block is written and flushed."""
        try:
            self.volume.check()
            directory_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                file = self.publisher.temporary(self.path, directory_fd, self.path)
                try:
                    os.write(file.fd, b"\0" * 4096)
                    self.publisher.fsync(file.fd)
                finally:
                    file.discard()
                if self.free_space is not None:
                    self.free_space.check(directory_fd, above=False)
            finally:
                os.close(directory_fd)
        except ServerError as error:
            return error.message
        except OSError as error:
            return self.cannot_write(error)
        return ""

    def expect_kept(self, keep_s: float) -> None:
        """See L{resticserver.storage.interface.ServedStore.expect_kept}: the trash is always there."""

    def cannot_write(self, error: OSError) -> str:
        """What an error of L{try_out} means; empty if the store works all the same."""
        return f"the data directory cannot be written: {error.strerror}"

    # --- repositories

    def create_repository(self, repository: Repository) -> None:
        """
        Make the directories of a repository, as far as they are missing; those of C{data} as restic makes them.

        @raise NotFound: the file system cannot have it under this name.
        @raise InsufficientStorage: the disk is full.
        @raise OSError: something that is no directory has the name of one.
        """
        self.volume.check()
        self.spelling.look(repository)
        path = repository_path(self.path, repository)
        _log.info("Creating repository directories in {path}", path=ascii(path)[1:-1])
        with space_errors():
            self.make_directories(self.path)
            self.spelling.make(repository, self.publisher.make_directory)
            for object_type in TYPES:
                self.publisher.make_directory(os.path.join(path, object_type))
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
            # A server that was killed may have made those that were there, just before.
            self.publisher.settle(path, self.path)
        self.volume.mark()

    def delete_repository(self, repository: Repository, keep_s: float = 0) -> None:
        """
        Remove what restic stores in a repository, the config first: without it there is no repository. Repositories below it
        stay, and so do files that are not restic's, and the directories that hold either.

        @param keep_s: for how long its objects are kept in the trash; 0 for not at all.
        @raise NotFound: there is no repository.
        """
        self.volume.check()
        try:
            self.find_repository(repository)
            if not self.reach(repository, CONFIG).in_repository:
                self.volume.check()
                raise NoSuchRepository()
        except NoSuchRepository:
            self.fsync_reached(repository)  # the request or server that removed it may not have come to that
            raise
        path = repository_path(self.path, repository)
        # Before anything is removed: an error here must not leave half a repository.
        directories = self._object_directories(path)
        _log.info("Deleting repository in {path}", path=ascii(path)[1:-1])
        self.on_removal(repository, "", "")
        if not self._remove_config(repository, path, keep_s) and not directories:
            self.publisher.fsync_directory(path)
            raise NoSuchRepository()
        for object_type, directory in directories:
            self._remove_objects(repository, object_type, directory, keep_s)
        if repository:
            _remove_if_empty(os.path.join(path, TEMPORARY_FOLDER))
            _remove_if_empty(path)
        self.fsync_reached(repository)

    @staticmethod
    def _object_directories(path: str) -> list[tuple[str, str]]:
        """
        The directories of a repository that hold objects, each with its type, inner ones first.

        @raise OSError: something that is no directory has the name of one, or one cannot be looked at.
        """
        found: list[tuple[str, str]] = []
        for object_type in TYPES:
            directory = os.path.join(path, object_type)
            if is_directory(directory):
                if object_type == "data":
                    inner = (os.path.join(directory, name) for name in os.listdir(directory) if is_object_id(name * 32))
                    found += [(object_type, path) for path in inner if is_directory(path)]
                found.append((object_type, directory))
        return found

    def _remove_config(self, repository: Repository, path: str, keep_s: float) -> bool:
        """Remove a repository's config, durably; whether there was one."""
        if not keep_s:
            return self._remove_file(os.path.join(path, CONFIG))
        kept = self.trash.keep(repository, CONFIG, f"{path}/{CONFIG}", keep_s)
        if kept is None:
            return False
        self.trash.fsync(kept)
        self.publisher.fsync_directory(path)
        return True

    def _remove_objects(self, repository: Repository, object_type: str, directory: str, keep_s: float) -> None:
        """
        Remove a directory's objects, and the directory if nothing else is in it. Makes that durable only where the directory
        stays; its parent's fsync is the caller's.
        """
        kept = set()
        for name in _names_in(directory):
            if not is_object_id(name):
                continue
            path = f"{directory}/{name}"
            if keep_s and is_kept(object_type) and not _is_no_file(path):
                kept.add(self.trash.keep(repository, object_type, path, keep_s))
            else:
                self._remove_file(path, durable=False)
        for trash_directory in filter(None, kept):
            self.trash.fsync(trash_directory)
        if not _remove_if_empty(directory):
            self.publisher.fsync_directory(directory)

    def _remove_file(self, path: str, durable: bool = True) -> bool:
        """Remove a file; whether there was one."""
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            # A call may fail and have succeeded: network file systems may lose the answer and repeat the call. (A file system
            # that is read-only says so also of a name that is missing.)
            if error.errno in UNWRITABLE or is_there(path):
                raise
        if durable:
            self.publisher.fsync_directory(os.path.dirname(path))
        return True

    def trash_words(self, repository: Repository) -> str:
        """What the refusal of an upload says about the repository's trash. It is counted once in some seconds."""
        now_s = time.monotonic()
        found = self._trash_words.get(repository)
        if found is None or found[0] < now_s:
            try:
                amount = self.counting.count(repository, (TRASH_CELL,)).get(TRASH_CELL, Amount())
                words = trash_words(amount.size_bytes, self.counting.trash_ends_s(repository, 0))
            except (OSError, ServerError):
                words = ""
            if len(self._trash_words) > 1000:
                self._trash_words.clear()
            found = self._trash_words[repository] = (now_s + _TRASH_WORDS_S, words)
        return found[1]

    # --- objects

    def upload(self, repository: Repository, object_type: str, name: str, length: int | None = None) -> Upload:
        """A new upload; does no I/O yet."""
        return LocalUpload(self, repository, object_type, name, length)

    def stored(self, repository: Repository, object_type: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""
        return LocalObject(self, repository, object_type, name)

    def size_nowait(self, repository: Repository, object_type: str, name: str) -> int | None:
        """An object's size in bytes; C{None} where there is no such object, or a look at it would block."""
        traits = self.nowait.traits(repository)
        if traits is None or not traits.names or not self.volume.seen_lately():
            return None
        directory = object_directory(self.path, repository, object_type, name)
        try:
            status = self.nowait.look(f"{directory}/{name}")
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        snapshot = self.snapshots.peek(directory)
        if snapshot is not None:
            self.compare_with(snapshot, repository, object_type, name, status)
        return status.st_size

    def size_of(self, repository: Repository, object_type: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is no file of that name.
        """
        self.volume.check_now_and_then()
        self.find_repository(repository)
        path = self.object_path(repository, object_type, name)
        try:
            status = os.stat(path)
        except OSError as error:
            raise self.missing(error, repository, object_type, name) from error
        if not stat.S_ISREG(status.st_mode):
            raise not_a_file(path)
        if self.nowait.available and self.nowait.traits(repository) is None:
            with suppress(OSError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    self.nowait.learn(repository, fd, self.spelling.is_exact)
                finally:
                    os.close(fd)
        self.compare_size(repository, object_type, name, status)
        return status.st_size

    def is_damaged(self, change: SizeChange) -> bool:
        """
        Whether an object whose size has changed is damaged: its hash is not its name. It is not if it is gone, if it was a copy
        that is complete now, or if it was restored. The snapshot of its directory is not used again in any case.

        @raise OSError: it cannot be read.
        """
        repository, object_type, name, *_ = change
        self.forget_directory(repository, object_type, name)
        try:
            with opened(self.object_path(repository, object_type, name)) as fd:
                return hash_of(fd) != name
        except (FileNotFoundError, NotFound):
            return False

    def list_objects(self, repository: Repository, object_type: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""
        # A lock that a list lacks may cost a repository its data, so locks are read every time.
        snapshots = self._no_snapshots if object_type == "locks" else self.snapshots
        return LocalListing(self, snapshots, repository, object_type, with_sizes)

    @stepped_method
    def remove_object(self, repository: Repository, object_type: str, name: str, keep_s: float = 0) -> Steps[Amount]:
        """
        Remove an object and make that durable: restic removes an index before the packs that it names, and after a power cut
        the index must not come back without them. An object that is gone already gets its fsync too: another request, or a
        server that was killed, may have removed it without one.

        @param keep_s: for how long it is kept in the trash; 0 for not at all. Locks never are.
        @return: by how much that changes what is stored.
        @raise NoSuchRepository: the repository has another spelling on disk.
        @raise NotDurable: the object is gone, but its directory could not be fsynced.
        """
        self.volume.check()
        if not self.spelling.look(repository):
            self.fsync_reached(repository, object_type, name)
            return Amount()
        path = self.object_path(repository, object_type, name)
        to_trash = bool(keep_s) and is_kept(object_type)
        link = False
        try:
            status: os.stat_result | None = os.lstat(path)
            if status is not None and stat.S_ISLNK(status.st_mode):
                link = True
                status = os.stat(path)  # as lists count it
        except OSError as error:
            # What cannot be looked at cannot be kept, and must not be lost; nor is it known how large it is. Of a link only the
            # link is removed.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and (to_trash or not link):
                raise
            status = None
        # Also what is not there: the scrub may have reported that it is missing.
        if object_type != "locks":
            self.on_removal(repository, object_type, name)
        kept = None
        regular = status is not None and stat.S_ISREG(status.st_mode)
        if to_trash and not link and (status is None or regular):
            # What was missing and is there now was uploaded or restored meanwhile: it stays.
            kept = self.trash.keep(repository, object_type, path, keep_s) if regular else None
            removed = kept is not None
        else:
            removed = self._remove_file(path, durable=False)
        if not removed:
            self.volume.check()
            if to_trash:
                self.trash.fsync_missing(repository, object_type)
            self.fsync_reached(repository, object_type, name)
            return Amount()
        # Of two removals at the same time only one gets here.
        change = Amount(-status.st_size, -1) if status is not None and regular else Amount()
        try:
            try:
                if kept is not None:
                    yield from self.trash.steps_of_move(kept, os.path.dirname(path))
                else:
                    yield from self.publisher.steps_of_directory(os.path.dirname(path))
            except FileNotFoundError:  # it was removed in between
                self.fsync_reached(repository, object_type, name)
        except OSError as error:
            raise NotDurable(error, change) from error
        return change


def _is_no_file(path: str) -> bool:
    """
    Whether something is there that the trash does not keep: of a link only the link is removed, and its file stays.

    @raise OSError: it cannot be looked at, so it must not be lost.
    """
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_empty(directory: str) -> bool:
    """Remove a directory if it is empty; whether it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        # ENOTDIR: a link to a directory, which the administrator has made.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True
