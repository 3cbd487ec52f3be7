"""
A monotonic clock for the reactor.

Twisted's reactors use wall-clock time (C{twisted.python.runtime.seconds} is C{time.time}). A step of the system time
(NTP, a suspended virtual machine, an administrator) therefore fires all timeouts early or delays them. With this
module, durations are measured by a clock without steps. Wall-clock time is used only for log lines and pages.
"""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """
    Make a reactor, and all code that asks it for the time, use C{time.monotonic}. Called once per process, by its
    entry point.

    @param reactor: a reactor whose C{seconds} can be replaced, like that of C{ReactorBase}.
    """
    if reactor.seconds is time.monotonic:
        return
    shift_s = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    # twistd or another of its services may have scheduled calls. All are shifted by the same amount, so their order
    # stays.
    for call in reactor.getDelayedCalls():
        call.time += shift_s
        call.seconds = time.monotonic
