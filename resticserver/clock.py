"""
The clock of the process: durations and time-outs are measured on one that no step of the wall clock moves.

Twisted's reactors measure time with C{time.time}. When the wall clock is set, by NTP after a boot or by a person, every
pending time-out and everything that is remembered "for a minute" would end early or late by that step.
"""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_clock(reactor: Any) -> None:
    """
    Let a reactor measure time with C{time.monotonic}, also for what is scheduled already.

    A reactor of our own would not do: twistd has one installed, which C{--reactor} may name, before it asks for our
    service. All of Twisted's reactors take the time from their attribute C{seconds} alone, C{DelayedCall} takes it from
    the reactor that made it, and C{reactor.seconds()} is what our own parts and C{LoopingCall} ask.

    @param reactor: any of Twisted's; to be called before anyone keeps what C{reactor.seconds()} said.
    """
    if reactor.seconds is time.monotonic:
        return
    now_s = reactor.seconds()
    reactor.seconds = time.monotonic
    for call in reactor.getDelayedCalls():
        left_s = max(0.0, call.getTime() - now_s)
        call.seconds = time.monotonic
        # reset() also moves it to its new place before those that were cancelled and keep their old times.
        call.reset(left_s)
