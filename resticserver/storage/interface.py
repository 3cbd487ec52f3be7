"""
What a repository store can do, one ability each, and what an upload, a stored object and a list are.

Everything here blocks and is called from a pool, except for what is called C{nowait}. A repository is named by its folders
(L{resticserver.targets.Target}), which were checked before: a store does not check names again. Any method may raise
Unavailable: the volume is gone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from ..sizes import Amount
from .volume import Volume

#: Bytes of an upload, in order.
Chunks = Sequence[bytes | memoryview]


class Outcome(Enum):
    """How an upload ended."""

    STORED = "stored"
    #: The same bytes were there already; they stay and are durable.
    UNCHANGED = "unchanged"
    #: The object was there and damaged; it was replaced by the verified upload.
    HEALED = "healed"


#: The length of an object's id in binary form.
ID_BYTES = 32


class Entry(NamedTuple):
    """One line of a list. C{size_bytes} is 0 where it is not known."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """
    A part of a list: some objects in little memory. It is never changed.

    @ivar ids: the ids in binary form, one after the other.
    @ivar sizes: the size of each in bytes; C{None} where they are not known.
    @ivar cache_key: identifies exactly these objects: equal keys mean equal objects. C{None} where they come only once.
    """

    ids: bytes
    sizes: array[int] | None
    cache_key: int | None = None

    def __len__(self) -> int:
        """How many objects there are."""
        return len(self.ids) // ID_BYTES

    def names(self) -> list[str]:
        """The ids in hex."""
        return self.ids.hex(",", ID_BYTES).split(",") if self.ids else []

    def __iter__(self) -> Iterator[Entry]:
        """The objects as lines of a list."""
        return map(Entry, self.names(), self.sizes if self.sizes is not None else [0] * len(self))


class SizeChange(NamedTuple):
    """
    An object whose size is not the known one. Objects are immutable, so it is damaged, or the known size was that of an
    incomplete copy.

    @ivar known_bytes: the size that it had; C{found_bytes} the size that it has.
    """

    repository: tuple[str, ...]
    object_type: str
    name: str
    known_bytes: int
    found_bytes: int


class WantedPart(NamedTuple):
    """
    A part of an object that a client asks for: from C{start} up to and without C{end}, in bytes; C{end} C{None}: to its end.
    With C{suffix} it is the last C{suffix} bytes instead.
    """

    start: int = 0
    end: int | None = None
    suffix: int = 0


class NotDurable(OSError):
    """
    An object was removed, but a power cut may bring it back.

    @ivar change: by how much the removal has changed what is stored.
    """

    def __init__(self, error: OSError, change: Amount) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.change = change


class Upload(Protocol):
    """
    One object on its way in.

    C{open}, then C{write} any number of times, then C{commit} or C{abort}; one call at a time, from any thread. Nothing is
    visible before C{commit} returns. C{commit} and C{abort} are idempotent, and C{abort} after C{commit} does nothing, so
    that every failure path may call it.
    """

    @property
    def size_bytes(self) -> int:
        """How much was written."""

    @property
    def change(self) -> Amount:
        """By how much the commit has changed what is stored; nothing before it, and nothing if it failed."""

    @property
    def is_uncertain(self) -> bool:
        """Whether a commit has failed, and the object may be stored all the same."""

    def open(self) -> None:
        """
        Get ready for the bytes.

        @raise NoSuchRepository: it is missing; C{open} may be called again when it was made.
        @raise InsufficientStorage: the disk is full.
        """

    def write(self, chunks: Chunks) -> None:
        """
        Store and hash the next bytes. They are valid only during the call: their buffers are used again.

        @raise InsufficientStorage: the disk is full.
        """

    def fence(self, check: Callable[[], object]) -> None:
        """
        Let C{commit} call this right before each step that stores something, if other servers may store in the same place.

        @param check: raises L{resticserver.errors.Unavailable} if nothing may be stored any more.
        """

    def commit(self) -> Outcome:
        """
        Verify, make durable, make visible, make the visibility durable; in that order.

        @raise HashMismatch: the name is free and is not the hash of the bytes.
        @raise Forbidden: the name is taken and is not the hash of the bytes.
        @raise InsufficientStorage: the disk is full.
        """

    def abort(self) -> None:
        """Leave nothing behind."""


class Stored(Protocol):
    """
    A stored object for reading: C{open} first, C{close} in any case. It stays whole for its reader even if it is removed or
    replaced.
    """

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""

    def open(self, wanted: WantedPart | None = None) -> None:
        """
        Open it.

        @param wanted: the part that will be read, if it is known; others can be read as well.
        @raise NotFound: there is none of that name.
        @raise RangeNotSatisfiable: the part begins at or after the end, where the store has noticed that.
        """

    def open_nowait(self) -> bool:
        """
        Open it if that does not block (so this is not for the pool); whether it is open. If it is not, C{open} says why.
        """

    def fileno(self) -> int:
        """The file's descriptor, for sendfile; -1 where there is none."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Up to C{length} bytes from C{offset}; empty only at the end."""

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """All of a part, if L{open_nowait} has opened it and that does not block; else C{None}."""

    def close(self) -> None:
        """Release the object; idempotent."""


class Listing(Protocol):
    """The objects of one type: C{open} first, C{close} in any case; the parts are read as they are asked for."""

    def open(self) -> None:
        """
        Open it.

        @raise NotFound: the type's directory is missing (never because an entry vanished).
        """

    def __iter__(self) -> Iterator[Objects]:
        """
        The parts, once. Each object that is there all the time is in one of them; an object that is added or removed during
        the list may be in one. Sizes are there if they were asked for, and may be there if not.
        """

    def close(self) -> None:
        """Release the directory; idempotent."""


class Creates(Protocol):
    """Can make repositories."""

    def create_repository(self, repository: tuple[str, ...]) -> None:
        """Make the directories of a repository, as far as they are missing."""


class DeletesRepositories(Protocol):
    """Can remove whole repositories."""

    def delete_repository(self, repository: tuple[str, ...], keep_s: float = 0) -> None:
        """
        Remove what restic stores there, the config first; never repositories below it or files that are not restic's.

        @param keep_s: for how long its objects are kept in the trash; 0 for not at all.
        @raise NoSuchRepository: there is none.
        """


class Saves(Protocol):
    """Can store objects."""

    def upload(self, repository: tuple[str, ...], object_type: str, name: str, length: int | None = None) -> Upload:
        """
        A new upload; does no I/O yet.

        @param length: in bytes, if it is known.
        """


class Loads(Protocol):
    """Can return objects."""

    def stored(self, repository: tuple[str, ...], object_type: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""

    def size_of(self, repository: tuple[str, ...], object_type: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is none of that name.
        """

    def size_nowait(self, repository: tuple[str, ...], object_type: str, name: str) -> int | None:
        """
        An object's size in bytes, if that does not block (so this is not for the pool); else, and if there is no such object,
        C{None}.
        """


class ListsObjects(Protocol):
    """Can list objects."""

    def list_objects(self, repository: tuple[str, ...], object_type: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""


class Removes(Protocol):
    """Can remove objects."""

    def remove_object(self, repository: tuple[str, ...], object_type: str, name: str, keep_s: float = 0) -> Amount:
        """
        Remove an object and make that durable, also if there was none: an earlier removal may not have been made durable.

        @param keep_s: for how long it is kept in the trash; 0 for not at all. Locks never are.
        @return: by how much that changes what is stored.
        @raise NotDurable: it is gone, but a power cut may bring it back.
        """


class RepositoryStore(Creates, DeletesRepositories, Saves, Loads, ListsObjects, Removes, Protocol):
    """All that the API needs."""

    def prepare(self) -> None:
        """
        Called once, before anything else.

        @raise StartError: the store cannot be used.
        """


class Counts(Protocol):
    """
    Counts what is stored, by the cells of L{resticserver.storage.layout}. Times are in seconds since 1970, and C{None} where
    there is nothing.
    """

    def repositories(self) -> list[tuple[str, ...]]:
        """
        All repositories, also those that have no config.

        @raise Unavailable: the volume is gone.
        """

    def begin(self) -> None:
        """Called before a number of counts."""

    def known(self, repository: tuple[str, ...]) -> dict[int, Amount]:
        """The cells of a repository that can be told quickly."""

    def count(self, repository: tuple[str, ...], cells: Iterable[int]) -> dict[int, Amount]:
        """Cells, counted as they are now; those that cannot be read are left out."""

    def trash_ends_s(self, repository: tuple[str, ...], delay_s: float) -> float | None:
        """
        Before this time nothing in the trash of a repository ends.

        @param delay_s: the delay that is in force now, in seconds.
        """

    def last_snapshot_s(self, repository: tuple[str, ...], otherwise: float | None = None) -> float | None:
        """
        When the newest snapshot of a repository was stored.

        @param otherwise: returned where the snapshots cannot be read.
        """

    def oldest_lock_s(self, repository: tuple[str, ...], otherwise: float | None = None) -> float | None:
        """When the oldest lock of a repository was made; as L{last_snapshot_s}."""

    def created_s(self, repository: tuple[str, ...], otherwise: float | None = None) -> float | None:
        """When the config of a repository was stored; as L{last_snapshot_s}."""


class ServedStore(RepositoryStore, Protocol):
    """A store that a server serves: what the services behind the API need of it besides."""

    @property
    def read_only(self) -> bool:
        """Whether the store works also where it cannot write."""

    @property
    def place(self) -> str:
        """Where repositories lie, for messages."""

    @property
    def volume(self) -> Volume:
        """Whether that place is there."""

    @property
    def counting(self) -> Counts:
        """Counts what is stored."""

    def expect_kept(self, keep_s: float) -> None:
        """
        Called before C{prepare}: what is deleted is to be kept for so many seconds, 0 for not at all. Where the store cannot do
        that, C{prepare} fails.
        """

    def try_out(self) -> str:
        """Try whether the store can be used, by using it; why it cannot be, empty if it can."""

    def observe_fsyncs(self, observer: Callable[[float], object]) -> None:
        """Call C{observer}, from any thread, with the seconds that each fsync took."""

    def observe_size_changes(self, observer: Callable[[SizeChange], object]) -> None:
        """Call C{observer}, from any thread, with each object that has another size than before."""

    def is_damaged(self, change: SizeChange) -> bool:
        """
        Whether an object whose size has changed is damaged.

        @raise OSError: it cannot be read.
        """

    def forget_directory(self, repository: tuple[str, ...], object_type: str, name: str) -> None:
        """Drop what is remembered of the directory of an object."""
