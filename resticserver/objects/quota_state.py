"""
How much of one limit is counted and how much each front end may still store: the state that all front ends of a bucket share,
and the arithmetic on it. No I/O, no clock, no threads. See docs/decisions/object-quotas.md for the proof.

The unit of the numbers is the account's: bytes, or objects where a limit is one of objects.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .engine import EngineError

#: A lease is at most this part of what is left, divided by the number of front ends: the last leases are small, so that what one
#: front end holds and does not use is little.
LEASE_PART = 4

_FORMAT = 1


class Share(NamedTuple):
    """
    What one front end may store. All numbers only sum up: they begin with zero and do not shrink when something is removed.

    @ivar granted: all that it was ever allowed to store, without what it gave back.
    @ivar done: the part of it whose uploads have certainly ended: each object is visible, or was removed.
    @ivar settled: the part of it that is certainly included in the count.
    @ivar closed: whether the front end stores nothing more under this share.
    @ivar serial: the number of the last change that this front end made.
    """

    granted: int = 0
    done: int = 0
    settled: int = 0
    closed: bool = False
    serial: int = 0


@dataclass(frozen=True)
class AccountState:
    """
    The state of one account.

    @ivar name: the account, for people.
    @ivar counted: what was stored when it was last counted; C{None} while it was not.
    @ivar counts: the number of that count.
    @ivar shares: what the front ends may store, by holder.
    """

    name: str = ""
    counted: int | None = None
    counts: int = 0
    shares: Mapping[str, Share] = field(default_factory=dict)

    @property
    def bound(self) -> int:
        """The most that is stored now, or will be without another lease."""
        return (self.counted or 0) + sum(share.granted - share.settled for share in self.shares.values())

    def with_share(self, holder: str, granted: int, done: int, serial: int) -> AccountState:
        """The state after a front end has written its own share."""
        before = self.shares.get(holder, Share())
        return self._with({holder: Share(granted, done, before.settled, before.closed, serial)})

    def closing(self, holders: Collection[str]) -> AccountState:
        """The state after front ends are known to store nothing more: what they have stored is visible."""
        return self._with(
            {
                holder: share._replace(done=share.granted, closed=True)
                for holder, share in self.shares.items()
                if holder in holders
            }
        )

    def with_count(self, began: AccountState, counted: int) -> AccountState | None:
        """
        The state after a count.

        @param began: the state as it was read before the first list of the count.
        @return: C{None} if another count was entered meanwhile. The share of a front end may be gone with it, so this count,
            which may have missed what was stored under that share, cannot be used.
        """
        if began.counts != self.counts:
            return None
        shares = {}
        for holder, share in self.shares.items():
            if holder in began.shares:
                share = share._replace(settled=began.shares[holder].done)
            if not (share.closed and share.settled == share.granted):
                shares[holder] = share
        return replace(self, counted=counted, counts=self.counts + 1, shares=shares)

    def _with(self, shares: Mapping[str, Share]) -> AccountState:
        return replace(self, shares={**self.shares, **shares})

    # --- as it is stored

    def encode(self) -> bytes:
        """The content of the object with this state: JSON."""
        shares = {holder: list(share) for holder, share in self.shares.items()}
        content = {
            "format": _FORMAT,
            "account": self.name,
            "counted": self.counted,
            "counts": self.counts,
            "shares": shares,
        }
        return json.dumps(content, ensure_ascii=True).encode("ascii")


def decode_state(content: bytes, key: str) -> AccountState:
    """
    The reverse of L{AccountState.encode}.

    @param key: of the object, for the message.
    @raise EngineError: this is not the content of a state.
    """
    try:
        fields = json.loads(content)
        if fields["format"] != _FORMAT:
            raise ValueError("format")
        shares = {holder: _share(*values) for holder, values in fields["shares"].items()}
        counted, counts = fields["counted"], fields["counts"]
        if not _is_number(counts) or not (counted is None or _is_number(counted)):
            raise ValueError("numbers")
        return AccountState(str(fields["account"]), counted, counts, shares)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError("", f"{key}: its content is not the state of a quota of this version") from None


def _share(granted: int, done: int, settled: int, closed: bool, serial: int) -> Share:
    if not all(map(_is_number, (granted, done, settled, serial))) or not settled <= done <= granted:
        raise ValueError("share")
    return Share(granted, done, settled, closed is True, serial)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def lease_size(left: int, holders: int, most: int) -> int:
    """
    How large a new lease should be.

    @param left: what no front end has leased.
    @param holders: how many front ends have a share.
    @param most: the largest lease.
    """
    return max(0, min(most, left // (LEASE_PART * max(1, holders))))
