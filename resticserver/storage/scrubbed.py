"""
What the scrub needs of the place where objects lie: files (L{resticserver.storage.scrubbed_files}) or a bucket
(L{resticserver.objects.scrubbed}).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from ..threads.rate_limit import RateLimit
from .layout import Repository
from .object_check import Check, FileVersion
from .object_directory import Contents
from .scrub_state import DirectoryRow, Key

#: Threads that read and hash remote objects, beside those of a core each: they mostly wait for the network.
REMOTE_READERS = 8


class Scrubbed(Protocol):
    """
    A place where objects lie, in object directories: the cells of repositories. All methods block. Safe from several threads, but
    for L{look} and L{contents}, which are called by one at a time.

    Each method may raise L{resticserver.errors.Unavailable}: the place is gone, or does not answer.
    """

    @property
    def is_remote(self) -> bool:
        """Whether each look is a request to another machine, which takes time and costs money, and may fail now and not later."""

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests were made, by their kinds; empty where there are none."""

    def check_there(self) -> None:
        """
        Check that the place is there: one that is gone looks empty.

        @raise Unavailable: it is not.
        """

    def repositories(self) -> list[Repository] | None:
        """
        All repositories; C{None} where only L{look} finds them.

        @raise OSError: that cannot be told.
        """

    def look(
        self, repositories: Iterable[Repository] | None, known: Mapping[Key, DirectoryRow], limit: RateLimit
    ) -> Iterator[tuple[Key, Contents | OSError]]:
        """
        Read the object directories that have changed.

        @param repositories: of these; C{None} for all.
        @param known: what is known of directories. One whose stamp is still the same is left out.
        @param limit: its C{stop} ends the look.
        @return: each with what is in it, or why it cannot be read. A directory that is known and not there any more has nothing.
        @raise Stopped: by the limit.
        """

    def contents(self, key: Key) -> Contents:
        """
        Read one object directory.

        @raise OSError: it cannot be read.
        """

    def cannot_read(self, key: Key, error: OSError) -> str:
        """
        Note that a directory cannot be read.

        @return: which one that is, for messages.
        @raise OSError: the error is not the directory's, but this process's.
        """

    def check(self, key: Key, name: str, limit: RateLimit) -> Check:
        """
        Read and hash an object.

        @raise Stopped: by the limit.
        @raise OSError: this process cannot read now.
        """

    def version(self, key: Key, name: str) -> FileVersion | None:
        """
        The version of an object: as long as it is the same, so is the content. C{None} if it is not there.

        @raise OSError: it cannot be looked at.
        """

    def may_be_there(self, key: Key, name: str) -> bool:
        """Whether something may have the name of an object that was not in its directory a moment ago."""

    def was_deleted(self, repository: Repository, object_type: str, name: str) -> bool:
        """Whether an object that is not there may have been deleted by a client, as far as the place itself tells."""
