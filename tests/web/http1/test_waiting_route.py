"""
Routes that wait: they go on, end once, and can be cancelled at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.web.http1.waiting_route import WaitingRoute


class WaitingRouteTests(SynchronousTestCase):
    """L{WaitingRoute}."""

    def setUp(self) -> None:
        """What a route waits for, and what came of it."""
        self.waits: list[Deferred[Any]] = [Deferred() for _ in range(3)]
        self.done: list[object] = []
        self.ended: list[Failure | None] = []

    def run_route(self, route: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> WaitingRoute:
        """Begin one."""
        coroutine = route()
        return WaitingRoute(coroutine, coroutine.send(None), self.ended.append)

    async def wait_for_all(self) -> None:
        """A route."""
        for waiting in self.waits:
            self.done.append(await waiting)

    def test_goes_on(self) -> None:
        """It gets each result, also one that is there already, and ends once."""
        self.run_route(self.wait_for_all)
        self.waits[1].callback("second")
        self.assertEqual([], self.done)
        self.waits[0].callback("first")
        self.assertEqual(["first", "second"], self.done)
        self.assertEqual([], self.ended)
        self.waits[2].callback("third")
        self.assertEqual((["first", "second", "third"], [None]), (self.done, self.ended))

    def test_failures(self) -> None:
        """What it waits for fails: that is raised there, and it may go on. What it raises itself is told."""

        async def route() -> None:
            for waiting in self.waits[:2]:
                try:
                    await waiting
                except ZeroDivisionError as error:
                    self.done.append(error)
            await self.waits[2]

        self.run_route(route)
        errors = [ZeroDivisionError("first"), ZeroDivisionError("second"), ValueError("third")]
        for waiting, error in zip(self.waits, errors, strict=True):
            self.assertEqual([], self.ended)
            waiting.errback(error)
        self.assertEqual(errors[:2], self.done)
        (failure,) = self.ended
        assert failure is not None
        self.assertIs(errors[2], failure.value)

    def test_cancelled(self) -> None:
        """Cancelling it cancels what it waits for, and ends it if it does not mind."""
        running = self.run_route(self.wait_for_all)
        running.cancel()
        self.assertTrue(self.waits[0].called)
        (failure,) = self.ended
        assert failure is not None
        failure.trap(CancelledError)

    def test_cancelled_at_work(self) -> None:
        """One that is cancelled while it is at work is cancelled where it waits next."""
        running: list[WaitingRoute] = []

        async def route() -> None:
            await self.waits[0]
            running[0].cancel()
            self.done.append("at work")
            await self.waits[1]

        running.append(self.run_route(route))
        self.waits[0].callback(None)
        self.assertEqual(["at work"], self.done)
        self.assertTrue(self.waits[1].called)
        (failure,) = self.ended
        assert failure is not None
        failure.trap(CancelledError)

    def test_goes_on_after_cancel(self) -> None:
        """One that catches it may wait again, and is not cancelled once more."""

        async def route() -> None:
            try:
                await self.waits[0]
            except CancelledError:
                self.done.append(await self.waits[1])

        self.run_route(route).cancel()
        self.assertEqual([], self.ended)
        self.waits[1].callback("cleaned up")
        self.assertEqual((["cleaned up"], [None]), (self.done, self.ended))
