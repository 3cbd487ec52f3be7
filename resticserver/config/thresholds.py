"""
The C{--warn-...} flags: from which values on something needs attention.
"""

from __future__ import annotations

import re
from typing import Protocol

from ..dates import parse_duration
from ..telemetry.concerns import Thresholds

_NUMBER = r"[0-9]{1,3}(?:\.[0-9]{1,2})?"


class _Parsed(Protocol):
    def __call__(self, flag: str, parse: _Parse) -> float:
        """The value of a flag."""


class _Parse(Protocol):
    def __call__(self, text: str) -> float:
        """The value of a text."""


def read_thresholds(parsed: _Parsed) -> Thresholds:
    """
    Make the thresholds from the flags.

    @param parsed: called with the name of a flag and a function that parses its text.
    """
    return Thresholds(
        snapshot_age_s=parsed("warn-snapshot-age", parse_duration),
        first_snapshot_s=parsed("warn-first-snapshot", parse_duration),
        lock_age_s=parsed("warn-lock-age", parse_duration),
        quota=parsed("warn-quota", parse_part),
        disk=parsed("warn-disk", parse_part),
        certificate_s=parsed("warn-certificate", parse_duration),
        scrub=parsed("warn-scrub", parse_intervals),
    )


def parse_part(text: str) -> float:
    """
    Parse a percentage, with or without its sign, into a number from 0 to 1.

    @raise ValueError: it is none.
    """
    if not re.fullmatch(f"{_NUMBER} ?%?", text) or float(text.rstrip(" %")) > 100:
        raise ValueError(f"{text}: must be a percentage from 0% to 100%")
    return float(text.rstrip(" %")) / 100


def parse_intervals(text: str) -> float:
    """
    Parse a number of intervals: none at all, or at least one.

    @raise ValueError: it is not one.
    """
    if not re.fullmatch(_NUMBER, text) or 0 < float(text) < 1:
        raise ValueError(f"{text}: must be a number of intervals from 1 to 999, or 0 for no warning")
    return float(text)
