"""
A value in a bucket that several front ends change, each change on top of the one before: a chain of numbered objects, each
made by a create-only upload, of which the one with the highest number counts.

The last objects of the chain stay and older ones are removed, always below the highest. So a front end that was paused may
succeed in making an object whose number has long been passed. That is why each change ends with a list: it counts only if its
number is the highest, or if the state with the highest number includes it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from .engine import Absent, AccessRefused, BucketMissing, Engine, EngineError, EngineFull, Exists
from .quota_state import AccountState, decode_state

_DIGITS = 16
#: How many objects of a chain stay, and how many more there may be before the others are removed.
_KEPT = 4
_MORE = 12
#: How often a request is made again that may not have been carried out.
_ATTEMPTS = 3
#: A state has some hundred bytes for each front end.
_MOST_BYTES = 1 << 20


class Version(NamedTuple):
    """A state with its number in the chain, which is 0 if there is none yet."""

    number: int
    state: AccountState

    def is_by(self, holder: str, serial: int) -> bool:
        """Whether the change of that number by this front end is included."""
        share = self.state.shares.get(holder)
        return share is not None and share.serial == serial


class Register:
    """
    The chain below one prefix. Safe from several threads and several processes.

    @param prefix: of the keys, with a slash at its end.
    """

    def __init__(self, engine: Engine, prefix: str, name: str) -> None:
        self._engine = engine
        self._prefix = prefix
        self._name = name

    def read(self) -> Version:
        """
        The state as it is now.

        @raise EngineError: the engine does not say.
        """
        for _ in range(_ATTEMPTS):
            numbers = self._numbers()
            if not numbers:
                return Version(0, AccountState(self._name))
            with suppress(Absent):  # many changes came meanwhile
                return self._get(numbers[-1])
        raise EngineError("", f"{self._prefix}: listed and not there")

    def _numbers(self) -> list[int]:
        """The numbers of all objects, in order."""
        keys = (found.key for page in self._engine.list_pages(self._prefix) for found in page)
        return sorted(int(key) for key in keys if len(key) == _DIGITS and key.isascii() and key.isdigit())

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:0{_DIGITS}}"

    def _get(self, number: int) -> Version:
        body = self._engine.get(self._key(number))
        content = b""
        try:
            while len(content) <= _MOST_BYTES and (piece := body.read()):
                content += piece
        finally:
            body.close()
        return Version(number, decode_state(content, self._key(number)))

    def change(self, before: Version, state: AccountState, holder: str, serial: int) -> Version:
        """
        Put a state in the place of another, if that is still the last one.

        @param state: has the share of C{holder} with C{serial}, which that front end uses for no other change.
        @return: the last version. The change was made if that L{is by <Version.is_by>} this front end, and else never will be.
        @raise EngineError: it is not known whether the change was made.
        """
        number = before.number + 1
        content = state.encode()
        failed: EngineError | None = None
        for _ in range(_ATTEMPTS):
            stored = False
            try:
                self._engine.put_new(self._key(number), content)
                stored = True
            except (AccessRefused, BucketMissing, EngineFull):
                raise
            except Exists:
                pass
            except EngineError as error:
                # It may be stored, and it may be stored later.
                failed = error
            numbers = self._numbers()
            last = numbers[-1] if numbers else 0
            if last == number and stored:
                self._remove_old(numbers)
                return Version(number, state)
            if last >= number:
                return self.read()
            if stored:
                break
        raise failed or EngineError("", f"{self._key(number)}: stored and not listed")

    def _remove_old(self, numbers: list[int]) -> None:
        if len(numbers) < _KEPT + _MORE:
            return
        for number in numbers[:-_KEPT]:
            # Whoever makes the next change tries again.
            with suppress(EngineError):
                self._engine.remove(self._key(number))
