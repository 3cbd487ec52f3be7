"""
The quotas' arithmetic: how much each repository, each user and the whole server has, what is reserved for uploads on their
way, and whether more fits. No I/O, no clock, no threads: whoever has it calls it from one thread.

What is stored is kept by cells, one for each directory that holds objects (256 of C{data}), because that is how it is
counted: what an upload or a removal changes goes to its cell, and a count replaces what a cell says. All else are sums.

A repository that was not counted since the start counts with what was last known of it and a margin on top (L{Ledger.load}),
so that whatever happened before, what is taken for stored is never less than what is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import QUOTA, InsufficientStorage, short_name
from ..names import is_user_name
from ..sizes import LEAST_RESERVE_OBJECTS, RESERVE_PART, UNLIMITED, Amount, Limit, format_size, reserve_bytes
from ..storage.layout import CELLS, PRUNE_NEEDS, Repository, cell_of


def owner_of(repository: Repository) -> str | None:
    """Whose quota a repository counts for: the user with the name of its first folder, whether there is one or not."""
    return repository[0] if repository and is_user_name(repository[0]) else None


class QuotaExceeded(InsufficientStorage):
    """
    A limit leaves no room.

    @param limit: how much may be stored, in words, and C{upload} how much somebody wanted to store.
    @param left: how much of the limit is left for that upload.
    @ivar account: whose.
    """

    def __init__(self, account: Account, limit: str, upload: str, left: str) -> None:
        name = short_name(account.words)
        super().__init__(f"quota of {limit} for {name} exceeded: upload of {upload}, {left} left", QUOTA, account.words)
        self.account = account


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for an upload, besides the server's own limit."""

    user: Limit = UNLIMITED
    repository: Limit = UNLIMITED


@dataclass(slots=True, eq=False)
class Account:
    """
    Something that has a limit.

    @ivar words: what it is called in a refusal.
    @ivar used_bytes: what is stored, with margins; C{used_objects} likewise.
    @ivar reserved_bytes: what uploads on their way may become; C{reserved_objects} likewise.
    """

    words: str
    used_bytes: int = 0
    used_objects: int = 0
    reserved_bytes: int = 0
    reserved_objects: int = 0

    def admit(self, limit: Limit, size_bytes: int, objects: int, above: bool, own_bytes: int = 0) -> None:
        """
        See whether more fits.

        @param size_bytes: how much more; nothing as long as an upload's length is not known.
        @param above: whether it may use the reserve above the limit.
        @param own_bytes: what the same upload has reserved already.
        @raise QuotaExceeded: it does not.
        """
        if limit.size_bytes is not None:
            most = limit.size_bytes + (reserve_bytes(limit.size_bytes) if above else 0)
            if self.used_bytes + self.reserved_bytes + size_bytes > most:
                left_bytes = max(0, most - self.used_bytes - self.reserved_bytes + own_bytes)
                upload = format_size(own_bytes + size_bytes)
                if own_bytes or not size_bytes or not objects:
                    upload += " so far"
                raise QuotaExceeded(self, format_size(limit.size_bytes), upload, format_size(left_bytes))
        if limit.objects is not None and objects:
            most = limit.objects + (max(limit.objects // RESERVE_PART, LEAST_RESERVE_OBJECTS) if above else 0)
            if self.used_objects + self.reserved_objects + objects > most:
                left = max(0, most - self.used_objects - self.reserved_objects)
                raise QuotaExceeded(self, _objects(limit.objects), _objects(objects), str(left))


def _objects(number: int) -> str:
    return f"{number} object{'s' if number != 1 else ''}"


class RepositoryAccount(Account):
    """
    A repository.

    @ivar margin: how much more there may be than the cells say, as long as it was not counted.
    @ivar counted: whether every cell was counted since the start.
    @ivar known: whether there is not more than this says: it was counted or loaded, and is not just what was booked.
    @ivar last_snapshot_s: when its youngest snapshot was stored, in seconds since 1970, as far as is known.
    @ivar oldest_lock_s: when its oldest lock was made, as of the last count.
    @ivar changed: whether a cell has changed since somebody has set this back.
    """

    __slots__ = (
        "changed",
        "counted",
        "known",
        "last_snapshot_s",
        "margin",
        "objects",
        "oldest_lock_s",
        "repository",
        "sizes",
    )

    def __init__(self, repository: Repository) -> None:
        super().__init__(f"repository {'/'.join(repository) or '/'}")
        self.repository = repository
        self.last_snapshot_s: float | None = None
        self.oldest_lock_s: float | None = None
        self.changed = True
        self.sizes = array("q", bytes(8 * CELLS))
        self.objects = array("q", bytes(8 * CELLS))
        self.margin = Amount()
        self.counted = self.known = False

    @property
    def stored(self) -> Amount:
        """What is stored, as far as is known."""
        return Amount(self.used_bytes - self.margin.size_bytes, self.used_objects - self.margin.objects)

    @property
    def most(self) -> Amount:
        """What it may come to have when all uploads on their way have ended."""
        return Amount(self.used_bytes + self.reserved_bytes, self.used_objects + self.reserved_objects)


@dataclass(slots=True, eq=False)
class Reservation:
    """Room for an upload on its way, which may grow; L{Ledger.release} gives it back."""

    repository: Repository
    kind: str
    cell: int
    limits: Limits
    size_bytes: int
    objects: int = 1
    accounts: tuple[Account, ...] = field(repr=False, default=())


class Ledger:
    """
    All accounts.

    @param limit: of the whole server.
    @ivar repositories: the accounts of all repositories that are known.
    """

    def __init__(self, limit: Limit = UNLIMITED) -> None:
        self.limit = limit
        self.server = Account("this server")
        self.repositories: dict[Repository, RepositoryAccount] = {}
        self._users: dict[str, Account] = {}

    def account(self, repository: Repository) -> RepositoryAccount:
        """A repository's account; a new one where there was none."""
        account = self.repositories.get(repository)
        if account is None:
            account = self.repositories[repository] = RepositoryAccount(repository)
        return account

    def user(self, name: str) -> Account:
        """A user's account."""
        account = self._users.get(name)
        if account is None:
            account = self._users[name] = Account(name)
        return account

    def of_user(self, name: str) -> Iterator[Repository]:
        """The repositories that count for a user."""
        return (repository for repository in self.repositories if owner_of(repository) == name)

    def _accounts(self, repository: Repository) -> tuple[Account, ...]:
        """All that a repository counts for: the server, its owner if there is one, itself."""
        owner = owner_of(repository)
        return (self.server, *(() if owner is None else (self.user(owner),)), self.account(repository))

    # --- uploads on their way

    def reserve(self, repository: Repository, kind: str, name: str, size_bytes: int, limits: Limits) -> Reservation:
        """
        Room for an upload.

        @param size_bytes: what it will have; for one of unknown length what is sure by now.
        @raise QuotaExceeded: some limit leaves no room; nothing is reserved.
        """
        reservation = Reservation(repository, kind, cell_of(kind, name), limits, 0, 0)
        reservation.accounts = self._accounts(repository)
        try:
            self._add(reservation, size_bytes, 1)
        except QuotaExceeded:
            self._drop_if_empty(repository)
            raise
        return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """
        More room for the same upload.

        @raise QuotaExceeded: some limit leaves no room; what it had it keeps.
        """
        self._add(reservation, size_bytes, 0)

    def _add(self, reservation: Reservation, size_bytes: int, objects: int) -> None:
        above = reservation.kind in PRUNE_NEEDS
        limits = reservation.limits
        server, *users, repository = reservation.accounts
        # The widest last: who is told should learn of the limit that is nearest to them.
        own_bytes = reservation.size_bytes
        repository.admit(limits.repository, size_bytes, objects, above, own_bytes)
        for user in users:
            user.admit(limits.user, size_bytes, objects, above, own_bytes)
        server.admit(self.limit, size_bytes, objects, above, own_bytes)
        for account in reservation.accounts:
            account.reserved_bytes += size_bytes
            account.reserved_objects += objects
        reservation.size_bytes += size_bytes
        reservation.objects += objects

    def release(self, reservation: Reservation) -> None:
        """Give room back; idempotent."""
        for account in reservation.accounts:
            account.reserved_bytes -= reservation.size_bytes
            account.reserved_objects -= reservation.objects
        reservation.accounts = ()
        reservation.size_bytes = reservation.objects = 0
        self._drop_if_empty(reservation.repository)

    # --- what is stored

    def change(self, repository: Repository, cell: int, change: Amount) -> None:
        """An upload or a removal has changed what is stored."""
        account = self.account(repository)
        # Not below nothing: what was removed may have been put there by others, and never been booked.
        change = Amount(max(change.size_bytes, -account.sizes[cell]), max(change.objects, -account.objects[cell]))
        account.sizes[cell] += change.size_bytes
        account.objects[cell] += change.objects
        account.changed = True
        self._sum(repository, change)

    def count(self, repository: Repository, cells: Mapping[int, Amount]) -> Amount:
        """These cells have been counted; by how much that differs from what was known."""
        account = self.account(repository)
        size_bytes = objects = 0
        for cell, counted in cells.items():
            size_bytes += counted.size_bytes - account.sizes[cell]
            objects += counted.objects - account.objects[cell]
            account.changed = account.changed or counted != (account.sizes[cell], account.objects[cell])
            account.sizes[cell], account.objects[cell] = counted
        drift = Amount(size_bytes, objects)
        if account.known and not account.counted:
            # What is less here may be more in a cell that was not counted yet.
            less = Amount(-min(0, size_bytes), -min(0, objects))
            margin = account.margin
            account.margin = Amount(margin.size_bytes + less.size_bytes, margin.objects + less.objects)
            self._sum(repository, less)
        self._sum(repository, drift)
        return drift

    def all_counted(self, repository: Repository) -> None:
        """Every cell of a repository has been counted: nothing is uncertain any more."""
        account = self.account(repository)
        margin, account.margin = account.margin, Amount()
        self._sum(repository, Amount(-margin.size_bytes, -margin.objects))
        account.counted = account.known = True
        self._drop_if_empty(repository)

    def load(self, repository: Repository, sizes: Iterable[int], objects: Iterable[int], at_most: Amount) -> None:
        """What was last known of a repository, and how much it can have at most."""
        self.count(repository, {cell: Amount(*both) for cell, both in enumerate(zip(sizes, objects, strict=True))})
        account = self.account(repository)
        account.margin = Amount(
            max(0, at_most.size_bytes - account.used_bytes), max(0, at_most.objects - account.used_objects)
        )
        self._sum(repository, account.margin)
        account.known = True

    def forget(self, repository: Repository) -> None:
        """A repository is not there any more."""
        account = self.repositories.get(repository)
        if account is not None:
            self.count(repository, dict.fromkeys(range(CELLS), Amount()))
            self.all_counted(repository)

    def _sum(self, repository: Repository, change: Amount) -> None:
        for account in self._accounts(repository):
            account.used_bytes += change.size_bytes
            account.used_objects += change.objects

    def _drop_if_empty(self, repository: Repository) -> None:
        """Names that are asked for and are no repositories leave nothing behind."""
        account = self.repositories.get(repository)
        if account is None or account.used_objects or account.used_bytes or account.reserved_objects:
            return
        del self.repositories[repository]
        owner = owner_of(repository)
        if owner is not None:
            user = self._users.get(owner)
            if user is not None and not (user.used_objects or user.used_bytes or user.reserved_objects):
                del self._users[owner]
