"""
Messages between the server's processes: the parent and each worker share a pair of unix sockets, with an L{IpcConnection} at
each end.

A frame is four bytes of length and a JSON object, and may bring one descriptor. There are three kinds::

    {"tell": NAME, "with": {...}}              a one-way message
    {"ask": NAME, "with": {...}, "number": 7}  a question
    {"answer": 7, "value": ...}                its answer, or {"answer": 7, "error": TEXT}

To add a message, give the L{Commands} of the side that takes it a function under its name. It is called with the arguments by
name; the descriptor, where one came, is C{fd} and the function's own, or -1 if the process has too many already. What it
returns is the answer, or a Deferred of it; what it raises is L{Failed} for the one who asked. Everything must be what JSON has;
bytes go as text (C{latin-1}).

Frames are taken in the order in which they were sent, and a question before whatever is sent after it; so who has an answer
knows that the other side has taken all that was sent before. Nothing blocks: what the other side does not take waits here, and
L{IpcConnection.waiting_bytes} says how much that is.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: No frame is longer; who sends one that says it is has lost the thread, and the wire ends.
MOST_BYTES = 64 << 20

_LENGTH = struct.Struct(">I")
_READ_BYTES = 64 << 10
#: Of one read; the kernel gives the descriptors of one frame at a time.
_MOST_DESCRIPTORS = 16

_log = Logger()

#: What may be asked and told, by name.
Commands = Mapping[str, Callable[..., Any]]


class IpcConnectionLost(Exception):
    """The other side is gone, and will not answer."""


class Failed(Exception):
    """The other side could not do what it was asked to."""


@implementer(IReadDescriptor, IWriteDescriptor)
class IpcConnection:
    """
    One end of a pair of sockets between two processes.

    @param name: what the other side is called in the log.
    @param verbs: what this side takes.
    @param lost: called once, when the other side is gone.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        connection: socket.socket,
        name: str,
        commands: Commands,
        lost: Callable[[], object],
    ) -> None:
        connection.setblocking(False)
        self._reactor = reactor
        self._socket = connection
        self._name = name
        self._commands = commands
        self._lost = lost
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[memoryview] = deque()
        self._numbers = count(1)
        self._asked: dict[int, Deferred[Any]] = {}
        self._takes = True
        self.waiting_bytes = 0
        self.open = True

    def start(self) -> None:
        """Take what comes from now on."""
        if self.open:
            self._reactor.addReader(self)

    # --- sending

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a one-way message; to nobody, if the other side is gone."""
        self._send({"tell": command, "with": arguments})

    def hand_over(self, fd: int, command: str, **arguments: Any) -> bool:
        """
        Send a one-way message with a descriptor, if the other side takes it now. The sender's own stays the sender's.

        @return: whether it was sent.
        """
        if not self._takes or self._unsent:
            return False
        frame = _frame({"tell": command, "with": arguments, "descriptor": True})
        try:
            sent = socket.send_fds(self._socket, [frame], [fd])
        except OSError as error:
            # ETOOMANYREFS: too many descriptors are on their way to processes that do not take them.
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS):
                self._send_no_more()
            return False
        self._queue(memoryview(frame)[sent:])
        return True

    def ask(self, command: str, **arguments: Any) -> Deferred[Any]:
        """
        Ask a question. The Deferred fires with the answer.

        It fails with L{IpcConnectionLost} if the other side is gone before it answered, with L{Failed} if it could not answer.
        """
        if not self.open:
            return fail(IpcConnectionLost(f"{self._name} is gone"))
        number = next(self._numbers)
        answer: Deferred[Any] = Deferred()
        self._asked[number] = answer
        self._send({"ask": command, "with": arguments, "number": number})
        return answer

    def _send(self, message: dict[str, Any]) -> None:
        if self._takes:
            self._queue(memoryview(_frame(message)))

    def _queue(self, data: memoryview) -> None:
        if not data:
            return
        was_empty = not self._unsent
        self._unsent.append(data)
        self.waiting_bytes += len(data)
        if was_empty:
            self.doWrite()
            if self._unsent:
                self._reactor.addWriter(self)

    def doWrite(self) -> None:
        """Twisted's call: the other side takes more."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._send_no_more()
                return
            self.waiting_bytes -= sent
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                self._unsent.popleft()
        self._reactor.removeWriter(self)

    def _send_no_more(self) -> None:
        """The other side does not listen any more; what it said before is still to be read, and then its end."""
        self._takes = False
        self._unsent.clear()
        self.waiting_bytes = 0
        self._reactor.removeWriter(self)

    def flush(self, timeout_s: float) -> None:
        """Send what waits, and wait for that: for a process that is about to end."""
        if self._unsent:
            self._socket.settimeout(timeout_s)
            self.doWrite()

    # --- receiving

    def doRead(self) -> None:
        """Twisted's call: something came, or the other side is gone."""
        self._read()

    def read_all(self) -> None:
        """Take all that is here already: the other side has ended."""
        while self._read():
            pass

    def _read(self) -> bool:
        """Take what one read brings; whether there may be more."""
        if not self.open:
            return False
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ_BYTES, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return False
        except OSError:
            self._end()
            return False
        for fd in descriptors:
            os.set_inheritable(fd, False)
            self._descriptors.append(fd)
        if flags & socket.MSG_CTRUNC:
            # This process has too many already. The kernel gives those of one frame at a time, so it is this one's.
            self._descriptors.append(-1)
        if not data:
            self._end()
            return False
        self._received += data
        self._take_frames()
        return True

    def _take_frames(self) -> None:
        while self.open and len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > MOST_BYTES:
                _log.error("{name} sent a message that is too long", name=self._name)
                self._end()
                return
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            content = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            try:
                self._take(json.loads(content))
            except Exception:
                _log.failure("could not take a message from {name}", name=self._name)

    def _take(self, message: dict[str, Any]) -> None:
        arguments = message.get("with", {})
        if message.get("descriptor"):
            arguments["fd"] = self._descriptors.popleft()
        if "tell" in message:
            self._commands[message["tell"]](**arguments)
        elif "ask" in message:
            number = message["number"]
            answer = maybeDeferred(lambda: self._commands[message["ask"]](**arguments))
            answer.addCallback(lambda value: self._send({"answer": number, "value": value}))
            answer.addErrback(lambda failure: self._send({"answer": number, "error": failure.getErrorMessage()}))
        else:
            answered = self._asked.pop(message["answer"])
            if "error" in message:
                answered.errback(Failed(message["error"]))
            else:
                answered.callback(message["value"])

    # --- the end

    def close(self) -> None:
        """End it from this side."""
        self._end(tell=False)

    def _end(self, tell: bool = True) -> None:
        if not self.open:
            return
        self.open = False
        self._send_no_more()
        self._reactor.removeReader(self)
        self._socket.close()
        while self._descriptors:
            fd = self._descriptors.popleft()
            if fd >= 0:
                os.close(fd)
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.errback(IpcConnectionLost(f"{self._name} is gone"))
        if tell:
            self._lost()

    def connectionLost(self, reason: Failure) -> None:
        """Twisted's call: the reactor gave up on the socket."""
        self._end()

    def fileno(self) -> int:
        """Twisted's call: the socket's descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Twisted's call."""
        return self._name


def _frame(message: dict[str, Any]) -> bytes:
    """
    A message as bytes.

    @raise ValueError: it is longer than the other side takes.
    """
    content = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(content) > MOST_BYTES:
        raise ValueError(f"a message of {len(content)} bytes")
    return _LENGTH.pack(len(content)) + content
