"""
Which tests start processes: the others are C{make unit}. Run as a program this is trial, with every start of a process an
error, so that a test that should be marked and is not is found.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

T = TypeVar("T")

_MARK = "starts_a_process"
_EVENTS = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn"))


def process_test(marked: T) -> T:
    """Mark a test method, or a class of tests, that starts processes (C{make unit} leaves it out)."""
    setattr(marked, _MARK, True)
    return marked


def starts_processes(test: Any) -> bool:
    """Whether a test case is marked."""
    method = getattr(test, getattr(test, "_testMethodName", ""), None)
    return bool(getattr(test, _MARK, False) or getattr(method, _MARK, False))


def _refuse(event: str, arguments: object) -> None:
    if event in _EVENTS:
        raise AssertionError(f"{event}: a test that starts a process is to be marked with process_test")


if __name__ == "__main__":
    from twisted.scripts.trial import run

    sys.addaudithook(_refuse)
    run()
