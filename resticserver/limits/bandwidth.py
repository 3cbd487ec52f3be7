"""
How many bytes a second may move: token buckets, for the server and for each user, in one direction. No HTTP and no sockets. All
is called in the reactor's thread, and no thread ever waits.

Whoever moves bytes has a L{Share} and asks it for a grant before it moves them, and gives back what it did not use. Grants are
made in turn: the user who got the least is next, and among a user's transfers the one that has waited the longest. So a user with
many connections gets as much as a user with one.

With several processes each has a part of every limit (L{Bandwidth.set_parts}); L{resticserver.workers.bandwidth} divides them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: A bucket holds what may move in so much time: more cannot be made up for after a pause.
BURST_S = 0.25
#: A grant is what may move in so much time, divided among those who wait; and its bounds. Smaller ones cost too much time, larger
#: ones make others wait.
GRANT_S = 0.05
LEAST_GRANT_BYTES = 16 << 10
MOST_GRANT_BYTES = 1 << 20
#: The shortest pause between two rounds of grants.
LEAST_WAIT_S = 0.005

#: The most shares that are kept; beyond it, unused shares are dropped.
_MOST_IDLE = 256
#: The key of the limit of all users together.
TOTAL = ""


class Usage(NamedTuple):
    """
    How much of a limit a process used since it was last asked.

    @ivar key: L{TOTAL}, or the share's.
    @ivar rate: the whole limit, in bytes a second.
    @ivar used_bytes: how much was granted.
    @ivar short: whether a transfer had to wait for it.
    @ivar weight: how many wanted some of it: users for L{TOTAL}, transfers for a user.
    """

    key: str
    rate: int
    used_bytes: int
    short: bool
    weight: int


class Bucket:
    """
    Tokens, one for a byte. It is filled at a steady rate up to what comes in L{BURST_S}.

    @param rate: the limit, in bytes a second.
    @param part: how much of that this process has, from above 0 to 1.
    @ivar limit: as the parameter.
    """

    def __init__(self, rate: int, part: float, now_s: float) -> None:
        self.limit = rate
        self._rate = max(1.0, rate * part)
        self._at_s = now_s
        self._tokens = self.capacity
        self._used_bytes = 0
        self._short = False

    @property
    def capacity(self) -> float:
        """How many tokens it holds. The largest grant fits."""
        return max(self._rate * BURST_S, LEAST_GRANT_BYTES)

    def grant_bytes(self, waiting: int) -> int:
        """How much to grant to one of so many."""
        return int(min(max(self._rate * GRANT_S / max(1, waiting), LEAST_GRANT_BYTES), MOST_GRANT_BYTES))

    def set_rate(self, rate: float, now_s: float) -> None:
        """Fill it at another rate from now on."""
        self._refill(now_s)
        self._rate = max(1.0, rate)
        self._tokens = min(self._tokens, self.capacity)

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """How long to wait for so many tokens; 0 if they are there."""
        self._refill(now_s)
        lacking = size_bytes - self._tokens
        if lacking <= 0:
            return 0.0
        self._short = True
        return lacking / self._rate

    def take(self, size_bytes: int) -> None:
        """Take tokens, also more than are there; with a negative number give some back."""
        self._tokens -= size_bytes
        self._used_bytes += size_bytes

    def is_full(self, now_s: float) -> bool:
        """Whether it is as if it were new."""
        self._refill(now_s)
        return self._tokens >= self.capacity

    def usage(self, key: str, weight: int) -> Usage:
        """What was used since the last call."""
        made = Usage(key, self.limit, self._used_bytes, self._short, weight)
        self._used_bytes, self._short = 0, False
        return made

    def _refill(self, now_s: float) -> None:
        self._tokens = min(self.capacity, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s


class _Asking(NamedTuple):
    """A transfer that waits for a grant of at most so many bytes."""

    granted: Deferred[int]
    most_bytes: int


class Share:
    """
    What one user gets of one direction. Made by L{Bandwidth.share}.

    @ivar bucket: the user's own limit; C{None} without one.
    @ivar waiting: the transfers that wait, the first one longest.
    @ivar moved_bytes: how much was granted, for the order of users: a user who was away is not ahead of the others.
    @ivar queued: whether L{Bandwidth} will come to it.
    @ivar most_waiting: the most transfers that waited at once since the last L{Bandwidth.usages}.
    """

    __slots__ = ("_bandwidth", "bucket", "key", "most_waiting", "moved_bytes", "queued", "waiting")

    def __init__(self, bandwidth: Bandwidth, key: str, bucket: Bucket | None) -> None:
        self._bandwidth = bandwidth
        self.key = key
        self.bucket = bucket
        self.waiting: deque[_Asking] = deque()
        self.moved_bytes = 0
        self.queued = False
        self.most_waiting = 0

    def take(self, most_bytes: int) -> Deferred[int]:
        """
        Ask for a grant.

        @param most_bytes: how much is wanted, at least 1.
        @return: fires with how much may be moved now, at least 1. Cancel it if that is not wanted any more.
        """
        asking = _Asking(Deferred(lambda _: self.waiting.remove(asking)), most_bytes)
        self.waiting.append(asking)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self._bandwidth.enqueue(self)
        return asking.granted

    async def take_all(self, size_bytes: int) -> None:
        """Wait until so many bytes may be moved."""
        while size_bytes > 0:
            size_bytes -= await self.take(size_bytes)

    def charge(self, size_bytes: int) -> None:
        """So many bytes have moved already, as they could not be held up. Later ones wait for it."""
        self.moved_bytes += size_bytes
        if self.bucket is not None:
            self.bucket.take(size_bytes)
        self._bandwidth.charge(size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """So much of a grant was not used."""
        if size_bytes:
            self.charge(-size_bytes)


class Bandwidth:
    """
    One direction of a server: the limit for all, and the users' shares.

    @param rate: in bytes a second; 0 if only users have limits.
    @param part: how much of each limit this process has at first, from above 0 to 1.
    """

    def __init__(self, clock: IReactorTime, rate: int, part: float = 1.0) -> None:
        self._clock = clock
        self._part = part
        self._bucket = Bucket(rate, part, clock.seconds()) if rate else None
        self._shares: dict[str, Share] = {}
        self._most_shares = _MOST_IDLE
        self._numbers = count()
        #: The shares with waiting transfers, in the order of what they got; and those whose own limit is reached, by the time
        #: when they may go on.
        self._ready: list[tuple[int, int, Share]] = []
        self._blocked: list[tuple[float, int, Share]] = []
        #: What the user had got who was served last: others come in behind that.
        self._level_bytes = 0
        self._serving = False
        self._timer: IDelayedCall | None = None

    def share(self, key: str, rate: int | None) -> Share | None:
        """
        A user's share.

        @param key: names the user, and the rule that has the limit.
        @param rate: the user's own limit, in bytes a second; C{None} for none.
        @return: C{None} if there is no limit.
        """
        if rate is None and self._bucket is None:
            return None
        share = self._shares.get(key)
        if share is None:
            if len(self._shares) >= self._most_shares:
                self._forget_idle()
            bucket = None if rate is None else Bucket(rate, self._part, self._clock.seconds())
            share = self._shares[key] = Share(self, key, bucket)
        elif rate is None:
            share.bucket = None
        elif share.bucket is None or share.bucket.limit != rate:
            share.bucket = Bucket(rate, self._part, self._clock.seconds())
        return share

    def _forget_idle(self) -> None:
        """Drop shares that are as if they were new."""
        now_s = self._clock.seconds()
        self._shares = {
            key: share
            for key, share in self._shares.items()
            if share.queued or share.waiting or (share.bucket is not None and not share.bucket.is_full(now_s))
        }
        self._most_shares = max(_MOST_IDLE, 2 * len(self._shares))

    # --- the shares' calls

    def enqueue(self, share: Share) -> None:
        """A transfer of this share waits."""
        if not share.queued:
            share.moved_bytes = max(share.moved_bytes, self._level_bytes)
            self._make_ready(share)
        self._serve()

    def charge(self, size_bytes: int) -> None:
        """So many bytes have moved; with a negative number, so many of a grant have not."""
        if self._bucket is not None:
            self._bucket.take(size_bytes)

    # --- grants

    def _make_ready(self, share: Share) -> None:
        share.queued = True
        heappush(self._ready, (share.moved_bytes, next(self._numbers), share))

    def _serve(self) -> None:
        """Grant what is there, and come again when there is more."""
        if self._serving:
            return  # a grant caused another request, which this round serves
        self._serving = True
        try:
            wait_s = self._grant_all()
        finally:
            self._serving = False
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if wait_s is not None:
            self._timer = self._clock.callLater(max(wait_s, LEAST_WAIT_S), self._serve)

    def _grant_all(self) -> float | None:
        """
        Grant what is there.

        @return: how long to wait for more; C{None} if no transfer waits.
        """
        now_s = self._clock.seconds()
        while self._blocked and self._blocked[0][0] <= now_s:
            self._make_ready(heappop(self._blocked)[2])
        wait_s = None
        while self._ready:
            share = self._ready[0][2]
            if not share.waiting:
                share.queued = False
                heappop(self._ready)
                continue
            size_bytes = self._grant_bytes(share)
            if self._bucket is not None and (wait_s := self._bucket.wait_s(size_bytes, now_s) or None) is not None:
                break
            heappop(self._ready)
            if share.bucket is not None and (own_wait_s := share.bucket.wait_s(size_bytes, now_s)):
                heappush(self._blocked, (now_s + own_wait_s, next(self._numbers), share))
                continue
            self._grant(share, size_bytes)
        if self._blocked:
            own_wait_s = self._blocked[0][0] - now_s
            wait_s = own_wait_s if wait_s is None else min(wait_s, own_wait_s)
        return wait_s

    def _grant_bytes(self, share: Share) -> int:
        """How much the first of a share's transfers gets when it is its turn."""
        size_bytes = min(share.waiting[0].most_bytes, MOST_GRANT_BYTES)
        if self._bucket is not None:
            size_bytes = min(size_bytes, self._bucket.grant_bytes(len(self._ready) * len(share.waiting)))
        if share.bucket is not None:
            size_bytes = min(size_bytes, share.bucket.grant_bytes(len(share.waiting)))
        return size_bytes

    def _grant(self, share: Share, size_bytes: int) -> None:
        asking = share.waiting.popleft()
        self._level_bytes = share.moved_bytes
        share.charge(size_bytes)
        share.queued = False
        asking.granted.callback(size_bytes)
        if share.waiting and not share.queued:
            self._make_ready(share)

    # --- several processes

    def usages(self) -> Iterator[Usage]:
        """What was used of each limit since the last call. Limits of which nothing was used, nor wanted, are left out."""
        active = 0
        for share in self._shares.values():
            wanted, share.most_waiting = share.most_waiting, len(share.waiting)
            active += wanted > 0
            if wanted and share.bucket is not None:
                yield share.bucket.usage(share.key, wanted)
        if self._bucket is not None:
            yield self._bucket.usage(TOTAL, active)

    def set_parts(self, rates: Mapping[str, float]) -> None:
        """Use these parts of the limits from now on, in bytes a second by the limit's key."""
        now_s = self._clock.seconds()
        for key, rate in rates.items():
            share = self._shares.get(key)
            bucket = self._bucket if key == TOTAL else share.bucket if share is not None else None
            if bucket is not None:
                bucket.set_rate(rate, now_s)
        # Those whose limit was reached may go on earlier now.
        blocked, self._blocked = self._blocked, []
        for _, _, share in blocked:
            self._make_ready(share)
        self._serve()

    def stop(self) -> None:
        """Make no more grants."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


#: For a user and a repository, the number of the rule that has a limit and the limit in bytes a second; or C{None}.
FindsLimit = Callable[[str | None, tuple[str, ...]], tuple[int, int] | None]


class BothDirections(NamedTuple):
    """
    The limits of a server.

    @ivar up: of uploads; C{down}: of downloads.
    @ivar find_limit: the limit of a user, which holds for both directions each.
    """

    up: Bandwidth
    down: Bandwidth
    find_limit: FindsLimit

    def shares(self, user: str | None, address: str, repository: tuple[str, ...]) -> tuple[Share | None, Share | None]:
        """
        A request's shares.

        @param user: C{None} without authentication: then each address counts as a user.
        @return: for its upload and its download; C{None} where there is no limit.
        """
        number, rate = self.find_limit(user, repository) or (0, None)
        key = f"{number} {user}" if user is not None else f"@{address}"
        return self.up.share(key, rate), self.down.share(key, rate)
