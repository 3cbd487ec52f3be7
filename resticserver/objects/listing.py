"""
Lists of a bucket, page by page as the engine sends them. Nothing of a list is kept: another front end may change the bucket at
any time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Protocol

from ..names import is_object_id
from ..storage.interface import Objects
from ..storage.layout import Repository
from ..storage.volume import Volume
from .engine import Engine, Found
from .layout import name_in


class ListedBy(Protocol):
    """The store as its lists see it."""

    @property
    def engine(self) -> Engine:
        """Where objects are stored."""

    def objects(self, repository: Repository, object_type: str) -> str:
        """What the keys of all objects of a type begin with."""

    def find_repository(self, repository: Repository) -> None:
        """
        Check that a repository is there.

        @raise NoSuchRepository: it is not.
        """

    @property
    def volume(self) -> Volume:
        """Whether the bucket is there."""


class ObjectListing:
    """See L{resticserver.storage.interface.Listing}."""

    def __init__(self, store: ListedBy, repository: Repository, object_type: str) -> None:
        self._store = store
        self._repository = repository
        self._object_type = object_type
        self._pages: Iterator[list[Found]] = iter(())
        self._first: list[Found] = []

    def open(self) -> None:
        """See L{resticserver.storage.interface.Listing.open}."""
        self._pages = self._store.engine.list_pages(self._store.objects(self._repository, self._object_type))
        self._first = next(self._pages, [])
        if not self._first:
            # An empty list, a missing repository and another bucket look alike.
            self._store.volume.check()
            self._store.find_repository(self._repository)

    def __iter__(self) -> Iterator[Objects]:
        """See L{resticserver.storage.interface.Listing.__iter__}."""
        page, self._first = self._first, []
        while page:
            if part := objects_of(page, self._object_type):
                yield part
            page = next(self._pages, [])

    def close(self) -> None:
        """See L{resticserver.storage.interface.Listing.close}."""
        self._pages = iter(())
        self._first = []


def objects_of(page: list[Found], object_type: str) -> Objects:
    """The objects of a page of a list; keys of another form are not restic's."""
    names: list[str] = []
    sizes: array[int] = array("Q")
    for found in page:
        name = name_in(found.key, object_type)
        if is_object_id(name):
            names.append(name)
            sizes.append(found.size_bytes)
    return Objects(bytes.fromhex("".join(names)), sizes)
