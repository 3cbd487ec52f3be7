"""
Names of repositories on file systems that find a folder under more than one name: other case, another Unicode form, short
names of Windows.

The access rules compare names exactly. So must the store: a folder that is found under a name that its directory does not
list is no repository. Case is tried out, directory by directory (ext4 and F2FS fold single directories), by looking an entry
up in another case, so a read-only file system can be asked too. File systems that have more ways to name a folder, or that
nobody knows, are not asked what they fold: there each folder of a path is looked for in its directory's list.
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
from .filesystem import folds_only_case, folds_only_forms, type_of

Repository = tuple[str, ...]

#: How long it is believed what a directory does, and of how many directories and repositories that is remembered.
_BELIEVED_S = 60.0
_MOST_REMEMBERED = 10_000
#: Of so many repositories that were asked for in another spelling a line is logged.
_MOST_TOLD = 100

#: Errors of a name that is not there, or that the file system does not take.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

_SWAPPED = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

_log = Logger()


class Exact(IntEnum):
    """Which names a directory finds only as it lists them."""

    NONE = 0
    #: ASCII without letters: no entry was there to try case with.
    WITHOUT_LETTERS = 1
    #: ASCII, but for what Windows and its like read in another way.
    PLAIN = 2
    ALL = 3


class Spelling:
    """
    Judges the spelling of repositories' paths below one directory. Safe from several threads.

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
        See whether a path is spelled as its directories list it. Where names are exact that costs no call of the system, but
        once a minute.

        @return: C{False} if the repository's folder is surely missing; else there is nothing against going on.
        @raise NoSuchRepository: a folder of the path is there under another name, or the name means a reserved one there.
        @raise OSError: that cannot be told.
        """
        if self.is_exact(repository):
            return True
        exact = True
        for depth, name in enumerate(repository):
            above = repository[:depth]
            directory = "/".join((self._path, *above))
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
        Whether there is nothing against looking for files of a repository by its path.

        @raise OSError: that cannot be told.
        """
        try:
            return self.look(repository)
        except NoSuchRepository:
            return False

    def make(self, repository: Repository, make_directory: Callable[[str], bool]) -> None:
        """
        Make a repository's folders as far as they are missing, each under the name that was asked for or none.

        @param make_directory: makes a directory unless it is there; whether it was missing.
        @raise NotFound: the file system would give it another name, has it under another name, or takes no such name.
        """
        self.look(repository)
        made: list[str] = []
        try:
            for depth in range(1, len(repository) + 1):
                folder = "/".join((self._path, *repository[:depth]))
                if not os.path.isdir(folder) and _made(folder, make_directory):
                    made.append(folder)
            # Whoever made it: also another spelling that appeared since the first look.
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

        @raise OSError: that cannot be told.
        """
        known = self._directories.get(above)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        kind = _type_of(directory)
        exact = Exact.NONE
        if folds_only_case(kind):
            try:
                folds = folds_case(directory)
            except PermissionError:
                return _judge_unlisted(directory, name)
            exact = Exact.NONE if folds else Exact.ALL if folds is False else Exact.WITHOUT_LETTERS
        elif folds_only_forms(kind) and folds_case(directory) is False:
            exact = Exact.PLAIN
        if len(self._directories) >= _MOST_REMEMBERED:
            self._directories.clear()
        # Where a name with letters is about to be made, what was tried without any holds no longer.
        if exact is not Exact.WITHOUT_LETTERS or name.translate(_SWAPPED) == name:
            self._directories[above] = (exact, time.monotonic() + _BELIEVED_S)
        return exact

    def _lists(self, directory: str, name: str, repository: Repository) -> bool:
        """
        Whether a directory lists a name; if not, nothing is there under another name either.

        @raise NoSuchRepository: something is, or the name means a reserved one there.
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
        """Log once that a repository is asked for in another spelling: it may have worked with an earlier version."""
        if repository in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(repository)
        there = next((name for name in names if fold_name(name) == fold_name(repository[-1])), None)
        _log.warn(
            "{asked} is answered 404: on disk it is called {there}, which this file system does not distinguish",
            asked=ascii("/" + "/".join(repository))[1:-1],
            there="something else" if there is None else ascii(there)[1:-1],
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
                continue  # it was removed meanwhile
            # Two entries, or one with two names?
            return other not in os.listdir(directory)
    return None


def means_reserved(directory: str, name: str) -> bool:
    """
    Whether a folder's name is a reserved one, or another spelling of one in this directory.

    @raise OSError: that cannot be told.
    """
    reserved = reserved_name(name)
    if reserved is None or reserved == name:
        return reserved is not None
    folds = folds_case(directory)
    if folds is None:
        # A name with letters can be made and then tells. One without is not worth the doubt.
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
    """Whether a directory whose exact names are these finds this name only as it lists it."""
    if exact in (Exact.NONE, Exact.ALL):
        return exact is Exact.ALL
    if not name.isascii() or name[-1] in ". " or ":" in name or "~" in name:
        return False
    return exact is Exact.PLAIN or name.translate(_SWAPPED) == name


def _judge_unlisted(directory: str, name: str) -> Exact:
    """
    As L{folds_case}, for a directory that cannot be listed and folds nothing but case: its inodes tell.

    @raise FileNotFoundError: the name is not there in any case.
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

    @raise NotFound: the file system takes no such name.
    """
    try:
        return make_directory(folder)
    except OSError as error:
        # exFAT says ENOENT.
        if error.errno in _MISSING and os.path.isdir(os.path.dirname(folder)):
            raise NotFound("the server's file system takes no such folder name") from error
        raise
