"""
Makes file names UTF-8 in every locale, so that a repository's folder has the same bytes as the path of the request.

Python chooses the encoding of file names by the locale when it starts. If that is not UTF-8, the program is run again
in Python's UTF-8 mode (PEP 540), by C{exec}: the same process, with the same arguments, byte for byte.
"""

from __future__ import annotations

import locale
import os
import sys

from ..errors import StartError

_MODE = ["-X", "utf8"]


def use_utf8() -> None:
    """
    Make sure that file names are UTF-8. If they are not, the program starts again and this call does not return.

    @raise StartError: the program cannot be started again.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    arguments = sys.orig_argv[1:]
    if not sys.executable or not arguments or arguments[: len(_MODE)] == _MODE:
        raise StartError("file names must be UTF-8: set LC_ALL=C.UTF-8 or PYTHONUTF8=1")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        os.execve(sys.executable, [sys.executable, *_MODE, *arguments], _environment())
    except OSError as error:
        raise StartError(
            f"cannot run {sys.executable}: {error.strerror}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        ) from error


def _environment() -> dict[str, str]:
    """
    The environment, including the variables for sockets passed by systemd. Twisted's endpoints module, which twistd
    may have imported by now, removes them from C{os.environ}.
    """
    environment = dict(os.environ)
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (pair.partition(b"=") for pair in file.read().split(b"\0"))
            started_with = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    except OSError:
        return environment
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    return environment | {name: started_with[name] for name in names if name in started_with}


def as_text(argument: str) -> str:
    """
    Decode a command line argument that is not a file name: as UTF-8 whatever the locale, or else in the locale's
    encoding. Bytes that are valid in neither remain as Python decoded them.
    """
    if argument.isascii():
        return argument
    content = os.fsencode(argument)
    for encoding in ("utf-8", locale.getencoding()):
        try:
            return content.decode(encoding)
        except UnicodeError:
            pass
    return argument
