"""
How a front end uses what it has leased of one account: arithmetic, without I/O, clock and threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Held:
    """
    The part of a lease that one upload may store.

    @ivar holder: what the front end was called when it was taken.
    @ivar above: whether it was granted above the limit, so that nothing else may use it.
    """

    account: str
    holder: str
    size: int
    above: bool = False
    ended: bool = False


@dataclass(eq=False, slots=True)
class LeaseUse:
    """
    The numbers sum up from zero, as those of L{resticserver.objects.quota_state.Share} do.

    @ivar granted: what may be used. It grows after the others can see it, and shrinks before, so no state that was ever sent to
        the engine says less.
    @ivar used: the part of it that uploads have taken, those that have ended included.
    @ivar done: the part whose uploads have ended for certain.
    @ivar late: uploads whose outcome is unknown, with the time by which they have ended, by the clock that is never set.
    """

    granted: int = 0
    used: int = 0
    done: int = 0
    late: list[tuple[float, int]] = field(default_factory=list)

    @property
    def unused(self) -> int:
        """What is left of the leases."""
        return self.granted - self.used

    def take(self, size: int) -> bool:
        """Take a part for an upload, if there is so much."""
        if self.unused < size:
            return False
        self.used += size
        return True

    def grant_above(self, size: int) -> None:
        """A part was leased for one upload, and is taken."""
        self.granted += size
        self.used += size

    def end(self, held: Held, stored: int) -> None:
        """An upload has ended, and so much of what it has taken is stored."""
        back = held.size - stored
        self.done += stored
        self.used -= back
        if held.above:
            self.granted -= back

    def end_late(self, held: Held, end_s: float) -> None:
        """All of an upload may be stored, until that time."""
        self.late.append((end_s, held.size))

    def at(self, now_s: float) -> None:
        """It is so late: uploads that may have been in progress have ended."""
        self.done += sum(size for end_s, size in self.late if end_s <= now_s)
        self.late = [one for one in self.late if one[0] > now_s]

    def give_back(self) -> None:
        """Use no more than what is taken."""
        self.granted = self.used
