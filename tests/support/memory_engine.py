"""
An engine in memory that keeps every promise, and whose faults a test writes down: what the store does after an error is tried
with it call by call. The real engines are in L{tests.support.engines}.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator

from resticserver.objects.engine import WHOLE, Absent, BeyondTheEnd, Content, EngineError, Exists, Found
from resticserver.storage.interface import WantedPart

#: Called before a call is carried out, or after it: may raise.
Fault = Callable[[], object]


class MemoryBody:
    """See L{resticserver.objects.engine.Body}; pieces of some bytes."""

    def __init__(self, content: bytes, start: int, end: int) -> None:
        self.size_bytes = len(content)
        self.start, self.end = start, end
        self._left = content[start:end]

    def read(self) -> bytes:
        """See L{resticserver.objects.engine.Body.read}."""
        piece, self._left = self._left[: 1 << 10], self._left[1 << 10 :]
        return piece

    def close(self) -> None:
        """See L{resticserver.objects.engine.Body.close}."""


class MemoryEngine:
    """
    See L{resticserver.objects.engine.Engine}.

    @ivar objects: what is stored, by key.
    @ivar calls: the names of all calls that were made, each with its key.
    @ivar before: faults of the next calls by their names; each is used once. C{after}: those that come when the call was carried
        out.
    """

    name = "s3://memory"
    endpoint = "http://memory"

    def __init__(self, page_objects: int = 3) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified_s: dict[str, float] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: dict[str, list[Fault]] = {}
        self.after: dict[str, list[Fault]] = {}
        self._page_objects = page_objects
        self._lock = threading.Lock()

    def _call(self, name: str, key: str) -> None:
        self.calls.append((name, key))
        if faults := self.before.get(name):
            faults.pop(0)()

    def _called(self, name: str) -> None:
        if faults := self.after.get(name):
            faults.pop(0)()

    def _store(self, key: str, content: Content, sha256: bytes | None) -> None:
        if sha256 is not None and hashlib.sha256(content).digest() != sha256:
            raise EngineError("", "400 BadDigest")
        self.objects[key] = bytes(content)
        self.modified_s[key] = time.time()

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put_new}."""
        self._call("put_new", key)
        with self._lock:
            if key in self.objects:
                raise Exists()
            self._store(key, content, sha256)
        self._called("put_new")

    def put(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put}."""
        self._call("put", key)
        self._store(key, content, sha256)
        self._called("put")

    def size_of(self, key: str) -> int:
        """See L{resticserver.objects.engine.Engine.size_of}."""
        self._call("size_of", key)
        return len(self._found(key))

    def _found(self, key: str) -> bytes:
        content = self.objects.get(key)
        if content is None:
            raise Absent()
        return content

    def get(self, key: str, wanted: WantedPart = WHOLE) -> MemoryBody:
        """See L{resticserver.objects.engine.Engine.get}."""
        self._call("get", key)
        content = self._found(key)
        size_bytes = len(content)
        if wanted.suffix:
            start, end = max(0, size_bytes - wanted.suffix), size_bytes
        else:
            start, end = wanted.start, size_bytes if wanted.end is None else min(wanted.end, size_bytes)
        if wanted != WHOLE and start >= size_bytes:
            raise BeyondTheEnd()
        return MemoryBody(content, start, end)

    def remove(self, key: str) -> None:
        """See L{resticserver.objects.engine.Engine.remove}."""
        self._call("remove", key)
        self.objects.pop(key, None)
        self._called("remove")

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{resticserver.objects.engine.Engine.list_pages}."""
        keys = sorted(
            key for key in list(self.objects) if key.startswith(prefix) and (not after or key > prefix + after)
        )
        if not keys:
            self._call("list_pages", prefix)
        for first in range(0, len(keys), self._page_objects):
            self._call("list_pages", prefix)
            page = [key for key in keys[first : first + self._page_objects] if key in self.objects]
            yield [Found(key[len(prefix) :], len(self.objects[key]), self.modified_s[key]) for key in page]

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{resticserver.objects.engine.Engine.list_folder}."""
        self._call("list_folder", prefix)
        folders: set[str] = set()
        names: list[str] = []
        for key in sorted(self.objects):
            if key.startswith(prefix):
                name, slash, _ = key[len(prefix) :].partition("/")
                if slash:
                    folders.add(name)
                else:
                    names.append(name)
        return sorted(folders), names

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}."""
        self._call("check_bucket", "")
