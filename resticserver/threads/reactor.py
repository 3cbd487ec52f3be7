"""
Twisted's reactor, as this package needs it: one type for what is several interfaces in Twisted, and an untyped module.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorProcess,
    IReactorSocket,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)


class IReactor(
    IReactorCore,
    IReactorTime,
    IReactorFromThreads,
    IReactorFDSet,
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
    IReactorProcess,
):
    """What C{twisted.internet.reactor} provides on POSIX. Whoever needs less asks for less, mostly C{IReactorTime}."""


def installed_reactor() -> IReactor:
    """The process's reactor; Twisted installs one if there is none yet."""
    from twisted.internet import reactor

    return cast(IReactor, cast(Any, reactor))
