"""
What a repository store can do, one ability each, and what an upload, a stored object and a list are.

Everything here blocks and is called from a pool, but for what is called C{at_once}. A repository is named by its folders
(L{resticserver.names.Target}), which have been judged already: a store does not look at names again. Anything may raise
Unavailable: the volume is gone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from ..sizes import Amount

#: Bytes on their way in, in order.
Chunks = Sequence[bytes | memoryview]


class Outcome(Enum):
    """How an upload ended."""

    STORED = "stored"
    #: The same bytes were there already; they stay and are on disk.
    UNCHANGED = "unchanged"
    #: Other bytes stood under the name that these bytes have earned; they were replaced.
    HEALED = "healed"


#: The binary form of an object's id has so many bytes.
ID_BYTES = 32


class Entry(NamedTuple):
    """One line of a list. C{size_bytes} is 0 where it is not known."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """
    A part of a list: some objects in little memory. Nobody changes what is in it.

    @ivar ids: the ids in binary form, one behind the other.
    @ivar sizes: the size of each in bytes; C{None} where they are not known.
    @ivar number: later lists may give out these very objects again, under the same number and no others under it, so
        what is made of them may be worth keeping; C{None} where they come but once.
    """

    ids: bytes
    sizes: array[int] | None
    number: int | None = None

    def __len__(self) -> int:
        """How many objects there are."""
        return len(self.ids) // ID_BYTES

    def names(self) -> list[str]:
        """The ids as they are written."""
        return self.ids.hex(",", ID_BYTES).split(",") if self.ids else []

    def __iter__(self) -> Iterator[Entry]:
        """The objects as lines of a list."""
        return map(Entry, self.names(), self.sizes if self.sizes is not None else [0] * len(self))


class SizeChange(NamedTuple):
    """
    An object whose size is not the one that was known. Objects are immutable, so it is damaged, or the known size was one that
    it had on its way (a copy beside the server).

    @ivar known_bytes: the size that it had; C{found_bytes} the one that was found.
    """

    repository: tuple[str, ...]
    kind: str
    name: str
    known_bytes: int
    found_bytes: int


class NotDurable(OSError):
    """
    An object was removed, and it is not known whether it stays so after a power cut.

    @ivar change: by how much the removal has changed what is stored.
    """

    def __init__(self, error: OSError, change: Amount) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.change = change


class Upload(Protocol):
    """
    One object on its way in.

    C{open}, then C{write} any number of times, then C{commit} or C{abort}; one call at a time, from any thread.
    Nothing is visible before C{commit} returns. C{commit} and C{abort} are idempotent, and C{abort} after C{commit}
    does nothing, so that every failure path may call it.
    """

    @property
    def size_bytes(self) -> int:
        """How much was written."""

    @property
    def change(self) -> Amount:
        """By how much the commit has changed what is stored; nothing before, and nothing if it failed."""

    def open(self) -> None:
        """
        Take the place that the bytes go to.

        @raise NoSuchRepository: it is not there; C{open} may be called again when it is.
        @raise InsufficientStorage: the disk is full.
        """

    def write(self, chunks: Chunks) -> None:
        """
        Store and hash the next bytes, which are good only during the call: their buffers are used again.

        @raise InsufficientStorage: the disk is full.
        """

    def commit(self) -> Outcome:
        """
        Verify, make durable, make visible, make the visibility durable; in that order.

        @raise HashMismatch: the name is free and is not the hash of the bytes.
        @raise Forbidden: the name is taken and the bytes are not what it promises.
        @raise InsufficientStorage: the disk is full.
        """

    def abort(self) -> None:
        """Leave nothing behind."""


class Stored(Protocol):
    """
    A stored object for reading: C{open} first, C{close} in any case. It stays whole for its reader whatever happens to
    its name meanwhile.
    """

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""

    def open(self) -> None:
        """
        Open it.

        @raise NotFound: there is none of that name.
        """

    def open_nowait(self) -> bool:
        """
        Open it if that takes no waiting (so this one is not for the pool); whether it is open now. If not, C{open} says why.
        """

    def fileno(self) -> int:
        """The file's descriptor, for sendfile; -1 where there is none."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to C{length} bytes from C{offset}; empty only at the end."""

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """All of a part of what was opened at once, if that takes no waiting."""

    def close(self) -> None:
        """Give the object back; idempotent."""


class Listing(Protocol):
    """The objects of one type: C{open} first, C{close} in any case; the parts are read as they are asked for."""

    def open(self) -> None:
        """
        Open it.

        @raise NotFound: the type's directory is not there (never because an entry vanished).
        """

    def __iter__(self) -> Iterator[Objects]:
        """
        The parts, once. Each object that was there all the time is in one of them; one that comes or goes meanwhile may
        or may not appear. Sizes are there if they were asked for, and may be there if not.
        """

    def close(self) -> None:
        """Give the directory back; idempotent."""


class Creates(Protocol):
    """Can make repositories."""

    def create_repository(self, repository: tuple[str, ...]) -> None:
        """Make the directories of a repository, as far as they are missing."""


class DeletesRepositories(Protocol):
    """Can remove whole repositories."""

    def delete_repository(self, repository: tuple[str, ...]) -> None:
        """
        Remove what restic stores there, the config first; never repositories below it or what is not restic's.

        @raise NoSuchRepository: there is none.
        """


class Saves(Protocol):
    """Can take objects in."""

    def upload(self, repository: tuple[str, ...], kind: str, name: str, length: int | None = None) -> Upload:
        """A new upload, of so many bytes if that is known; does no I/O yet."""


class Loads(Protocol):
    """Can give objects out."""

    def stored(self, repository: tuple[str, ...], kind: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""

    def size_of(self, repository: tuple[str, ...], kind: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is none of that name.
        """

    def size_nowait(self, repository: tuple[str, ...], kind: str, name: str) -> int | None:
        """
        An object's size in bytes, if that can be had without waiting (so this is not for the pool); else, and if there is
        none, C{None}.
        """


class Lists(Protocol):
    """Can say what is there."""

    def list_objects(self, repository: tuple[str, ...], kind: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""


class Removes(Protocol):
    """Can remove objects."""

    def remove_object(self, repository: tuple[str, ...], kind: str, name: str) -> Amount:
        """
        Remove an object for good; by how much that changes what is stored: nothing if there was none. Also then it is for
        good: another removal of the same object may not have come to that.

        @raise NotDurable: it is gone, and perhaps not for good.
        """


class RepositoryStore(Creates, DeletesRepositories, Saves, Loads, Lists, Removes, Protocol):
    """All that the API needs."""

    def prepare(self) -> None:
        """
        Make the place ready: called once, before anything else.

        @raise StartError: it cannot be used.
        """
