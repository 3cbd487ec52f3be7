"""
The reactor's clock. Twisted's reactors measure time by the wall clock (C{twisted.python.runtime.seconds} is C{time.time}), so a
step of the system's time (NTP, a virtual machine that was suspended, an administrator) fires every time-out at once or holds
all of them up. Here durations are measured by a clock that knows no steps; wall-clock time is for log lines and pages alone.
"""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """
    Let a reactor, and all that asks it for the time, measure by C{time.monotonic}. Called where a process is put together.

    @param reactor: a reactor whose C{seconds} may be replaced, as that of C{ReactorBase} may.
    """
    if reactor.seconds is time.monotonic:
        return
    shift_s = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    # twistd, or another of its services, may have scheduled something. All are shifted alike, so their order stays.
    for call in reactor.getDelayedCalls():
        call.time += shift_s
        call.seconds = time.monotonic
