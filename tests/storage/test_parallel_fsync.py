"""
L{resticserver.storage.parallel_fsync}, with a real kernel, and when L{resticserver.storage.durable} makes use of it; uploads and
removals that wait together.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Forbidden, HashMismatch
from resticserver.sizes import Amount
from resticserver.storage import parallel_fsync
from resticserver.storage.durable import DurableDirectories
from resticserver.storage.interface import Outcome
from resticserver.storage.local import LocalStore
from resticserver.threads.steps import Steps, run_together, stepped, steps_of

from ..support.descriptors import left_open, open_descriptors

_SLOW_S = 1.0
#: More than a process may have.
_NO_FD = 1 << 30


def codes_of(errors: Sequence[OSError | None]) -> list[str]:
    """The names of errors; empty for none."""
    return ["" if error is None else errno.errorcode[error.errno or 0] for error in errors]


class KernelCase(SynchronousTestCase):
    """Needs the kernel's asynchronous I/O."""

    def setUp(self) -> None:
        if not parallel_fsync.is_available():
            raise SkipTest("needs Linux with asynchronous I/O")
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()

    def opened(self, number: int) -> list[int]:
        """Descriptors of so many files with something in them; the first is that of their directory."""
        found = [os.open(self.path, os.O_RDONLY)]
        for index in range(number - 1):
            found.append(os.open(self.path / str(index), os.O_CREAT | os.O_RDWR))
            os.write(found[-1], b"x" * 5000)
        for fd in found:
            self.addCleanup(os.close, fd)
        return found


class FsyncAllTests(KernelCase):
    """L{parallel_fsync.fsync_all}."""

    def test_several(self) -> None:
        """Files and directories, also more than the kernel takes at once, and none."""
        for number in (0, 1, 5, parallel_fsync.MOST, 2 * parallel_fsync.MOST + 3):
            self.assertEqual([""] * number, codes_of(parallel_fsync.fsync_all(self.opened(number)[:number])))

    def test_errors(self) -> None:
        """The error of each is its own: a pipe cannot be made durable, and what is closed is no file."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        first, second, third = self.opened(3)
        found = codes_of(parallel_fsync.fsync_all([first, writer, second, _NO_FD, third]))
        self.assertEqual(["", "EINVAL", "", "EBADF", ""], found)
        self.assertEqual([""] * 3, codes_of(parallel_fsync.fsync_all([first, second, third])))

    def test_result_of_the_kernel(self) -> None:
        """What the kernel reports for one is the error of that one."""
        files = self.opened(3)
        context = parallel_fsync._Context()
        real = context._syscall

        def syscall(number: Any, *args: Any) -> int:
            got: int = real(number, *args)
            if number is context._get_events:
                for event in context._events[:got]:
                    if event.data == 1:
                        event.result = -errno.EIO
            return got

        with mock.patch.object(context, "_syscall", syscall):
            self.assertEqual(["", "EIO", ""], codes_of(context.fsync(files)))

    def test_not_known(self) -> None:
        """If the kernel does not say what became of them, they are not durable: a second fsync would say that they are."""
        files = self.opened(3)
        context = parallel_fsync._Context()
        real = context._syscall
        with mock.patch.object(
            context, "_syscall", lambda number, *args: -1 if number is context._get_events else real(number, *args)
        ):
            self.assertEqual(["EIO"] * 3, codes_of(context.fsync(files)))
        self.assertTrue(context.is_broken)

    def test_broken_is_not_used_again(self) -> None:
        """What comes late is not taken for the result of others: the next ones have another context."""
        files = self.opened(parallel_fsync.MOST + 3)
        context = parallel_fsync._Context()
        real = context._syscall
        failing = mock.patch.object(
            context, "_syscall", lambda number, *args: -1 if number is context._get_events else real(number, *args)
        )
        of_thread = threading.local()
        of_thread.context = context
        self.patch(parallel_fsync, "_of_thread", of_thread)
        with failing:
            found = codes_of(parallel_fsync.fsync_all(files))
        self.assertEqual(["EIO"] * parallel_fsync.MOST + [""] * 3, found)
        self.assertFalse(hasattr(of_thread, "context"))
        self.assertEqual([""] * 3, codes_of(parallel_fsync.fsync_all(files[:3])))
        self.assertIsNot(context, of_thread.context)

    def test_not_taken(self) -> None:
        """What the kernel does not take is done one after the other, with its errors."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        files = self.opened(3)
        context = parallel_fsync._Context()
        with mock.patch.object(context, "_syscall", return_value=-1):
            self.assertEqual(["", "", "EINVAL", ""], codes_of(context.fsync([*files[:2], writer, files[2]])))

    def test_no_context(self) -> None:
        """So it is where the system has no context left."""
        failing = mock.patch.object(parallel_fsync, "_Context", side_effect=OSError(errno.EAGAIN, "no"))
        fresh = mock.patch.object(parallel_fsync, "_of_thread", threading.local())
        with failing, fresh:
            self.assertEqual([""] * 3, codes_of(parallel_fsync.fsync_all(self.opened(3))))

    def test_many_threads(self) -> None:
        """Each thread has a context of its own, which goes with it."""
        files = self.opened(20)

        def some(number: int) -> list[str]:
            return codes_of(parallel_fsync.fsync_all(files[number % 10 : number % 10 + 10]))

        with ThreadPoolExecutor(8) as pool:
            self.assertEqual([[""] * 10] * 200, list(pool.map(some, range(200))))
        in_use = int(Path("/proc/sys/fs/aio-nr").read_text())
        self.assertLess(in_use, 200 * parallel_fsync.MOST)


class DecisionTests(KernelCase):
    """L{DurableDirectories.fsync_all}: at the same time only where an fsync takes long."""

    def setUp(self) -> None:
        super().setUp()
        self.durable = DurableDirectories(0o700)
        self.parallel: list[int] = []
        real = parallel_fsync.fsync_all

        def counted(fds: Sequence[int]) -> list[OSError | None]:
            self.parallel.append(len(fds))
            return real(fds)

        self.patch(parallel_fsync, "fsync_all", counted)

    def test_quick(self) -> None:
        """Where an fsync takes no time they are done one after the other."""
        self.patch(os, "fsync", lambda fd: None)
        self.assertEqual([None] * 5, self.durable.fsync_all(self.opened(5)))
        self.assertEqual([], self.parallel)

    def test_slow(self) -> None:
        """Where it takes long, at the same time; one alone needs no company."""
        self.durable._note_fsync(_SLOW_S)
        files = self.opened(5)
        self.assertEqual([None] * 5, self.durable.fsync_all(files))
        self.assertEqual([None], self.durable.fsync_all(files[:1]))
        self.assertEqual([5], self.parallel)

    def test_changes(self) -> None:
        """What was measured last counts most."""
        for _ in range(50):
            self.durable._note_fsync(_SLOW_S)
        for _ in range(200):
            self.durable._note_fsync(0.0)
        self.durable.fsync_all(self.opened(5))
        self.assertEqual([], self.parallel)

    def test_not_available(self) -> None:
        """Without the kernel's help they are done one after the other."""
        self.durable._note_fsync(_SLOW_S)
        self.patch(parallel_fsync, "is_available", lambda: False)
        self.assertEqual([None] * 5, self.durable.fsync_all(self.opened(5)))
        self.assertEqual([], self.parallel)

    def test_unsupported(self) -> None:
        """A file system without fsync is said once, and is no error; any other error is one."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        for mean_s in (_SLOW_S, 0.0):
            self.durable._mean_fsync_s = mean_s
            with capturedLogs() as events:
                found = self.durable.fsync_all([*self.opened(2), writer, _NO_FD])
            self.assertEqual(["", "", "", "EBADF"], codes_of(found))
            self.assertEqual(int(mean_s > 0), len(events))

    def test_observed(self) -> None:
        """Each is counted, with the time that it has taken."""
        observed: list[float] = []
        self.durable.observe_fsyncs(observed.append)
        for mean_s in (_SLOW_S, 0.0):
            self.durable._mean_fsync_s = mean_s
            observed.clear()
            self.durable.fsync_all(self.opened(4))
            self.assertEqual(4, len(observed))
            self.assertGreater(min(observed), 0)


@stepped
def upload(store: LocalStore, repository: tuple[str, ...], kind: str, name: str, content: bytes) -> Steps[Outcome]:
    """All of an upload; it leaves nothing if it fails."""
    one = store.upload(repository, kind, name)
    try:
        one.open()
        one.write([content])
        return (yield from steps_of(one.commit))
    finally:
        one.abort()


class ObjectsTests(KernelCase):
    """Uploads and removals to a real store, together."""

    def setUp(self) -> None:
        super().setUp()
        self.store = LocalStore(str(self.path))
        self.store.prepare()
        self.store.create_repository(("alice",))
        self.store.publisher._note_fsync(_SLOW_S)
        self.before = open_descriptors()

    def run_all(self, *jobs: tuple[Any, ...]) -> list[Any]:
        """Run jobs together: a stepped function with its arguments each. Their results; the types of errors."""
        found: dict[int, Any] = {}
        run_together(
            [(index, job.steps(*args)) for index, (job, *args) in enumerate(jobs)],
            found.__setitem__,
            lambda waits: None,
        )
        return [each.type if isinstance(each, Failure) else each for _, each in sorted(found.items())]

    def path_of(self, kind: str, name: str) -> Path:
        """Where an object lies."""
        return self.path / "alice" / kind / (f"{name[:2]}/{name}" if kind == "data" else name)

    def test_uploads(self) -> None:
        """Each has the end that it has alone: also two of the same name, wrong bytes, and one to no repository."""
        bodies = [b"body %d" % number for number in range(6)]
        names = [hashlib.sha256(body).hexdigest() for body in bodies]
        found = self.run_all(
            *((upload, self.store, ("alice",), "data", name, body) for name, body in zip(names, bodies, strict=True)),
            (upload, self.store, ("alice",), "data", names[0], bodies[0]),
            (upload, self.store, ("alice",), "data", names[0], b"wrong"),
            (upload, self.store, ("alice",), "index", "ab" * 32, b"wrong"),
            (upload, self.store, ("bob",), "data", names[0], bodies[0]),
        )
        self.assertEqual([Outcome.STORED] * 6 + [Outcome.UNCHANGED], found[:7])
        # Its name is free as long as none of the others has been given its own.
        self.assertIn(found[7], (HashMismatch, Forbidden))
        self.assertEqual(HashMismatch, found[8])
        self.assertEqual("NoSuchRepository", found[9].__name__)
        for name, body in zip(names, bodies, strict=True):
            self.assertEqual(body, self.path_of("data", name).read_bytes())
        self.assertEqual([], left_open(self.before))
        self.assertEqual(6, sum(len(files) for _, _, files in os.walk(self.path / "alice")))

    def test_removals(self) -> None:
        """Removals beside an upload, one of them of what is missing, and one to the trash."""
        bodies = [b"body %d" % number for number in range(4)]
        names = [hashlib.sha256(body).hexdigest() for body in bodies]
        for name, body in zip(names, bodies, strict=True):
            upload(self.store, ("alice",), "index", name, body)
        found = self.run_all(
            (self.store.remove_object, ("alice",), "index", names[0]),
            (self.store.remove_object, ("alice",), "index", names[1], 1000.0),
            (upload, self.store, ("alice",), "data", names[0], bodies[0]),
            (self.store.remove_object, ("alice",), "index", "ab" * 32),
        )
        self.assertEqual([Amount(-6, -1), Amount(-6, -1), Outcome.STORED, Amount()], found)
        self.assertEqual(sorted(names[2:]), sorted(os.listdir(self.path / "alice/index")))
        self.assertTrue(list((self.path / "alice/.trash").rglob(names[1])))
        self.assertEqual([], left_open(self.before))

    def test_failing_disk(self) -> None:
        """An fsync that fails fails the one upload that waits for it, and leaves nothing of it."""
        bodies = [b"body %d" % number for number in range(4)]
        names = [hashlib.sha256(body).hexdigest() for body in bodies]
        real = parallel_fsync.fsync_all
        calls: list[int] = []

        def failing(fds: Sequence[int]) -> list[OSError | None]:
            found = real(fds)
            if not calls:
                found[1] = OSError(errno.EIO, os.strerror(errno.EIO))
            calls.append(len(fds))
            return found

        self.patch(parallel_fsync, "fsync_all", failing)
        found = self.run_all(
            *((upload, self.store, ("alice",), "data", name, body) for name, body in zip(names, bodies, strict=True))
        )
        self.assertEqual([Outcome.STORED, OSError, Outcome.STORED, Outcome.STORED], found)
        self.assertEqual([4, 3], calls)
        self.assertFalse(self.path_of("data", names[1]).exists())
        self.assertEqual([], left_open(self.before))
