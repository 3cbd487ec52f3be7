"""
Which directories have a commit or a removal under way, and which are locked against changes: a directory must not change
while it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from twisted.internet.defer import Deferred

from ..errors import Unavailable
from ..storage.layout import Repository

#: A repository and the number of one of its cells.
Key = tuple[Repository, int]


class DirectoryLocks:
    """
    Tracks which directories are being changed, and which ones are locked against changes.

    @param closed: the directories that are locked from the start.
    """

    def __init__(self, closed: Iterable[Key] = ()) -> None:
        self._inside: Counter[Key] = Counter()
        self._closed: dict[Key, list[Deferred[None]]] = {key: [] for key in closed}
        self._leaving: dict[Key, list[Deferred[None]]] = {}
        self._refusal: str | None = None

    def refuse(self, reason: str) -> None:
        """Refuse all further changes, because the quota ledger would not learn of them."""
        self._refusal = reason
        self.open_all()

    def open_all(self) -> None:
        """Unlock all directories."""
        self.open(list(self._closed))

    async def enter(self, *keys: Key) -> None:
        """
        Wait until all of some directories are unlocked. From then until L{leave}, none of them can be locked.

        Nothing is entered before that: a change that is inside one directory and waits for another would block a count of
        both for ever.

        @raise Unavailable: changes are refused (L{refuse}).
        """
        while (waiting := next((self._closed[key] for key in keys if key in self._closed), None)) is not None:
            opened: Deferred[None] = Deferred()
            waiting.append(opened)
            await opened
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        for key in keys:
            self._inside[key] += 1

    def leave(self, *keys: Key) -> None:
        """The change in the directories is done."""
        for key in keys:
            self._inside[key] -= 1
            if not self._inside[key]:
                del self._inside[key]
                for left in self._leaving.pop(key, ()):
                    left.callback(None)

    async def close(self, keys: Iterable[Key]) -> None:
        """Lock directories against new changes, and wait until the changes under way are done."""
        keys = list(keys)
        for key in keys:
            self._closed.setdefault(key, [])
        for key in keys:
            while self._inside[key]:
                left: Deferred[None] = Deferred()
                self._leaving.setdefault(key, []).append(left)
                await left

    def open(self, keys: Iterable[Key]) -> None:
        """Unlock directories, and let waiting changes proceed."""
        for key in keys:
            for opened in self._closed.pop(key, ()):
                opened.callback(None)
