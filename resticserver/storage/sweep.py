"""
Removing what uploads of a killed server have left. See L{resticserver.storage.publish} for how uploads name their files.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import ExitStack, suppress

from ..names import CONFIG, TYPES
from .layout import Repository
from .publish import TEMPORARY_FOLDER

#: The names of uploads; nothing else is ever removed.
_UPLOAD = re.compile(r"[0-9a-f]{32}\.upload\Z")


def sweep(data_path: str, repository: Repository = ()) -> int:
    """
    Remove what uploads of a killed server left in a repository's C{.tmp}.

    That is: regular files named as uploads are, which no process has locked, in a C{.tmp} that is a directory, in a folder
    that holds a repository. No link below the data directory is followed. Everything else stays.

    @param data_path: the data directory.
    @param repository: the folders from there to what may be a repository.
    @return: how many files were removed.
    """
    with ExitStack() as opened:
        # Where the folder is missing, is a link, or may not be entered, this server has left nothing.
        with suppress(OSError):
            folder_fd = _open_folder(data_path, None)
            opened.callback(os.close, folder_fd)
            for name in repository:
                folder_fd = _open_folder(name, folder_fd)
                opened.callback(os.close, folder_fd)
            if not _is_repository(folder_fd):
                return 0
            temporary_fd = _open_folder(TEMPORARY_FOLDER, folder_fd)
            opened.callback(os.close, temporary_fd)
            removed = sum(_sweep_file(temporary_fd, name) for name in os.listdir(temporary_fd) if _UPLOAD.match(name))
            with suppress(OSError):
                os.rmdir(TEMPORARY_FOLDER, dir_fd=folder_fd)
            return removed
    return 0


def _open_folder(name: str, parent_fd: int | None) -> int:
    """A directory's descriptor; for one in another directory only if it is no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(name, flags if parent_fd is None else flags | os.O_NOFOLLOW, dir_fd=parent_fd)


def _is_repository(folder_fd: int) -> bool:
    """
    Whether a folder holds a config, or a directory that an upload can go to. One is enough: a repository that was deleted
    and partly restored from its trash has no others, and a repository has its directories before its config.
    """
    for name, is_right in ((CONFIG, stat.S_ISREG), *((name, stat.S_ISDIR) for name in TYPES)):
        with suppress(OSError):
            if is_right(os.stat(name, dir_fd=folder_fd).st_mode):
                return True
    return False


def _sweep_file(folder_fd: int, name: str) -> bool:
    """Remove a file if it is a regular one that no process has locked; whether it was removed."""
    with suppress(OSError):
        if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            return False
        # Opened for writing: NFS takes an exclusive lock only on such files.
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder_fd)
            return True
        finally:
            os.close(fd)
    return False
