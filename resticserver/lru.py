"""
A cache with a limit in bytes. It evicts the least recently used values first.
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
    Values by key, as many as fit. Thread-safe.

    Call L{begin} before reading many values in a row, and pass its result to L{put}. A value that is put with that
    number never evicts a value that was used since the call. Without this rule, a cyclic scan over more values than
    fit would always evict the value that it needs next, and the cache would be useless.

    @ivar bound_bytes: the limit.
    @ivar used_bytes: the sum of the sizes that were passed to C{put}.
    """

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._turn = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of values."""
        return len(self._kept)

    def begin(self) -> int:
        """Begin a scan. The result is the C{turn} for L{put}."""
        with self._lock:
            self._turn += 1
            return self._turn

    def get(self, key: K) -> V | None:
        """Return a value and mark it as used, or C{None}."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            kept.turn = self._turn
            self._kept.move_to_end(key)
            return kept.value

    def peek(self, key: K) -> V | None:
        """Return a value without marking it as used. Takes no lock, so it is cheap enough for every request."""
        kept = self._kept.get(key)
        return None if kept is None else kept.value

    def put(self, key: K, value: V, size_bytes: int, turn: int) -> None:
        """
        Replace the key's value. If the new value does not fit, the key has none afterwards.

        @param turn: the result of L{begin}; values used since then are not evicted.
        """
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
        """Remove a value, if it exists."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_bytes -= kept.size_bytes
