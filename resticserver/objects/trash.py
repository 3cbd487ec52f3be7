"""
The trash of repositories in a bucket: old versions of objects that are deleted. A deletion is what it is without a trash, and the
bucket keeps the version; for how long is said by the bucket's own rules. To restore an object is to remove the marker that says
that it is deleted, so nothing is copied but an older config, and nothing that is there is ever replaced.

Blocking, for a pool or a command.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple

from ..names import CONFIG, is_object_id
from ..sizes import Amount
from ..storage.layout import Repository
from ..storage.trash import KEPT_TYPES
from .counting import BucketCounting
from .engine import Absent, Engine, Exists
from .layout import Keys, name_in
from .versions import S3Versions, Version


class DeletedVersion(NamedTuple):
    """
    A version of an object that is not there any more, or of which there is another one now.

    @ivar name: its id; for a config the hash of its content.
    @ivar deleted_s: when it was deleted or replaced, in seconds since 1970.
    @ivar markers: the ids of the markers that say that the object is deleted, the newest first; empty if something is there now.
    @ivar is_newest: whether nothing was stored under the key after it.
    """

    repository: Repository
    object_type: str
    name: str
    size_bytes: int
    deleted_s: float
    key: str
    version_id: str
    markers: tuple[str, ...]
    is_newest: bool

    def ends_s(self, delay_s: float) -> float | None:
        """When it ends: the bucket's rules decide, not the delay of the server."""
        return None


class BucketTrash:
    """
    The old versions of all repositories of a bucket.

    @param keys: of the store.
    """

    def __init__(self, engine: Engine, versions: S3Versions, keys: Keys, counting: BucketCounting) -> None:
        self._engine = engine
        self._versions = versions
        self._keys = keys
        self._counting = counting

    def repositories(self) -> list[Repository]:
        """All that may have something in the trash, also those that were deleted as a whole."""
        return self._counting.repositories()

    def has_repository(self, repository: Repository) -> bool:
        """Whether there is something at its path, or was."""
        return any(True for _ in self._versions.pages(self._keys.repository(repository)))

    def objects(self, repository: Repository) -> Iterator[DeletedVersion]:
        """What was deleted, in no order."""
        for object_type in KEPT_TYPES:
            prefix = self._keys.repository(repository) + (CONFIG if object_type == CONFIG else f"{object_type}/")
            for versions in _by_key(self._versions, prefix):
                name = CONFIG if object_type == CONFIG else name_in(versions[0].key, object_type)
                if (object_type == CONFIG and not versions[0].key) or is_object_id(name):
                    yield from self._deleted(repository, object_type, name, prefix, versions)

    def _deleted(
        self, repository: Repository, object_type: str, name: str, prefix: str, versions: Sequence[Version]
    ) -> Iterator[DeletedVersion]:
        """
        The old ones of the versions of an object.

        @param versions: the newest first.
        """
        markers = tuple(version.version_id for version in takewhile(lambda one: one.is_marker, versions))
        deleted_s = 0.0
        is_newest = True
        for version in versions:
            if not version.is_marker:
                if not version.is_latest:
                    key, version_id = prefix + version.key, version.version_id
                    shown = self._hash_of(key, version) if object_type == CONFIG else name
                    size_bytes = version.size_bytes
                    yield DeletedVersion(
                        repository, object_type, shown, size_bytes, deleted_s, key, version_id, markers, is_newest
                    )
                is_newest = False
            deleted_s = version.modified_s

    def _hash_of(self, key: str, version: Version) -> str:
        try:
            return hashlib.sha256(self._versions.content(key, version.version_id)).hexdigest()
        except Absent:
            return ""

    def restore(self, deleted: DeletedVersion) -> bool:
        """
        Make a deleted object be there again, if nothing has its name now. Versions of one id have the same content, so the newest
        stands for each of them; of a config that is not the newest a copy is stored.

        @return: whether that was done; false if the same object is there already.
        @raise FileExistsError: there is another config.
        @raise FileNotFoundError: it is not in the trash any more.
        """
        is_config = deleted.object_type == CONFIG
        if not deleted.markers:
            if is_config:
                self._check_same(deleted)
            return False
        if is_config and not deleted.is_newest:
            return self._restore_older(deleted)
        # The oldest first: while the newest is there the object stays deleted, so an interrupted restore has done nothing yet.
        for marker in reversed(deleted.markers):
            self._versions.remove(deleted.key, marker)
        return True

    def _check_same(self, config: DeletedVersion) -> None:
        """
        Check that it is this config that is there now.

        @raise FileExistsError: it is another one.
        """
        if self.config_hash(config.repository) != config.name:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), config.key)

    def _restore_older(self, config: DeletedVersion) -> bool:
        """See L{restore}."""
        try:
            content = self._versions.content(config.key, config.version_id)
        except Absent:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), config.key) from None
        try:
            self._engine.put_new(config.key, content)
        except Exists:
            self._check_same(config)
            return False
        return True

    def remove(self, repository: Repository, objects: Sequence[DeletedVersion]) -> Amount:
        """
        Remove versions for good.

        @return: what was removed.
        @raise AccessRefused: the keys may not do that, or a version is locked.
        """
        for one in objects:
            self._versions.remove(one.key, one.version_id)
        return Amount(sum(one.size_bytes for one in objects), len(objects))

    def tidy(self, repository: Repository) -> None:
        """Nothing is left that would have to be removed."""

    @contextmanager
    def acting(self, repository: Repository) -> Iterator[None]:
        """The keys decide what may be done."""
        yield

    def config_hash(self, repository: Repository) -> str | None:
        """The hash of the config that is there now; C{None} if there is none."""
        digest = hashlib.sha256()
        try:
            body = self._engine.get(self._keys.object(repository, CONFIG, CONFIG))
        except Absent:
            return None
        try:
            while piece := body.read():
                digest.update(piece)
        finally:
            body.close()
        return digest.hexdigest()

    def has_locks(self, repository: Repository) -> bool:
        """Whether a client works with the repository."""
        return any(True for _ in self._engine.list_pages(self._keys.objects(repository, "locks")))


def _by_key(versions: S3Versions, prefix: str) -> Iterator[list[Version]]:
    """All versions of one key after the other."""
    group: list[Version] = []
    for page in versions.pages(prefix):
        for version in page:
            if group and group[0].key != version.key:
                yield group
                group = []
            group.append(version)
    if group:
        yield group
