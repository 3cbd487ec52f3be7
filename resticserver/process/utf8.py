"""
Names of files are UTF-8 in every locale: a repository's folder has the bytes that the request's path has.

Python fixes the encoding of file names when it starts, by the locale. Where that is another one the program is run once more
in Python's UTF-8 mode (PEP 540), by C{exec}: the same process, with the same arguments to the byte.
"""

from __future__ import annotations

import locale
import os
import sys

from ..errors import StartError

_MODE = ["-X", "utf8"]


def use_utf8() -> None:
    """
    See that names of files are UTF-8; where they are not the program begins anew and this does not return.

    @raise StartError: that is not possible.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    arguments = sys.orig_argv[1:]
    if not sys.executable or not arguments or arguments[: len(_MODE)] == _MODE:
        raise StartError("names of files must be UTF-8: set LC_ALL=C.UTF-8 or PYTHONUTF8=1")
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
    The environment, with the sockets that systemd handed over: Twisted's endpoints module has taken them out by now where
    twistd has imported it.
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
    An argument of the command line that is no name of a file, as text: UTF-8, whatever the locale says, or else what the locale
    says. Bytes that are neither stay what Python makes of them.
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
