"""
What was deleted through this server, so that the scrub does not take it for missing: one line for each object in a file beside
the state file, written and flushed before the object is removed.

The file is made by the first scrub. Where there is none, nobody asks, and a deletion costs nothing more. Several processes
append to it; L{Deletions.forget} replaces it under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from twisted.logger import Logger

from ..files import write_all
from .layout import Repository
from .volume import FOLDER

FILE = "deleted"

#: A larger file means that nobody has looked at it for long. It is removed, and what is missing then is not reported once.
MOST_BYTES = 256 << 20

#: Repository, type and name; type and name are empty for a repository that was deleted as a whole.
Deletion = tuple[Repository, str, str]

_log = Logger()


class Deletions:
    """
    The file. All methods block; safe from several threads and processes.

    @param path: the data directory.
    @param directory: where the file lies; C{None} for the data directory's own folder.
    @param file_mode: of the file.
    """

    def __init__(self, path: str, directory: str | None = None, file_mode: int = 0o600) -> None:
        self._folder = directory if directory is not None else os.path.join(path, FOLDER)
        self._path = os.path.join(self._folder, FILE)
        self._file_mode = file_mode
        self._lock = threading.Lock()
        self._known: tuple[object, str, set[Deletion]] = (None, "", set())

    def add(self, repository: Repository, object_type: str = "", name: str = "") -> None:
        """Note that an object, or a repository as a whole, is about to be deleted. A failure is logged."""
        if not os.path.lexists(self._path):
            return  # the usual case: there was no scrub
        line = json.dumps(["/".join(repository), object_type, name], separators=(",", ":"))
        try:
            with self._opened(fcntl.LOCK_SH) as fd:
                if fd is None:
                    return
                if os.fstat(fd).st_size > MOST_BYTES:
                    os.unlink(self._path)
                    return
                # The line before may have been cut by a power cut.
                write_all(fd, b"\n" + line.encode("ascii"))
                os.fdatasync(fd)
        except OSError as error:
            words = "cannot write {path} ({error}): the scrub will report what is being deleted as missing"
            _log.warn(words, path=self._path, error=error.strerror)

    def prepare(self) -> str:
        """
        Make the file if it is missing.

        @return: what tells it from an earlier file of that name; empty if there can be none.
        """
        try:
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return self._read()[0]
        except OSError:
            return ""
        token = secrets.token_hex(8)
        try:
            os.fchmod(fd, self._file_mode)
            write_all(fd, token.encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)
        return token

    def has(self, repository: Repository, object_type: str, name: str) -> bool:
        """Whether an object was deleted through this server."""
        _, found = self._read()
        return (repository, object_type, name) in found or (repository, "", "") in found

    def forget(self, is_over: Callable[[Deletion], bool], seen: set[Deletion]) -> None:
        """
        Remove lines.

        @param seen: what was in the file when a survey began; later lines stay.
        @param is_over: whether such a line is not needed any more.
        """
        if not any(map(is_over, seen)):
            return
        temporary = f"{self._path}.{secrets.token_hex(8)}"
        try:
            with self._opened(fcntl.LOCK_EX) as fd:
                if fd is None:
                    return
                token, found = self._parsed(_content(self._path))
                kept = [one for one in found if one not in seen or not is_over(one)]
                lines = [json.dumps(["/".join(one[0]), *one[1:]], separators=(",", ":")) for one in kept]
                out = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    os.fchmod(out, self._file_mode)
                    with open(out, "wb", closefd=False) as file:
                        file.write("\n".join([token, *lines]).encode("ascii"))
                    os.fsync(out)
                finally:
                    os.close(out)
                os.rename(temporary, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)

    def all(self) -> set[Deletion]:
        """All that is in the file."""
        return set(self._read()[1])

    def _read(self) -> tuple[str, set[Deletion]]:
        with self._lock:
            try:
                status = os.stat(self._path)
                stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
                if stamp != self._known[0]:
                    self._known = (stamp, *self._parsed(_content(self._path)))
            except OSError:
                self._known = (None, "", set())
            return self._known[1:]

    @staticmethod
    def _parsed(content: bytes) -> tuple[str, set[Deletion]]:
        token, *lines = content.split(b"\n")
        found = set()
        for line in lines:
            with suppress(ValueError):  # cut off by a power cut
                repository, object_type, name = json.loads(line)
                found.add((tuple(filter(None, repository.split("/"))), object_type, name))
        return token.decode("ascii", "replace"), found

    @contextmanager
    def _opened(self, lock: int) -> Iterator[int | None]:
        """The file that has the name while it is locked; C{None} if there is none."""
        while True:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            try:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(fd, lock)
                try:
                    is_same = os.path.samestat(os.fstat(fd), os.stat(self._path))
                except FileNotFoundError:
                    is_same = False
                if is_same:
                    yield fd
                    return
            finally:
                os.close(fd)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
