"""
Blocking jobs that wait for fsync in steps, so that a pool may let several of them wait together in one thread.

A stepped function is a generator: it yields what must be durable before it goes on. Called as usual, it does each fsync
itself; a pool that knows such jobs (L{resticserver.threads.pools.QuickPool}) runs several side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import MethodType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from twisted.python.failure import Failure

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


class Disk(Protocol):
    """Makes files and directories durable. Safe from several threads."""

    def fsync(self, fd: int) -> None:
        """
        Make an open file or directory durable.

        @raise OSError: that failed.
        """

    def fsync_all(self, fds: Sequence[int]) -> list[OSError | None]:
        """Do the same with several, at the same time where that is quicker. Returns the error of each; raises nothing."""


#: Yields what is to be made durable: the disk and a descriptor. It is resumed when that is done; an error is raised there.
Steps = Generator[tuple[Disk, int], None, T]


class Stepped:
    """
    What L{stepped} makes of a function or method.

    @ivar steps: called with the same arguments, it returns the generator.
    """

    __slots__ = ("steps",)

    def __init__(self, steps: Callable[..., Steps[Any]]) -> None:
        self.steps = steps

    def __get__(self, instance: Any, owner: type | None = None) -> Stepped:
        return self if instance is None else Stepped(MethodType(self.steps, instance))

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Run it to its end in this thread."""
        steps = self.steps(*args, **keywords)
        try:
            disk, fd = next(steps)
            while True:
                try:
                    disk.fsync(fd)
                except OSError as error:
                    disk, fd = steps.throw(error)
                else:
                    disk, fd = next(steps)
        except StopIteration as ended:
            return ended.value


def stepped(steps: Callable[P, Steps[T]]) -> Callable[P, T]:
    """Make a function of a generator function. Decorator."""
    return cast("Callable[P, T]", Stepped(steps))


def stepped_method(steps: Callable[Concatenate[S, P], Steps[T]]) -> Callable[Concatenate[S, P], T]:
    """The same for a method."""
    return cast("Callable[Concatenate[S, P], T]", Stepped(steps))


def steps_of(function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> Steps[T]:
    """Call a function inside a stepped one, in steps if it has some: C{result = yield from steps_of(function)}."""
    if isinstance(function, Stepped):
        result: T = yield from function.steps(*args, **keywords)
        return result
    return function(*args, **keywords)


def run_together(
    jobs: Sequence[tuple[T, Steps[Any]]], ended: Callable[[T, Any], object], moved: Callable[[bool], object]
) -> None:
    """
    Run several in this thread: all up to where they wait, then what they wait for at the same time, and so on.

    @param jobs: each with something that tells it from the others.
    @param ended: called with that of each that has ended and its result, or a Failure of Twisted with what it has raised.
    @param moved: called after each step of one, and after they have waited; with whether they wait now.
    """
    running: list[tuple[T, Steps[Any], OSError | None]] = [(*job, None) for job in jobs]
    while running:
        waiting: list[tuple[T, Steps[Any]]] = []
        wanted: list[tuple[Disk, int]] = []
        for which, steps, error in running:
            try:
                wanted.append(steps.send(None) if error is None else steps.throw(error))
            except StopIteration as result:
                ended(which, result.value)
            except BaseException:
                ended(which, Failure())
            else:
                waiting.append((which, steps))
            moved(False)
        if wanted:
            moved(True)
        errors = _sync(wanted)
        moved(False)
        running = [(*one, error) for one, error in zip(waiting, errors, strict=True)]


def _sync(wanted: Sequence[tuple[Disk, int]]) -> list[OSError | None]:
    """Make all durable; usually they have one disk."""
    errors: list[OSError | None] = [None] * len(wanted)
    left = list(range(len(wanted)))
    while left:
        disk = wanted[left[0]][0]
        same = [index for index in left if wanted[index][0] is disk]
        for index, error in zip(same, disk.fsync_all([wanted[index][1] for index in same]), strict=True):
            errors[index] = error
        left = [index for index in left if wanted[index][0] is not disk] if len(same) < len(left) else []
    return errors
