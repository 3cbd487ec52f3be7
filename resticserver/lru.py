"""
A cache with a bound in bytes: what was used least recently goes first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Kept(Generic[V]):
    value: V
    size_bytes: int
    turn: int


class BoundedCache(Generic[K, V]):
    """
    Values by key, as many as fit. Safe from several threads.

    Whoever is going to ask for many values in a row takes a turn first. What is put in a turn never drives out what was
    used since that turn began: someone who goes round in more than fits would otherwise always find gone what comes
    next, and keep nothing of any use.

    @ivar bound_bytes: never more than this is kept.
    @ivar used_bytes: how much is kept, by the sizes that C{put} was told.
    """

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._turn = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many values there are."""
        return len(self._kept)

    def begin(self) -> int:
        """A new turn, for C{put}."""
        with self._lock:
            self._turn += 1
            return self._turn

    def get(self, key: K) -> V | None:
        """The value, which has been used now; C{None} where there is none."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.turn = self._turn
            self._kept.move_to_end(key)
            return kept.value

    def peek(self, key: K) -> V | None:
        """The value without counting that as a use; waits for no lock, so it may be asked for each request."""
        kept = self._kept.get(key)
        return None if kept is None else kept.value

    def put(self, key: K, value: V, size_bytes: int, turn: int) -> None:
        """Keep a value in place of the key's former one, if there is or can be made room."""
        with self._lock:
            self._drop(key)
            if size_bytes > self.bound_bytes:
                return
            while self.used_bytes + size_bytes > self.bound_bytes:
                oldest = next(iter(self._kept))
                if self._kept[oldest].turn >= turn:
                    return
                self._drop(oldest)
            self._kept[key] = _Kept(value, size_bytes, self._turn)
            self.used_bytes += size_bytes

    def discard(self, key: K) -> None:
        """Forget a value, if there is one."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_bytes -= kept.size_bytes
