"""
One upload to a bucket: received into a file without a name, verified, and then stored by one request that the engine decides
(C{If-None-Match: *}). An object is whole or not there, so nothing is visible that was not verified.

An error of that request does not say what it has done: the engine may have stored the object and failed afterwards. So after
any error but refused credentials the object itself is looked at, and only if it is not there is it stored again.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

from ..errors import Forbidden, HashMismatch, TooLarge
from ..names import CONFIG
from ..sizes import Amount, format_size
from ..storage.interface import Chunks, Outcome
from ..storage.layout import Repository
from .engine import Absent, AccessRefused, Body, BucketMissing, Content, Engine, EngineError, EngineFull, Exists
from .spool import Spool, spool_error

#: Up to this size an upload waits in memory.
_SMALL_BYTES = 64 << 10
#: How often an object is stored at most, in all, and what is waited before the second, the third and the fourth time.
PAUSES_S = (0.2, 1.0, 3.0)
#: No further attempt begins later than this after the first one, in seconds: one that hangs may take four minutes, and restic
#: waits for five.
_ATTEMPTS_WITHIN_S = 30.0

_log = Logger()


class UploadsTo(Protocol):
    """The store as its uploads see it."""

    @property
    def engine(self) -> Engine:
        """Where objects are stored."""

    @property
    def spool(self) -> Spool:
        """Where uploads wait."""

    @property
    def verify(self) -> bool:
        """Whether the hash of an upload must be its name."""

    def key(self, repository: Repository, object_type: str, name: str) -> str:
        """The key of an object."""

    def find_repository(self, repository: Repository) -> None:
        """
        Check that a repository is there.

        @raise NoSuchRepository: it is not.
        """

    def is_there(self, key: str) -> bool:
        """Whether there is an object of that key."""


class ObjectUpload:
    """
    See L{resticserver.storage.interface.Upload}.

    @param length: in bytes, if it is known.
    """

    def __init__(
        self, store: UploadsTo, repository: Repository, object_type: str, name: str, length: int | None = None
    ) -> None:
        self._store = store
        self._repository = repository
        self._object_type = object_type
        self._name = name
        self._length = length
        self._hash = hashlib.sha256()
        self._verify = store.verify and object_type != CONFIG
        self._fd = -1
        self._pieces: list[bytes] = []
        self._reserved_bytes = 0
        self._outcome: Outcome | None = None
        self.size_bytes = 0
        self.change = Amount()
        self.is_uncertain = False
        self._check: Callable[[], object] = _nothing_to_check

    def open(self) -> None:
        """
        See L{resticserver.storage.interface.Upload.open}.

        @raise SpoolFull: there is no room for it now.
        """
        self._store.find_repository(self._repository)
        if self._length is not None:
            self._reserve(self._length)
            if self._length > _SMALL_BYTES:
                self._fd = self._store.spool.open()

    def write(self, chunks: Chunks) -> None:
        """See L{resticserver.storage.interface.Upload.write}."""
        size_bytes = sum(map(len, chunks))
        self._reserve(self.size_bytes + size_bytes)
        for chunk in chunks:
            self._hash.update(chunk)
        if self._fd < 0 and self.size_bytes + size_bytes <= _SMALL_BYTES:
            self._pieces += [bytes(chunk) for chunk in chunks]
        else:
            if self._fd < 0:
                self._fd = self._store.spool.open()
            self._spill()
            for chunk in chunks:
                self._write(chunk)
        self.size_bytes += size_bytes

    def _reserve(self, size_bytes: int) -> None:
        """
        Have room for so many bytes in all.

        @raise SpoolFull: there is no room now.
        @raise TooLarge: there will never be.
        """
        most_bytes = self._store.spool.most_bytes
        if most_bytes and size_bytes > most_bytes:
            raise TooLarge(
                f"the object is larger than {format_size(most_bytes)}, all that may wait here (--spool-size)"
            )
        more_bytes = size_bytes - self._reserved_bytes
        if more_bytes > 0:
            self._store.spool.reserve(more_bytes)
            self._reserved_bytes += more_bytes

    def _spill(self) -> None:
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            self._write(piece)

    def _write(self, chunk: bytes | memoryview) -> None:
        left = memoryview(chunk)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise spool_error(error) from error

    # --- the end

    def fence(self, check: Callable[[], object]) -> None:
        """See L{resticserver.storage.interface.Upload.fence}."""
        self._check = check

    def commit(self) -> Outcome:
        """See L{resticserver.storage.interface.Upload.commit}."""
        if self._outcome is None:
            key = self._store.key(self._repository, self._object_type, self._name)
            # It may have been deleted while the bytes came.
            self._store.find_repository(self._repository)
            if self._verify and self._hash.hexdigest() != self._name:
                if self._store.is_there(key):
                    raise self._does_not_match()
                raise HashMismatch()
            if self._fd < 0 or not self.size_bytes:
                self._outcome = self._save(key, b"".join(self._pieces))
            else:
                with mmap.mmap(self._fd, self.size_bytes, prot=mmap.PROT_READ) as content:
                    self._outcome = self._save(key, content)
            self._close()
        return self._outcome

    def _does_not_match(self) -> Forbidden:
        return Forbidden(
            f"{self._object_type} {self._name[:16]} exists, and the hash of the content does not match the name"
        )

    def _save(self, key: str, content: Content) -> Outcome:
        """
        Store the object unless it is there.

        @raise EngineError: it is not known to be stored.
        """
        may_be_ours = False
        pauses = iter(PAUSES_S)
        no_later_s = time.monotonic() + _ATTEMPTS_WITHIN_S
        while True:
            self._check()
            try:
                self._store.engine.put_new(key, content, self._hash.digest())
            except (AccessRefused, BucketMissing, EngineFull):
                raise
            except Exists:
                error: Exception | None = None
            except EngineError as failed:
                # The engine may have stored it all the same.
                error, may_be_ours = failed, True
                self.is_uncertain = True
            else:
                self.change = Amount(self.size_bytes, 1)
                return Outcome.STORED
            try:
                return self._compare(key, content, may_be_ours)
            except Absent:
                # Nothing was stored: the attempt failed, or met another one, or a removal.
                pause_s = next(pauses, None)
                if pause_s is None or time.monotonic() + pause_s > no_later_s:
                    raise error or EngineError("", f"{key}: neither stored nor there") from None
                time.sleep(pause_s)

    def _compare(self, key: str, content: Content, may_be_ours: bool) -> Outcome:
        """
        There is an object of the same name: equal bytes stay, a damaged object is replaced, anything else is refused.

        @param may_be_ours: whether an earlier attempt may have stored it.
        @raise Absent: there is none.
        """
        with_same_bytes = self._object_type == CONFIG
        if not with_same_bytes and not self._verify and self._hash.hexdigest() != self._name:
            # Without verification the name was believed as long as it was free.
            if not may_be_ours:
                raise self._does_not_match()
            with_same_bytes = True
        body = self._store.engine.get(key)
        try:
            size_bytes, same = body.size_bytes, _hash_of(body) == self._hash.digest()
        finally:
            body.close()
        if same:
            if not may_be_ours:
                return Outcome.UNCHANGED
            self.change = Amount(self.size_bytes, 1)
            return Outcome.STORED
        if self._object_type == CONFIG:
            raise Forbidden("the repository already has a config")
        if with_same_bytes:
            raise self._does_not_match()
        _log.warn("{key} was damaged; replaced by a verified upload", key=ascii(key)[1:-1])
        self._check()
        self.is_uncertain = True  # an error of this may come after it is done
        self._store.engine.put(key, content, self._hash.digest())
        self.change = Amount(self.size_bytes - size_bytes, 0)
        return Outcome.HEALED

    def abort(self) -> None:
        """See L{resticserver.storage.interface.Upload.abort}."""
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._pieces = []
        reserved_bytes, self._reserved_bytes = self._reserved_bytes, 0
        self._store.spool.release(reserved_bytes)
        if fd >= 0:
            os.close(fd)


def _nothing_to_check() -> None:
    """No limits are shared with other servers."""


def _hash_of(body: Body) -> bytes:
    """The SHA-256 of a whole body."""
    digest = hashlib.sha256()
    while piece := body.read():
        digest.update(piece)
    return digest.digest()
