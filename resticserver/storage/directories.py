"""
The directories of one store: where an object lies, how far a path leads, and what it means that something is not found.

*Missing* is only what has no name. restic takes a 404 for an empty directory, or for no repository. So where a look fails
with ENOENT or ENOTDIR, the path is looked at again from the data directory down: a file in the place of a directory, or a
link that leads nowhere, is a fault of the server and no 404.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple

from ..errors import NoSuchRepository, NotFound
from ..files import is_directory, is_link, is_there
from ..names import CONFIG, TYPES
from ..sizes import FreeSpace
from .directory_snapshots import SETTLED_NS, Snapshot, Snapshots
from .folding import Spelling
from .free_space import FreeSpaceGuard
from .interface import SizeChange
from .layout import Repository, object_directory, repository_path
from .nowait import Nowait
from .publish import Publisher
from .trash import has_trash
from .volume import FileVolume

#: How often a directory is looked for again that was removed in between.
_ATTEMPTS = 8


class Reached(NamedTuple):
    """
    How far a path leads from the data directory.

    @ivar path: the last directory that is there; C{None} where the data directory is missing.
    @ivar in_repository: whether that is the repository's directory, or one in it.
    """

    path: str | None
    in_repository: bool


class DataDirectory:
    """
    The data directory of one store, with what is known of it. L{LocalStore} and its uploads, objects and lists share it.

    @param path: the data directory.
    @param snapshots: what lists have read.
    @param verify: whether the hash of an upload must be its name.
    @param min_free: how much of the file system uploads must leave free.
    @ivar on_size_change: called with objects whose size has changed; see L{observe_size_changes}.
    @ivar on_removal: called before something is removed; see L{observe_removals}.
    """

    def __init__(
        self, path: str, publisher: Publisher, snapshots: Snapshots, verify: bool, min_free: FreeSpace | None
    ) -> None:
        self.path = os.path.abspath(path)
        self.verify = verify
        self.publisher = publisher
        self.snapshots = snapshots
        self.volume = FileVolume(self.path, publisher)
        self.nowait = Nowait()
        self.spelling = Spelling(self.path)
        self.free_space = FreeSpaceGuard(min_free) if min_free is not None else None
        self.on_size_change: Callable[[SizeChange], object] = lambda change: None
        self.on_removal: Callable[[Repository, str, str], object] = lambda repository, object_type, name: None

    @property
    def place(self) -> str:
        """See L{resticserver.storage.interface.ServedStore.place}."""
        return self.path

    def observe_fsyncs(self, observer: Callable[[float], object]) -> None:
        """See L{resticserver.storage.interface.ServedStore.observe_fsyncs}."""
        self.publisher.observe_fsyncs(observer)

    def observe_size_changes(self, observer: Callable[[SizeChange], object]) -> None:
        """Call C{observer}, from any thread, with each object that has another size than before."""
        self.on_size_change = observer

    def observe_removals(self, observer: Callable[[Repository, str, str], object]) -> None:
        """
        Call C{observer}, from any thread, before an object is removed: with its repository, its type and its name; or, with an
        empty type and name, before a repository is.
        """
        self.on_removal = observer

    def trash_words(self, repository: Repository) -> str:
        """What the refusal of an upload says about the repository's trash, which takes space as well."""
        return ""

    def object_path(self, repository: Repository, object_type: str, name: str) -> str:
        """The path of an object's file."""
        return f"{object_directory(self.path, repository, object_type, name)}/{name}"

    def find_repository(self, repository: Repository) -> None:
        """
        Check that a repository is spelled as on disk, where the file system finds it in other spellings too.

        @raise NoSuchRepository: it is not, or it is missing.
        """
        try:
            found = self.spelling.look(repository)
        except NoSuchRepository:
            found = False
        if not found:
            self.volume.check()
            self.reach(repository, CONFIG)
            raise NoSuchRepository()

    def make_directories(self, path: str) -> None:
        """Make a directory and those above it, as far as they are missing."""
        missing = []
        while not is_directory(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            self.publisher.make_directory(directory)

    def open_object_directory(self, repository: Repository, object_type: str, name: str) -> int:
        """
        Open the directory that an object goes to. It is made if only the directory is missing and not the repository.

        @return: a descriptor.
        @raise NoSuchRepository: the repository's directory is missing.
        """
        self.volume.check()
        self.find_repository(repository)
        directory = object_directory(self.path, repository, object_type, name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if object_type == CONFIG and self._is_deleted(repository):
            raise NoSuchRepository()  # a config's directory is the repository's own, where the trash lies
        try:
            return os.open(directory, flags)
        except (FileNotFoundError, NotADirectoryError):
            if not self.reach(repository, object_type, name).in_repository or self._is_deleted(repository):
                self.volume.check()
                raise NoSuchRepository() from None
        self.make_directories(directory)
        return os.open(directory, flags)

    def _is_deleted(self, repository: Repository) -> bool:
        """Whether nothing is left of a repository but its trash."""
        path = repository_path(self.path, repository)
        return has_trash(self.path, repository) and not any(is_there(f"{path}/{name}") for name in (CONFIG, *TYPES))

    # --- what is missing

    def reach(self, repository: Repository, object_type: str, name: str = "") -> Reached:
        """
        How far the path of an object, or of a type's directory, leads.

        @raise OSError: something that is no directory has the name of one of the repository's, a link leads nowhere, or
            a directory cannot be looked at.
        """
        path = self.path
        try:
            if not is_directory(path):
                return Reached(None, False)
            for folder in repository:
                if not is_directory(f"{path}/{folder}"):
                    return Reached(path, False)
                path = f"{path}/{folder}"
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
            return Reached(path, False)  # a file that is not restic's is no repository
        if object_type != CONFIG:
            prefixed = [f"{path}/data/{name[:2]}"] if object_type == "data" and name else []
            for directory in (f"{path}/{object_type}", *prefixed):
                if not is_directory(directory):
                    break
                path = directory
        return Reached(path, True)

    def fsync_reached(self, repository: Repository, object_type: str = CONFIG, name: str = "") -> None:
        """Make durable that something is missing: fsync the last directory on its path that is there."""
        attempts = _ATTEMPTS
        while (path := self.reach(repository, object_type, name).path) is not None:
            attempts -= 1
            try:
                self.publisher.fsync_directory(path)
                return
            except FileNotFoundError:  # it was removed in between
                if not attempts:
                    raise

    def missing(self, error: OSError, repository: Repository, object_type: str, name: str) -> Exception:
        """
        What to raise when an object cannot be looked at.

        @raise OSError: something on its path is no directory, or a link leads nowhere.
        """
        self.volume.check()
        found = as_missing(error)
        if isinstance(found, NotFound):
            reached = self.reach(repository, object_type, name)
            if object_type == CONFIG and reached.in_repository:
                path = self.object_path(repository, object_type, name)
                if error.errno == errno.ENXIO or is_link(path):
                    return not_a_file(path)
        return found

    # --- sizes that have changed

    def compare_size(self, repository: Repository, object_type: str, name: str, status: os.stat_result) -> None:
        """
        Compare an object's size with the known one, if a snapshot in memory has it. Never blocks.

        @param status: of the object's file.
        """
        snapshot = self.snapshots.peek(object_directory(self.path, repository, object_type, name))
        if snapshot is not None:
            self.compare_with(snapshot, repository, object_type, name, status)

    def compare_with(
        self, snapshot: Snapshot, repository: Repository, object_type: str, name: str, status: os.stat_result
    ) -> None:
        """As L{compare_size}, with the snapshot of the object's directory."""
        # A file whose change time is older than the snapshot is as it was then. That is nearly every file.
        if status.st_ctime_ns <= snapshot.taken_ns - SETTLED_NS or object_type == CONFIG:
            return
        known_bytes = snapshot.size_of(name)
        if known_bytes is not None and known_bytes != status.st_size:
            self.on_size_change(SizeChange(repository, object_type, name, known_bytes, status.st_size))

    def forget_directory(self, repository: Repository, object_type: str, name: str) -> None:
        """Read the directory of an object again the next time, whatever its times say."""
        self.snapshots.forget(object_directory(self.path, repository, object_type, name))


def not_a_file(path: str) -> Exception:
    """
    What to raise where something else has the name of an object's file. It is no object, so that is a 404. But a client that
    is told that there is no config concludes that there is no repository.
    """
    if os.path.basename(path) == CONFIG:
        return OSError(errno.EINVAL, "not a regular file", path)
    return NotFound()


def as_missing(error: OSError) -> Exception:
    """What to raise for a failed look: missing is missing, everything else stays a fault of the server."""
    # ENXIO: a unix socket, which is no object.
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO):
        return NotFound()
    return error
