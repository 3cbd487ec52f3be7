"""
The quota ledger: how much each repository, each user and the whole server stores, how much is reserved for uploads in
progress, and whether more fits. No I/O, no clock, no threads: all calls must come from one thread.

The ledger records stored amounts per cell. A cell is one directory that holds objects (C{data} has 256), because
directories are the unit of counting. An upload or a removal changes the amount of its cell; a count replaces it. All
other amounts are sums over cells.

A repository that was not counted since the start is entered with its last known amount plus a margin (L{Ledger.load}).
So whatever happened before the start, the ledger never records less than is stored.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import QUOTA, InsufficientStorage, short_name
from ..names import is_user_name
from ..sizes import LEAST_RESERVE_OBJECTS, RESERVE_PART, UNLIMITED, Amount, Limit, format_size, reserve_bytes
from ..storage.layout import CELLS, PRUNE_NEEDS, TRASH_CELL, Repository, cell_of
from ..storage.trash import trash_words


def owner_of(repository: Repository) -> str | None:
    """
    The user whose quota a repository counts against: the name of its first folder, whether or not such a user exists.
    """
    return repository[0] if repository and is_user_name(repository[0]) else None


class QuotaExceeded(InsufficientStorage):
    """
    A quota would be exceeded.

    @param limit: the limit, as text.
    @param upload: the size of the upload, as text.
    @param left: how much of the limit is left for this upload, as text.
    @ivar account: the account whose limit would be exceeded.
    """

    def __init__(self, account: Account, limit: str, upload: str, left: str) -> None:
        name = short_name(account.words)
        super().__init__(f"quota of {limit} for {name} exceeded: upload of {upload}, {left} left", QUOTA, account.words)
        self.account = account


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for one upload, besides the server's own."""

    user: Limit = UNLIMITED
    repository: Limit = UNLIMITED


@dataclass(slots=True, eq=False)
class Account:
    """
    The amounts of one entity with a limit: the server, a user or a repository.

    @ivar words: its name in a refusal.
    @ivar used_bytes: what is stored, including margins; C{used_objects} likewise.
    @ivar reserved_bytes: the most that uploads in progress may add; C{reserved_objects} likewise.
    """

    words: str
    used_bytes: int = 0
    used_objects: int = 0
    reserved_bytes: int = 0
    reserved_objects: int = 0

    def admit(self, limit: Limit, size_bytes: int, objects: int, above: bool, own_bytes: int = 0) -> None:
        """
        Check whether more fits.

        @param size_bytes: how much more; 0 as long as the length of the upload is unknown.
        @param above: whether the upload may use the reserve above the limit.
        @param own_bytes: what the same upload has reserved already.
        @raise QuotaExceeded: it does not fit.
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


def _with_more(limit: Limit, more: Amount) -> Limit:
    """A limit that is larger by an amount."""
    return Limit(
        None if limit.size_bytes is None else limit.size_bytes + more.size_bytes,
        None if limit.objects is None else limit.objects + more.objects,
    )


def _objects(number: int) -> str:
    return f"{number} object{'s' if number != 1 else ''}"


class RepositoryAccount(Account):
    """
    The account of a repository.

    @ivar margin: by how much the true amount may exceed the cells, as long as the repository was not counted.
    @ivar counted: True once every cell was counted since the start.
    @ivar known: True once this account was counted, or loaded from the state file. Bookings alone leave it False.
    @ivar last_snapshot_s: when the newest snapshot was stored, in seconds since 1970, as far as is known.
    @ivar oldest_lock_s: when the oldest lock was created, as of the last count.
    @ivar created_s: when the config was stored, as far as is known.
    @ivar changed: True if a cell has changed since this was last reset.
    @ivar trash_counts: whether what lies in the trash counts as used.
    @ivar trash_ends_s: before this time nothing in the trash ends, as of the last count; C{None} if that is not known.
    """

    __slots__ = (
        "changed",
        "counted",
        "created_s",
        "known",
        "last_snapshot_s",
        "margin",
        "objects",
        "oldest_lock_s",
        "repository",
        "sizes",
        "trash_counts",
        "trash_ends_s",
    )

    def __init__(self, repository: Repository) -> None:
        super().__init__(f"repository {'/'.join(repository) or '/'}")
        self.repository = repository
        self.last_snapshot_s: float | None = None
        self.oldest_lock_s: float | None = None
        self.created_s: float | None = None
        self.changed = True
        self.sizes = array("q", bytes(8 * CELLS))
        self.objects = array("q", bytes(8 * CELLS))
        self.margin = Amount()
        self.counted = self.known = False
        self.trash_counts = True
        self.trash_ends_s: float | None = None

    @property
    def trash(self) -> Amount:
        """What lies in the trash."""
        return Amount(self.sizes[TRASH_CELL], self.objects[TRASH_CELL])

    @property
    def uncounted(self) -> Amount:
        """What lies in the trash and does not count as used."""
        return Amount() if self.trash_counts else self.trash

    @property
    def stored(self) -> Amount:
        """What is stored, as far as is known, without the margin and the trash."""
        counted = self.trash if self.trash_counts else Amount()
        return Amount(
            self.used_bytes - self.margin.size_bytes - counted.size_bytes,
            self.used_objects - self.margin.objects - counted.objects,
        )

    @property
    def most(self) -> Amount:
        """The most that there may be once all uploads in progress have ended, the trash included."""
        more = self.uncounted
        return Amount(
            self.used_bytes + self.reserved_bytes + more.size_bytes,
            self.used_objects + self.reserved_objects + more.objects,
        )


@dataclass(slots=True, eq=False)
class Reservation:
    """Quota reserved for an upload in progress. It may grow; L{Ledger.release} gives it back."""

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
    @param trash_counts: whether the trash of a repository counts as used.
    @ivar repositories: the accounts of all known repositories.
    """

    def __init__(
        self, limit: Limit = UNLIMITED, trash_counts: Callable[[Repository], bool] = lambda repository: True
    ) -> None:
        self.limit = limit
        self._trash_counts = trash_counts
        self.server = Account("this server")
        self.repositories: dict[Repository, RepositoryAccount] = {}
        self._users: dict[str, Account] = {}

    def account(self, repository: Repository) -> RepositoryAccount:
        """Return a repository's account, creating it if necessary."""
        account = self.repositories.get(repository)
        if account is None:
            account = self.repositories[repository] = RepositoryAccount(repository)
            account.trash_counts = self._trash_counts(repository)
        return account

    def refresh(self) -> None:
        """Whether trash counts may have changed."""
        for repository, account in self.repositories.items():
            counts = self._trash_counts(repository)
            if counts != account.trash_counts:
                account.trash_counts = counts
                size_bytes, objects = account.trash
                self._sum(repository, Amount(size_bytes, objects) if counts else Amount(-size_bytes, -objects))

    def user(self, name: str) -> Account:
        """Return a user's account, creating it if necessary."""
        account = self._users.get(name)
        if account is None:
            account = self._users[name] = Account(name)
        return account

    def of_user(self, name: str) -> Iterator[Repository]:
        """The repositories that count against a user's quota."""
        return (repository for repository in self.repositories if owner_of(repository) == name)

    def accounts(self, repository: Repository) -> tuple[Account, ...]:
        """The accounts that a repository counts against: the server's, its owner's if it has one, and its own."""
        owner = owner_of(repository)
        return (self.server, *(() if owner is None else (self.user(owner),)), self.account(repository))

    # --- uploads in progress

    def reserve(self, repository: Repository, kind: str, name: str, size_bytes: int, limits: Limits) -> Reservation:
        """
        Reserve quota for an upload.

        @param size_bytes: its length; if that is unknown, the part received so far.
        @raise QuotaExceeded: a limit would be exceeded; nothing is reserved.
        """
        reservation = Reservation(repository, kind, cell_of(kind, name), limits, 0, 0)
        reservation.accounts = self.accounts(repository)
        try:
            self._add(reservation, size_bytes, 1)
        except QuotaExceeded:
            self._drop_if_empty(repository)
            raise
        return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise QuotaExceeded: a limit would be exceeded; the reservation remains as it was.
        """
        self._add(reservation, size_bytes, 0)

    def _add(self, reservation: Reservation, size_bytes: int, objects: int) -> None:
        try:
            self._admit(reservation, size_bytes, objects)
        except QuotaExceeded as error:
            raise error.with_words(self.trash_words(error.account)) from None
        for account in reservation.accounts:
            account.reserved_bytes += size_bytes
            account.reserved_objects += objects
        reservation.size_bytes += size_bytes
        reservation.objects += objects

    def _admit(self, reservation: Reservation, size_bytes: int, objects: int) -> None:
        above = reservation.kind in PRUNE_NEEDS
        limits = reservation.limits
        server, *users, repository = reservation.accounts
        # The widest limit comes last, so that the error names the limit closest to the user.
        own_bytes = reservation.size_bytes
        for account, limit in (
            (repository, limits.repository),
            *((user, limits.user) for user in users),
            (server, self.limit),
        ):
            try:
                account.admit(limit, size_bytes, objects, above, own_bytes)
            except QuotaExceeded:
                if reservation.kind != "locks":
                    raise
                # Locks never go to the trash. Without them nothing could be read and pruned while the trash fills a quota.
                account.admit(_with_more(limit, self._trash_of(account)), size_bytes, objects, above, own_bytes)

    def _repositories_of(self, account: Account) -> list[RepositoryAccount]:
        """The repositories that count against an account and whose trash counts."""
        return [
            one for one in self.repositories.values() if one.trash_counts and account in self.accounts(one.repository)
        ]

    def _trash_of(self, account: Account) -> Amount:
        """What an account has in the trash that counts."""
        trash = [one.trash for one in self._repositories_of(account)]
        return Amount(sum(one.size_bytes for one in trash), sum(one.objects for one in trash))

    def trash_words(self, account: Account) -> str:
        """What a refusal says about the trash."""
        ends = (one.trash_ends_s for one in self._repositories_of(account))
        return trash_words(self._trash_of(account).size_bytes, min((s for s in ends if s is not None), default=None))

    def release(self, reservation: Reservation) -> None:
        """Release a reservation; idempotent."""
        for account in reservation.accounts:
            account.reserved_bytes -= reservation.size_bytes
            account.reserved_objects -= reservation.objects
        reservation.accounts = ()
        reservation.size_bytes = reservation.objects = 0
        self._drop_if_empty(reservation.repository)

    # --- what is stored

    def change(self, repository: Repository, cell: int, change: Amount) -> None:
        """Book a change by an upload or a removal."""
        account = self.account(repository)
        # Never below zero: the removed object may have been put there by another program, and never been booked.
        change = Amount(max(change.size_bytes, -account.sizes[cell]), max(change.objects, -account.objects[cell]))
        account.sizes[cell] += change.size_bytes
        account.objects[cell] += change.objects
        account.changed = True
        if cell != TRASH_CELL or account.trash_counts:
            self._sum(repository, change)

    def count(self, repository: Repository, cells: Mapping[int, Amount]) -> Amount:
        """
        Enter the counted amounts of some cells.

        @return: the difference from the amounts recorded before.
        """
        account = self.account(repository)
        size_bytes = objects = 0
        for cell, counted in cells.items():
            if cell != TRASH_CELL or account.trash_counts:
                size_bytes += counted.size_bytes - account.sizes[cell]
                objects += counted.objects - account.objects[cell]
            account.changed = account.changed or counted != (account.sizes[cell], account.objects[cell])
            account.sizes[cell], account.objects[cell] = counted
        drift = Amount(size_bytes, objects)
        if account.known and not account.counted:
            # What is missing from these cells may be in a cell that was not counted yet, so the difference goes to the
            # margin.
            less = Amount(-min(0, size_bytes), -min(0, objects))
            margin = account.margin
            account.margin = Amount(margin.size_bytes + less.size_bytes, margin.objects + less.objects)
            self._sum(repository, less)
        self._sum(repository, drift)
        return drift

    def all_counted(self, repository: Repository) -> None:
        """Every cell of a repository was counted: drop its margin."""
        account = self.account(repository)
        margin, account.margin = account.margin, Amount()
        self._sum(repository, Amount(-margin.size_bytes, -margin.objects))
        account.counted = account.known = True
        self._drop_if_empty(repository)

    def load(self, repository: Repository, sizes: Iterable[int], objects: Iterable[int], at_most: Amount) -> None:
        """
        Enter the last known amounts of a repository.

        @param at_most: the most that may be stored in it.
        """
        self.count(repository, {cell: Amount(*both) for cell, both in enumerate(zip(sizes, objects, strict=True))})
        account = self.account(repository)
        more = account.uncounted
        account.margin = Amount(
            max(0, at_most.size_bytes - account.used_bytes - more.size_bytes),
            max(0, at_most.objects - account.used_objects - more.objects),
        )
        self._sum(repository, account.margin)
        account.known = True

    def forget(self, repository: Repository) -> None:
        """Remove a repository that no longer exists."""
        account = self.repositories.get(repository)
        if account is not None:
            self.count(repository, dict.fromkeys(range(CELLS), Amount()))
            self.all_counted(repository)

    def _sum(self, repository: Repository, change: Amount) -> None:
        for account in self.accounts(repository):
            account.used_bytes += change.size_bytes
            account.used_objects += change.objects

    def _drop_if_empty(self, repository: Repository) -> None:
        """Remove empty accounts, so that requests for repositories that do not exist leave nothing behind."""
        account = self.repositories.get(repository)
        if account is None or account.used_objects or account.used_bytes or account.reserved_objects:
            return
        if account.objects[TRASH_CELL]:
            return
        del self.repositories[repository]
        owner = owner_of(repository)
        if owner is not None:
            user = self._users.get(owner)
            if user is not None and not (user.used_objects or user.used_bytes or user.reserved_objects):
                del self._users[owner]
