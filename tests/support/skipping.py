"""
Leaving out tests that this machine cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def skipped(reason: str | None) -> Callable[[T], T]:
    """
    Leave out a test method, C{setUp} included; L{unittest.skipIf} would run that.

    @param reason: why, or C{None} to run the test.
    """

    def mark(test: T) -> T:
        # Trial looks for this attribute.
        setattr(test, "skip", reason)  # noqa: B010
        return test

    return mark
