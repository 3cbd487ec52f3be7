"""
What C{rest-server trash} needs of where deleted objects are: files, or old versions in a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

from ..config.settings import Settings
from ..errors import NotFound, StartError
from ..files import is_directory
from ..names import CONFIG
from ..sizes import Amount
from ..storage.layout import Repository, repository_path
from ..storage.local import LocalStore
from ..storage.publish import Publisher
from ..storage.reading import hash_of, opened
from ..storage.state import StateFile
from ..storage.trash import Deleted, Trashed, has_trash, trash_days, trashed_objects

D = TypeVar("D", bound=Deleted)


class TrashPlace(Protocol[D]):
    """Deleted objects. Each method may raise C{OSError} or L{resticserver.errors.ServerError}."""

    def repositories(self) -> list[Repository]:
        """All that may have something in the trash."""

    def has_repository(self, repository: Repository) -> bool:
        """Whether there is a repository, or was."""

    def objects(self, repository: Repository) -> Iterator[D]:
        """What was deleted in it, in no order."""

    def restore(self, deleted: D) -> bool:
        """
        Make an object be there again; durable.

        @return: whether that was done; false if the same object is there already.
        @raise Damaged: its content is damaged.
        @raise FileExistsError: something else has its name.
        @raise FileNotFoundError: it is not in the trash any more.
        """

    def remove(self, repository: Repository, objects: Sequence[D]) -> Amount:
        """Remove objects for good; what was removed."""

    def tidy(self, repository: Repository) -> None:
        """Remove what is left when all objects are gone."""

    def config_hash(self, repository: Repository) -> str | None:
        """The hash of the config that is there now; C{None} if there is none."""

    def has_locks(self, repository: Repository) -> bool:
        """Whether a client works with the repository."""

    def acting(self, repository: Repository) -> AbstractContextManager[None]:
        """A context for L{restore} and L{remove}."""


class FilesTrash:
    """The trash in a data directory. As root it acts with the rights of the repository's owner: nothing belongs to root then."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.restore = store.trash.restore

    def repositories(self) -> list[Repository]:
        """See L{TrashPlace.repositories}."""
        return list(self._store.counting.possible_repositories())

    def has_repository(self, repository: Repository) -> bool:
        """See L{TrashPlace.has_repository}."""
        return is_directory(repository_path(self._store.path, repository))

    def objects(self, repository: Repository) -> Iterator[Trashed]:
        """See L{TrashPlace.objects}."""
        if has_trash(self._store.path, repository):
            for day in trash_days(self._store.path, repository):
                # By their paths, so that each run takes the same one of two that were deleted at the same time.
                yield from sorted(trashed_objects(day), key=lambda one: one.path)

    def remove(self, repository: Repository, objects: Sequence[Trashed]) -> Amount:
        """See L{TrashPlace.remove}."""
        return self._store.trash.remove(repository, list(objects))

    def tidy(self, repository: Repository) -> None:
        """See L{TrashPlace.tidy}."""
        for day in trash_days(self._store.path, repository):
            self._store.trash.remove_if_empty(day)

    def config_hash(self, repository: Repository) -> str | None:
        """See L{TrashPlace.config_hash}."""
        try:
            with opened(f"{repository_path(self._store.path, repository)}/{CONFIG}") as fd:
                return hash_of(fd)
        except (FileNotFoundError, NotFound):
            return None

    def has_locks(self, repository: Repository) -> bool:
        """See L{TrashPlace.has_locks}."""
        try:
            return bool(os.listdir(f"{repository_path(self._store.path, repository)}/locks"))
        except OSError:
            return False

    @contextmanager
    def acting(self, repository: Repository) -> Iterator[None]:
        """As root, act with the rights of the repository's owner: what root makes, the server could not change."""
        status = os.stat(repository_path(self._store.path, repository))
        if os.geteuid() != 0 or status.st_uid == 0:
            yield
            return
        groups = os.getgroups()
        os.setgroups([status.st_gid])
        os.setegid(status.st_gid)
        os.seteuid(status.st_uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(os.getgid())
            os.setgroups(groups)


def open_files_trash(settings: Settings) -> FilesTrash:
    """
    The trash of the server's data directory; the volume must be there.

    @raise StartError: there is no data directory.
    @raise Unavailable: the volume is missing.
    """
    path = os.path.abspath(settings.path)
    publisher = Publisher(0o660, 0o770) if settings.group_accessible_repos else Publisher()
    store = LocalStore(path, max_depth=settings.max_depth, publisher=publisher)
    store.volume.expect(StateFile(path, settings.state_dir, read_only=True).marker())
    store.volume.check()
    if not os.path.isdir(path):
        raise StartError(f"there is no data directory {path}")
    return FilesTrash(store)
