"""
Names of repositories on file systems that find a folder under more than one name: in another case, in another Unicode form,
by a short name of Windows.

The access rules compare names exactly, and so must the store: a folder that is found under a name that its directory does not
list is no repository. Whether a directory folds case is tried out for each one (ext4 and F2FS fold single directories), by
looking up an entry in another case, which works on a read-only file system too. On file systems that have more ways to name a
folder, and on unknown ones, each folder of a path is looked for in its directory's list.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from twisted.logger import Logger

from ..errors import NoSuchRepository, NotFound
from ..names import fold_name, reserved_name
from .filesystem_types import folds_only_case, folds_only_forms, type_of
from .layout import Repository, repository_path

#: How long the result for a directory is used, and for how many directories and repositories results are kept.
_BELIEVED_S = 60.0
_MOST_REMEMBERED = 10_000
#: For at most so many repositories it is logged that they were asked for in another spelling.
_MOST_TOLD = 100

#: Errors of a name that is missing, or that the file system does not accept.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

_SWAPPED = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

_log = Logger()


class Exact(IntEnum):
    """Which names a directory finds only as it lists them."""

    NONE = 0
    #: ASCII without letters: there was no entry to try case with.
    WITHOUT_LETTERS = 1
    #: ASCII, except for names that Windows reads in another way.
    PLAIN = 2
    ALL = 3


class Spelling:
    """
    Checks the spelling of repositories' paths below one directory. Safe from several threads.

    @param path: the data directory.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._exact: dict[Repository, float] = {}
        self._directories: dict[Repository, tuple[Exact, float]] = {}
        self._told: set[Repository] = set()

    def is_exact(self, repository: Repository) -> bool:
        """Whether it is known that a repository has no other name; does no I/O."""
        return not repository or time.monotonic() < self._exact.get(repository, 0.0)

    def look(self, repository: Repository) -> bool:
        """
        Check that a path is spelled as its directories list it. Where names are exact that takes a system call once a minute.

        @return: C{False} if the repository's folder is certainly missing, otherwise C{True}.
        @raise NoSuchRepository: a folder of the path has another name on disk, or its name means a reserved one there.
        @raise OSError: a directory cannot be looked at.
        """
        if self.is_exact(repository):
            return True
        exact = True
        for depth, name in enumerate(repository):
            above = repository[:depth]
            directory = repository_path(self._path, above)
            try:
                if _is_exact(name, self._judge(above, directory, name)):
                    continue
                exact = False
                if not self._lists(directory, name, repository[: depth + 1]):
                    return False
            except (FileNotFoundError, NotADirectoryError):
                return False
        if exact:
            if len(self._exact) >= _MOST_REMEMBERED:
                self._exact.clear()
            self._exact[repository] = time.monotonic() + _BELIEVED_S
        return True

    def has(self, repository: Repository) -> bool:
        """
        As L{look}, but C{False} for a path in another spelling.

        @raise OSError: a directory cannot be looked at.
        """
        try:
            return self.look(repository)
        except NoSuchRepository:
            return False

    def make(self, repository: Repository, make_directory: Callable[[str], bool]) -> None:
        """
        Make a repository's folders as far as they are missing, with exactly these names.

        @param make_directory: makes a directory unless it is there; returns whether it was missing.
        @raise NotFound: the file system would change the name, has it in another spelling, or does not accept it.
        """
        self.look(repository)
        made: list[str] = []
        try:
            for depth in range(1, len(repository) + 1):
                folder = repository_path(self._path, repository[:depth])
                if not os.path.isdir(folder) and _made(folder, make_directory):
                    made.append(folder)
            # Also another spelling that another program has made since the first look.
            if not self.look(repository):
                raise NoSuchRepository()
        except NotFound:
            for folder in reversed(made):
                with suppress(OSError):
                    os.rmdir(folder)
            raise

    def _judge(self, above: Repository, directory: str, name: str) -> Exact:
        """
        Which names are exact in a directory.

        @raise OSError: it cannot be looked at.
        """
        known = self._directories.get(above)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        type_name = _type_of(directory)
        exact = Exact.NONE
        if folds_only_case(type_name):
            try:
                folds = folds_case(directory)
            except PermissionError:
                return _judge_unlisted(directory, name)
            exact = Exact.NONE if folds else Exact.ALL if folds is False else Exact.WITHOUT_LETTERS
        elif folds_only_forms(type_name) and folds_case(directory) is False:
            exact = Exact.PLAIN
        if len(self._directories) >= _MOST_REMEMBERED:
            self._directories.clear()
        # A name with letters is about to be made: then case can be tried.
        if exact is not Exact.WITHOUT_LETTERS or name.translate(_SWAPPED) == name:
            self._directories[above] = (exact, time.monotonic() + _BELIEVED_S)
        return exact

    def _lists(self, directory: str, name: str, repository: Repository) -> bool:
        """
        Whether a directory lists a name. If not, it is not found in another spelling either.

        @raise NoSuchRepository: it is, or the name means a reserved one there.
        """
        names = os.listdir(directory)
        if name not in names:
            try:
                os.lstat(f"{directory}/{name}")
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                if means_reserved(directory, name):
                    raise NoSuchRepository() from None
                return False
            names = os.listdir(directory)  # it may have been made since
            if name not in names:
                self._tell(repository, names)
                raise NoSuchRepository()
        if means_reserved(directory, name):
            raise NoSuchRepository()
        return True

    def _tell(self, repository: Repository, names: list[str]) -> None:
        """Log once that a repository is asked for in another spelling, which may have worked with an earlier version."""
        if repository in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(repository)
        there = next((name for name in names if fold_name(name) == fold_name(repository[-1])), None)
        _log.warn(
            "{asked} is answered 404: its name on disk is {there}, and this file system does not distinguish them",
            asked=ascii("/" + "/".join(repository))[1:-1],
            there="another one" if there is None else ascii(there)[1:-1],
        )


def folds_case(directory: str) -> bool | None:
    """
    Whether a directory finds its entries in another case; C{None} if it has none with (Latin) letters.

    @raise OSError: it cannot be read.
    """
    with os.scandir(directory) as entries:
        for entry in entries:
            other = entry.name.translate(_SWAPPED)
            if other == entry.name:
                continue
            try:
                os.lstat(f"{directory}/{other}")
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                if os.path.lexists(f"{directory}/{entry.name}"):
                    return False
                continue  # it was removed in between
            # Two entries, or one with two names?
            return other not in os.listdir(directory)
    return None


def means_reserved(directory: str, name: str) -> bool:
    """
    Whether a folder's name is a reserved one, or another spelling of one in this directory.

    @raise OSError: the directory cannot be looked at.
    """
    reserved = reserved_name(name)
    if reserved is None or reserved == name:
        return reserved is not None
    folds = folds_case(directory)
    if folds is None:
        # A name with letters shows it as soon as it is made. One without letters is refused, to be safe.
        folds = name.translate(_SWAPPED) == name and not folds_only_case(_type_of(directory))
    if folds:
        return True
    return all(os.path.lexists(f"{directory}/{one}") for one in (name, reserved)) and reserved not in os.listdir(
        directory
    )


def _type_of(directory: str) -> str | None:
    fd = os.open(directory, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return type_of(fd)
    finally:
        os.close(fd)


def _is_exact(name: str, exact: Exact) -> bool:
    """Whether a name is one that a directory finds only as it lists it."""
    if exact in (Exact.NONE, Exact.ALL):
        return exact is Exact.ALL
    if not name.isascii() or name[-1] in ". " or ":" in name or "~" in name:
        return False
    return exact is Exact.PLAIN or name.translate(_SWAPPED) == name


def _judge_unlisted(directory: str, name: str) -> Exact:
    """
    Which names are exact in a directory that cannot be listed and folds nothing but case, by comparing inodes.

    @raise FileNotFoundError: the name is missing.
    """
    status = os.lstat(f"{directory}/{name}")
    with suppress(FileNotFoundError):
        other = name.translate(_SWAPPED)
        if other != name and os.path.samestat(status, os.lstat(f"{directory}/{other}")):
            return Exact.NONE
    return Exact.ALL


def _made(folder: str, make_directory: Callable[[str], bool]) -> bool:
    """
    Make a folder; whether it was missing.

    @raise NotFound: the file system does not accept the name.
    """
    try:
        return make_directory(folder)
    except OSError as error:
        # ENOENT on exFAT.
        if error.errno in _MISSING and os.path.isdir(os.path.dirname(folder)):
            raise NotFound("the server's file system does not support this folder name") from error
        raise
