"""
C{--objects-unconditional}: an engine that ignores conditions, for a single process that is alone on its bucket.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from .engine import Absent, Content, Engine, Exists


class KeyLocks:
    """A lock for each key, as long as it is in use. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._users: dict[str, int] = defaultdict(int)

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold the lock of a key."""
        with self._lock:
            lock = self._locks[key]
            self._users[key] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key], self._locks[key]


class Unconditional:
    """An L{Engine} whose C{put_new} looks first. Between its look and its upload no other thread of this process uploads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._locks = KeyLocks()
        self.name = engine.name
        self.endpoint = engine.endpoint
        self.put = engine.put
        self.size_of = engine.size_of
        self.get = engine.get
        self.remove = engine.remove
        self.list_pages = engine.list_pages
        self.list_folder = engine.list_folder
        self.check_bucket = engine.check_bucket

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{Engine.put_new}."""
        with self._locks.held(key):
            try:
                self._engine.size_of(key)
            except Absent:
                self._engine.put(key, content, sha256)
                return
        raise Exists()
