"""
Front ends that share a limit, in one deterministic simulation: a bucket, its engine's clock, the clocks of the front ends, and
requests on their way. A seed decides what comes next: an answer, a step of a front end, a pause, a death. Between any two
requests of a front end everything else may happen.

A front end is a thread, of which one runs at a time. The engine takes a signature within C{SIGNATURE_S} of its time by its own
clock, and carries out what it took within C{REQUEST_S}, even if it has answered with an error before.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from resticserver.objects.engine import WHOLE, Absent, AccessRefused, Content, EngineError, Exists, Found
from resticserver.objects.front_ends import LeaseEnded, Moment, Times
from resticserver.objects.lease_use import Held
from resticserver.objects.leased_account import NoRoom, NotCounted
from resticserver.objects.leases import Leases
from resticserver.storage.interface import WantedPart

from .memory_engine import MemoryBody
from .waiting import PATIENCE_S

SIGNATURE_S = 90.0
REQUEST_S = 24.0
#: As the real ones, ten times as fast.
TIMES = Times(usable_s=20.0, suspect_s=30.0, grace_s=2 * SIGNATURE_S + REQUEST_S + 2, keep_dead_s=3600.0)
ACCOUNT = "this server"
DATA = "repo/data/"
PREFIX = ".rest-server/quota/"
PAGE_OBJECTS = 25


class Exceeded(AssertionError):
    """More was stored than the limit allows."""


class Killed(BaseException):
    """The front end was killed."""


@dataclass(eq=False)
class Request:
    """
    A request on its way.

    @ivar signed_s: what the front end's clock said when it was sent.
    @ivar arrives_s: before this time it does not reach the engine.
    @ivar until_s: when the engine, which has taken it, has carried it out at the latest; C{None} before it was taken.
    """

    kind: str
    key: str
    content: bytes
    signed_s: float
    answered: bool = False
    result: object = None
    error: Exception | None = None
    until_s: float | None = None
    arrives_s: float = 0.0


class World:
    """
    The bucket, and all that happens.

    @ivar now_s: the time by the engine's clock.
    @ivar stored: how many bytes of data are stored.
    """

    def __init__(self, seed: int, limit: int, most_lease: int) -> None:
        self.random = random.Random(seed)
        self.limit = limit
        self.most_lease = most_lease
        # One seed is about errors, another one about pauses: with all of them at once little is ever stored.
        self.fault_rate = self.random.choice((0.01, 0.08))
        self.slow_rate = self.random.choice((0.0, 0.1))
        self.pause_rate = self.random.choice((0.0005, 0.002, 0.004))
        self.clocks_stand = self.random.choice((0.0, 0.5, 1.0))
        self.kill_rate = self.random.choice((0.0, 0.0004))
        self.now_s = 1_000_000.0
        self.objects: dict[str, bytes] = {}
        self.modified_s: dict[str, float] = {}
        self.stored = self.most_stored = 0
        self.on_the_way: list[Request] = []
        self.front_ends: list[FrontEnd] = []
        self.events: dict[str, int] = {}
        #: Now and then the front ends do little, and minutes pass.
        self.is_quiet = False
        self._names = 0

    def new_name(self) -> str:
        """The key of an object that was never there."""
        self._names += 1
        return f"{DATA}{self._names:08}"

    def count_event(self, name: str) -> None:
        """Something happened that the simulation is for."""
        self.events[name] = self.events.get(name, 0) + 1

    # --- the engine

    def carry_out(self, request: Request) -> object:
        """What the engine does, at once."""
        key = request.key
        if request.kind == "page":
            prefix, _, after = key.partition("\n")
            keys = sorted(one for one in self.objects if one.startswith(prefix) and one > prefix + after)
            return [
                Found(one[len(prefix) :], len(self.objects[one]), self.modified_s[one]) for one in keys[:PAGE_OBJECTS]
            ]
        if request.kind == "get":
            if key not in self.objects:
                raise Absent()
            return self.objects[key]
        size = len(self.objects.get(key, b"")) if key.startswith(DATA) else 0
        if request.kind == "remove":
            self.objects.pop(key, None)
            self.stored -= size
            return None
        if request.kind == "put_new" and key in self.objects:
            raise Exists()
        self.objects[key] = request.content
        self.modified_s[key] = self.now_s
        if key.startswith(DATA):
            self.stored += len(request.content) - size
            self.most_stored = max(self.most_stored, self.stored)
            if self.stored > self.limit:
                raise Exceeded(f"{self.stored} of {self.limit} are stored")
        return None

    def arrive(self, request: Request) -> None:
        """A request reaches the engine, or is lost."""
        self.on_the_way.remove(request)
        if request.until_s is not None:
            with suppress(Exists, Absent):
                self.carry_out(request)
            return
        if abs(self.now_s - request.signed_s) > SIGNATURE_S:
            self.count_event("signature too old")
            request.error = AccessRefused()
        elif self.random.random() < self.fault_rate * (1 if request.kind.startswith("put") else 0.2):
            self._fail(request)
        else:
            try:
                request.result = self.carry_out(request)
            except (Exists, Absent) as error:
                request.error = error
        request.answered = True

    def _fail(self, request: Request) -> None:
        request.error = EngineError("", "a fault")
        how = self.random.choice(("lost", "carried out", "late"))
        self.count_event(how)
        if how == "carried out":
            with suppress(Exists, Absent):
                self.carry_out(request)
        elif how == "late":
            request.until_s = request.arrives_s = self.now_s + REQUEST_S
            self.on_the_way.append(request)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.now_s + seconds
        due = [one for one in self.on_the_way if one.until_s is not None and one.until_s <= until_s]
        for request in sorted(due, key=lambda one: one.until_s or 0.0):
            self.now_s = request.until_s or self.now_s
            self.arrive(request)
        self.now_s = until_s

    # --- what happens

    def step(self) -> None:
        """The next thing that happens."""
        ready = [one for one in self.front_ends if one.is_ready()]
        arriving = [one for one in self.on_the_way if one.arrives_s <= self.now_s]
        chance = self.random.random()
        if arriving and (chance < 0.45 or not ready):
            if chance < 0.6:
                self.arrive(self.random.choice(arriving))
                return
        elif ready and chance < 0.9:
            self.random.choice(ready).run()
            return
        self.advance(self.random.choice((2.0, 5.0)) if self.is_quiet else self.random.choice((0.01, 0.05, 0.2)))

    def disturb(self) -> None:
        """Sometimes a front end is killed, paused or woken."""
        chance = self.random.random()
        for one in self.front_ends:
            if one.paused_until_s is not None and self.now_s >= one.paused_until_s:
                one.resume(self.random.random() < 0.5)
        running = [one for one in self.front_ends if one.paused_until_s is None]
        if chance < self.pause_rate:
            if len(running) > 1:
                pause_s = self.random.choice((5.0, 40.0, self.random.uniform(0.8, 1.5) * SIGNATURE_S, 300.0, 400.0))
                # Best one that is about to store something.
                one = max(running, key=lambda one: (one.about_to_store > 0, self.random.random()))
                one.pause(pause_s, self.random.random() < self.clocks_stand)
        elif chance < self.pause_rate + self.kill_rate:
            self.random.choice(self.front_ends).kill()
        elif chance < 0.012:
            self.random.choice(self.front_ends).set_clock()
        elif chance < (0.03 if self.is_quiet else 0.016):
            self.is_quiet = not self.is_quiet

    def run(self, steps: int, front_ends: int) -> None:
        """
        Let front ends upload, remove and count.

        @raise Exceeded: the limit was exceeded.
        """
        try:
            for _ in range(steps):
                while len(self.front_ends) < front_ends:
                    FrontEnd(self)
                self.step()
                self.disturb()
        finally:
            for one in list(self.front_ends):
                one.kill()

    def fill(self, front_ends: int) -> int:
        """
        Without faults, after the deaths of all others: fill what is left of the limit.

        @return: how much is left when each front end was refused.
        """
        self.fault_rate = 0.0
        # What is still on its way is carried out or too old.
        self.advance(2 * SIGNATURE_S + 1)
        while self.on_the_way:
            self.arrive(self.on_the_way[0])
        new = [
            Leases(Direct(self), PREFIX, times=TIMES, clock=Direct(self), most=self.most_lease)
            for _ in range(front_ends)
        ]
        for _ in range(int((TIMES.suspect_s + TIMES.dead_s) / 5) + 2):
            for leases in new:
                leases.renew()
            self.advance(5.0)
        for leases in new:
            leases.renew()
        for _ in range(2):
            count(self, new[0])
        engine = Direct(self)
        for leases in new:
            with suppress(NoRoom):
                while True:
                    held = leases.take(ACCOUNT, 1) or leases.acquire(ACCOUNT, self.limit, 1)
                    leases.check(held)
                    engine.put_new(self.new_name(), b"x")
                    leases.ended(held, 1)
        return self.limit - self.stored


def count(world: World, leases: Leases) -> bool:
    """Count the data directly."""
    begun = leases.begin_count(ACCOUNT)
    return leases.counted(begun, sum(one.size_bytes for page in Direct(world).list_pages(DATA) for one in page))


class Direct:
    """An L{resticserver.objects.engine.Engine} and a L{resticserver.objects.front_ends.Clock}: all is carried out at once."""

    name = "s3://simulated"
    endpoint = "http://simulated"

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> Moment:
        """See L{resticserver.objects.front_ends.Clock.now}."""
        return Moment(self._world.now_s, self._world.now_s)

    def request(self, kind: str, key: str, content: Content = b"") -> object:
        """Make a request."""
        return self._world.carry_out(Request(kind, key, bytes(content), self._world.now_s))

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put_new}."""
        self.request("put_new", key, content)

    def put(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put}."""
        self.request("put", key, content)

    def get(self, key: str, wanted: WantedPart = WHOLE) -> MemoryBody:
        """See L{resticserver.objects.engine.Engine.get}."""
        content = self.request("get", key)
        assert isinstance(content, bytes)
        return MemoryBody(content, 0, len(content))

    def remove(self, key: str) -> None:
        """See L{resticserver.objects.engine.Engine.remove}."""
        self.request("remove", key)

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{resticserver.objects.engine.Engine.list_pages}: each page shows its part of the bucket as it is then."""
        while True:
            page = self.request("page", f"{prefix}\n{after}")
            assert isinstance(page, list)
            if page:
                yield page
            if len(page) < PAGE_OBJECTS:
                return
            after = page[-1].key

    def size_of(self, key: str) -> int:
        """See L{resticserver.objects.engine.Engine.size_of}; not used by leases."""
        return self._not_used()

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{resticserver.objects.engine.Engine.list_folder}; not used by leases."""
        self._not_used()

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}; not used by leases."""
        self._not_used()

    def _not_used(self) -> NoReturn:
        raise AssertionError("leases have no need of this request")


@dataclass(eq=False)
class _Sent:
    """An upload that was sent."""

    held: Held
    request: Request
    certain: bool = True


@dataclass(eq=False)
class _Thread:
    """The two sides of a front end's thread: one runs at a time."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class FrontEnd(Direct):
    """
    One front end: it uploads, removes, counts and renews, at random.

    @ivar paused_until_s: when it is woken; C{None} while it runs.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.front_ends.append(self)
        self.paused_until_s: float | None = None
        #: How far its clocks are behind because they stood still, and how far its wall clock is off anyway.
        self._asleep_s = 0.0
        self._wall_asleep_s = 0.0
        self._wall_off_s = world.random.uniform(-0.6, 0.6) * SIGNATURE_S
        self._frozen_at_s: float | None = None
        self._awake_s = 0.0
        self._waits_for: Request | None = None
        self._is_killed = False
        self._error: BaseException | None = None
        self._turn = _Thread()
        self._sent: list[_Sent] = []
        self._to_send: list[Held] = []
        self._renewed_s = 0.0
        self._tidied_s = 0.0
        self._counted_s = 0.0
        self._leases = Leases(self, PREFIX, times=TIMES, clock=self, most=world.most_lease, sleep=self._sleep)
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    # --- clocks

    def now(self) -> Moment:
        """See L{resticserver.objects.front_ends.Clock.now}."""
        true_s = self._world.now_s
        return Moment(true_s - self._asleep_s, true_s - self._wall_asleep_s + self._wall_off_s)

    def pause(self, seconds: float, clocks_stand: bool) -> None:
        """Stop it: the process alone, or the whole machine with its clocks."""
        self._world.is_quiet = self._world.is_quiet or seconds > 60
        self._world.count_event("machine paused" if clocks_stand else "process stopped")
        self.paused_until_s = self._world.now_s + seconds
        self._frozen_at_s = self._world.now_s if clocks_stand else None

    def resume(self, sets_clock: bool) -> None:
        """Go on; the wall clock of a machine may be set at once, or later."""
        if self._frozen_at_s is not None:
            self._asleep_s += self._world.now_s - self._frozen_at_s
            self._wall_asleep_s += self._world.now_s - self._frozen_at_s
            if sets_clock:
                self.set_clock()
        self.paused_until_s = self._frozen_at_s = None

    def set_clock(self) -> None:
        """The wall clock learns how long the machine was paused."""
        if self.paused_until_s is None:
            self._wall_asleep_s = 0.0

    @property
    def about_to_store(self) -> int:
        """How many uploads have what they need and are not sent."""
        return len(self._to_send)

    # --- its turn

    def is_ready(self) -> bool:
        """Whether it would do something now."""
        waits_for = self._waits_for
        return (
            self.paused_until_s is None
            and (waits_for is None or waits_for.answered)
            and self._world.now_s >= self._awake_s
        )

    def run(self) -> None:
        """Let it run up to its next request."""
        self._turn.go.release()
        assert self._turn.back.acquire(timeout=PATIENCE_S), "a front end waits for something else than the engine"
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """Kill it; what it has sent stays on its way."""
        self._world.front_ends.remove(self)
        self._is_killed = True
        self._turn.go.release()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a front end does not end"

    def _yield(self) -> None:
        if self._is_killed:
            raise Killed()
        self._turn.back.release()
        self._turn.go.acquire()
        if self._is_killed:
            raise Killed()

    def _sleep(self, seconds: float) -> None:
        self._awake_s = self._world.now_s + seconds
        self._yield()

    def _send(self, kind: str, key: str, content: Content = b"") -> Request:
        if self._is_killed:
            raise Killed()
        request = Request(kind, key, bytes(content), self.now().wall_s)
        if key.startswith(DATA) and self._world.random.random() < self._world.slow_rate:
            request.arrives_s = self._world.now_s + self._world.random.uniform(0.0, 1.2 * SIGNATURE_S)
        self._world.on_the_way.append(request)
        return request

    def request(self, kind: str, key: str, content: Content = b"") -> object:
        """Make a request, and wait for the answer."""
        self._waits_for = request = self._send(kind, key, content)
        self._yield()
        self._waits_for = None
        if request.error is not None:
            raise request.error
        return request.result

    # --- what it does

    def _main(self) -> None:
        self._turn.go.acquire()
        with suppress(Killed):
            try:
                while not self._is_killed:
                    with suppress(EngineError, LeaseEnded):
                        self._act()
                    self._sleep(self._world.random.choice((1.0, 4.0) if self._world.is_quiet else (0.0, 0.0, 0.1)))
            except Exception as error:
                self._error = error
                self._turn.back.release()

    def _act(self) -> None:
        self._receive()
        now_s = self.now().running_s
        if now_s - self._renewed_s > TIMES.usable_s / 3:
            self._renewed_s = now_s
            self._leases.renew()
        chance = self._world.random.random()
        if self._to_send and (chance < 0.2 or len(self._to_send) > 4):
            self._store(self._to_send.pop(0))
        elif chance < 0.75:
            self._upload()
        elif chance < 0.755:
            self._remove()
        elif chance < 0.9 and now_s - self._counted_s > 5:
            self._count()
        elif now_s - self._tidied_s > 2:
            self._tidied_s = now_s
            self._leases.tidy()

    def _upload(self) -> None:
        size = self._world.random.choice((1, 3, 10, 40))
        try:
            held = self._leases.take(ACCOUNT, size) or self._leases.acquire(
                ACCOUNT, self._world.limit, size, above=self._world.random.random() < 0.1
            )
        except (NoRoom, NotCounted) as error:
            self._world.count_event(type(error).__name__)
            if isinstance(error, NotCounted) or self.now().running_s - self._counted_s > 3:
                self._count()
        else:
            self._to_send.append(held)

    def _store(self, held: Held, certain: bool = True) -> None:
        try:
            self._leases.check(held)
        except LeaseEnded:
            self._world.count_event("lease ended")
            self._leases.ended(held, 0, certain)
            return
        self._sent.append(_Sent(held, self._send("put_new", self._world.new_name(), bytes(held.size)), certain))

    def _receive(self) -> None:
        for sent in [one for one in self._sent if one.request.answered]:
            self._sent.remove(sent)
            error = sent.request.error
            if error is None:
                self._leases.ended(sent.held, sent.held.size, sent.certain)
            elif isinstance(error, AccessRefused):
                self._leases.ended(sent.held, 0, sent.certain)
            else:
                self._leases.ended(sent.held, 0, certain=False)

    def _remove(self) -> None:
        keys = sorted(key for key in self._world.objects if key.startswith(DATA))
        if keys and self._world.stored > 0.9 * self._world.limit:
            for key in self._world.random.sample(keys, 1):
                self.remove(key)

    def _count(self) -> None:
        self._counted_s = self.now().running_s
        begun = self._leases.begin_count(ACCOUNT)
        counted = sum(found.size_bytes for page in self.list_pages(DATA) for found in page)
        if self._leases.counted(begun, counted):
            self._world.count_event("counted")
