"""
fsync of several files at the same time from one thread, by Linux's asynchronous I/O (C{IOCB_CMD_FSYNC}, since 4.18).

One system call hands them over and another one waits for all. The kernel calls the same function of the file system as for
fsync(2), each in a thread of its own, so that they share one commit of the journal. Threads of Python do that too, but each
needs the interpreter's lock before and after each call. Source: io_submit(2), io_getevents(2), linux/aio_abi.h
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import threading
from collections.abc import Sequence
from functools import cache

#: How many at once; more are done in several rounds.
MOST = 32

#: io_setup, io_destroy, io_submit and io_getevents of 64-bit processes.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
_COMMAND_FSYNC = 2


class _Request(ctypes.Structure):
    """struct iocb, of machines with the lowest byte first."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("command", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_fd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Context:
    """
    What one thread hands over and gets back. The system has a limit for these (C{fs.aio-max-nr}), so they are made when a
    thread needs one, and the pool wakes the same few threads again and again.

    @ivar is_broken: it may not be used again: results of the last use may still come, and would be taken for those of the
        next.
    @raise OSError: the kernel has no asynchronous I/O, or none is allowed.
    """

    #: None yet: what is not made has nothing to give back.
    _id = ctypes.c_ulong(0)

    def __init__(self) -> None:
        self.is_broken = False
        # PyDLL would keep the interpreter's lock.
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        setup, self._destroy, self._submit, self._get_events = map(ctypes.c_long, _NUMBERS[platform.machine()])
        self._id = ctypes.c_ulong(0)
        if self._syscall(setup, ctypes.c_long(MOST), ctypes.byref(self._id)) < 0:
            raise OSError(ctypes.get_errno(), "io_setup")
        self._requests = (_Request * MOST)()
        self._pointers = (ctypes.POINTER(_Request) * MOST)(*map(ctypes.pointer, self._requests))
        self._events = (_Event * MOST)()
        for number, request in enumerate(self._requests):
            request.data, request.command = number, _COMMAND_FSYNC

    def __del__(self) -> None:
        if self._id.value:
            self._syscall(self._destroy, self._id)

    def fsync(self, fds: Sequence[int]) -> list[OSError | None]:
        """Of at most L{MOST} descriptors."""
        for request, fd in zip(self._requests, fds, strict=False):
            request.fd = fd
        taken = max(0, self._syscall(self._submit, self._id, ctypes.c_long(len(fds)), self._pointers))
        errors = list(map(_error, self._wait(taken)))
        # The kernel stops at the first one that it does not take.
        return errors + list(map(_fsync, fds[taken:]))

    def _wait(self, expected: int) -> list[int]:
        """
        Wait for all that were handed over.

        @return: the error number of each. What is not known counts as failed: an fsync that failed does not fail again.
        """
        codes = [errno.EIO] * expected
        left = expected
        while left:
            got = self._syscall(
                self._get_events,
                self._id,
                ctypes.c_long(left),
                ctypes.c_long(left),
                self._events,
                ctypes.c_void_p(None),
            )
            if got < 0:
                if ctypes.get_errno() == errno.EINTR:
                    continue  # a signal came in this thread
                self.is_broken = True
                break
            for event in self._events[:got]:
                codes[event.data] = -event.result
            left -= got
        return codes


def _error(code: int) -> OSError | None:
    return OSError(code, os.strerror(code)) if code > 0 else None


def _fsync(fd: int) -> OSError | None:
    try:
        os.fsync(fd)
    except OSError as error:
        return error
    return None


_of_thread = threading.local()


@cache
def is_available() -> bool:
    """Whether the kernel does this."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    try:
        _Context()
    except (OSError, AttributeError):
        return False
    return True


def fsync_all(fds: Sequence[int]) -> list[OSError | None]:
    """
    fsync of several descriptors at the same time. Blocks until all are done.

    @return: the error of each.
    """
    try:
        context: _Context = _of_thread.context
    except AttributeError:
        try:
            context = _of_thread.context = _Context()
        except OSError:  # too many contexts in the system
            return [_fsync(fd) for fd in fds]
    errors: list[OSError | None] = []
    for first in range(0, len(fds), MOST):
        if context.is_broken:
            errors += map(_fsync, fds[first : first + MOST])
        else:
            errors += context.fsync(fds[first : first + MOST])
    if context.is_broken:
        del _of_thread.context
    return errors
