"""
L{resticserver.threads.steps}: functions in steps, called as usual and several of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.threads.steps import Steps, run_together, stepped, stepped_method, steps_of


class NotedDisk:
    """
    Notes what is made durable.

    @ivar calls: the descriptors of each call.
    @ivar failing: descriptors whose fsync fails.
    """

    def __init__(self, *failing: int) -> None:
        self.calls: list[list[int]] = []
        self.failing = set(failing)

    def fsync(self, fd: int) -> None:
        """Note one."""
        self.calls.append([fd])
        if fd in self.failing:
            raise OSError(5, f"fsync of {fd}")

    def fsync_all(self, fds: Sequence[int]) -> list[OSError | None]:
        """Note several."""
        self.calls.append(list(fds))
        return [OSError(5, f"fsync of {fd}") if fd in self.failing else None for fd in fds]


@stepped
def store(disk: NotedDisk, *fds: int, result: str = "done") -> Steps[str]:
    """One descriptor after the other."""
    for fd in fds:
        yield disk, fd
    return result


@stepped
def forgiving(disk: NotedDisk, fd: int) -> Steps[str]:
    """An error is not passed on."""
    try:
        yield disk, fd
    except OSError as error:
        return str(error.strerror)
    return "done"


class Folder:
    """Has a stepped method."""

    def __init__(self, disk: NotedDisk) -> None:
        self.disk = disk

    @stepped_method
    def remove(self, fd: int) -> Steps[int]:
        """Remove something."""
        yield self.disk, fd
        return fd + 1


class Other(Folder):
    """Overrides it by one without steps."""

    def remove(self, fd: int) -> int:
        """Remove something else."""
        return 10 * super().remove(fd)


class CalledTests(SynchronousTestCase):
    """As a function like any other."""

    def test_result(self) -> None:
        """One fsync after the other, and the result."""
        disk = NotedDisk()
        self.assertEqual("yes", store(disk, 3, 4, result="yes"))
        self.assertEqual([[3], [4]], disk.calls)

    def test_error(self) -> None:
        """An error is raised where the function waits, so that it may go on."""
        disk = NotedDisk(3)
        self.assertEqual("fsync of 3", forgiving(disk, 3))
        self.assertRaises(OSError, store, disk, 3, 4)
        self.assertEqual([[3], [3]], disk.calls)

    def test_method(self) -> None:
        """It belongs to its object, and can be overridden."""
        disk = NotedDisk()
        self.assertEqual(5, Folder(disk).remove(4))
        self.assertEqual(50, Other(disk).remove(4))
        self.assertEqual([[4], [4]], disk.calls)

    def test_inside_another(self) -> None:
        """Inside another one its steps are steps of that, and a function without steps is called."""
        disk = NotedDisk()

        @stepped
        def both(function: Any, *args: Any) -> Steps[Any]:
            yield disk, 1
            return (yield from steps_of(function, *args))

        self.assertEqual(5, both(Folder(disk).remove, 4))
        self.assertEqual(50, both(Other(disk).remove, 4))
        self.assertEqual(3, both(len, "abc"))
        self.assertEqual([[1], [4], [1], [4], [1]], disk.calls)


class TogetherTests(SynchronousTestCase):
    """L{run_together}."""

    def run_all(self, *jobs: Steps[Any]) -> list[Any]:
        """The results in the order of the jobs; the text of errors."""
        found: dict[int, Any] = {}
        self.moves = 0

        def moved(waits: bool) -> None:
            self.moves += 1

        run_together(list(enumerate(jobs)), found.__setitem__, moved)
        self.assertEqual(set(range(len(jobs))), set(found))
        return [each.getErrorMessage() if isinstance(each, Failure) else each for _, each in sorted(found.items())]

    def steps(self, function: Any, *args: Any, **keywords: Any) -> Steps[Any]:
        """Begin a job."""
        begun: Steps[Any] = function.steps(*args, **keywords)
        return begun

    def test_same_time(self) -> None:
        """What they wait for is one call, whichever ends first."""
        disk = NotedDisk()
        found = self.run_all(
            self.steps(store, disk, 3, 4, result="a"),
            self.steps(store, disk, 5, result="b"),
            self.steps(store, disk, result="c"),
            self.steps(store, disk, 6, 7, 8, result="d"),
        )
        self.assertEqual(["a", "b", "c", "d"], found)
        self.assertEqual([[3, 5, 6], [4, 7], [8]], disk.calls)
        self.assertEqual((3 + 2 + 1 + 4) + 2 * 3 + 1, self.moves)

    def test_error(self) -> None:
        """An error comes to the one whose it is; it may go on, and the others do."""
        disk = NotedDisk(3, 6)
        found = self.run_all(
            self.steps(store, disk, 3, 4), self.steps(store, disk, 5, 7), self.steps(forgiving, disk, 6)
        )
        self.assertEqual(["[Errno 5] fsync of 3", "done", "fsync of 6"], found)
        self.assertEqual([[3, 5, 6], [7]], disk.calls)

    def test_raised(self) -> None:
        """So does what one raises by itself."""

        @stepped
        def broken(disk: NotedDisk) -> Steps[None]:
            yield disk, 1
            raise ValueError("broken")

        disk = NotedDisk()
        self.assertEqual(["broken", "done"], self.run_all(self.steps(broken, disk), self.steps(store, disk, 2, 3)))
        self.assertEqual([[1, 2], [3]], disk.calls)

    def test_two_disks(self) -> None:
        """Each disk is asked for its own."""
        one, other = NotedDisk(5), NotedDisk()
        found = self.run_all(self.steps(store, one, 3), self.steps(store, other, 4), self.steps(store, one, 5))
        self.assertEqual(["done", "done", "[Errno 5] fsync of 5"], found)
        self.assertEqual(([[3, 5]], [[4]]), (one.calls, other.calls))
