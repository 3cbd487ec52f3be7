"""
Messages between the server's processes. The parent and each worker are connected by a pair of unix sockets, with an
L{IpcConnection} at each end.

A message is a L{Command} (one-way) or a L{Question}, which is answered by a value or by one of its errors. All
messages are defined in L{resticserver.workers.messages}. A frame is a length of four bytes and a JSON object, and may
carry one file descriptor::

    {"tell": NAME, "with": {...}}              a command
    {"ask": NAME, "with": {...}, "number": 7}  a question
    {"answer": 7, "value": ...}                its answer, or {"answer": 7, "error": NAME, "with": [...]}

Frames are handled in the order in which they were sent, and a question before anything sent after it. So when an
answer arrives, the other side has handled everything sent before it. Nothing blocks: data that the other side does not
accept yet is buffered, and C{IpcConnection.waiting_bytes} is its size.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: The longest frame. A frame whose length is larger is invalid and cannot be skipped, so the connection is closed.
MOST_BYTES = 64 << 20

_LENGTH = struct.Struct(">I")
_READ_BYTES = 64 << 10
#: For one read; the kernel delivers the descriptors of one frame at a time.
_MOST_DESCRIPTORS = 16

_log = Logger()

A = TypeVar("A")


class IpcConnectionLost(Exception):
    """The other side is gone and will not answer."""


class Failed(Exception):
    """The other side could not answer, for a reason that is none of the question's errors."""


class Command:
    """
    A one-way message: a frozen dataclass whose fields are of JSON types, or are L{wired}. If a descriptor comes with
    it, the handler gets it as the argument C{fd}; -1 if this process already has too many descriptors.
    """

    def to_wire(self) -> dict[str, Any]:
        """The fields by name, as JSON types."""
        return {each.name: _encoded(each, getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Decode the fields of a received message. A descriptor stays among them."""
        for each in fields(cls):  # type: ignore[arg-type]
            if (decode := each.metadata.get("decode")) is not None and values.get(each.name) is not None:
                values[each.name] = decode(values[each.name])
        return values


class Question(Command, Generic[A]):
    """
    A message with an answer of type C{A}.

    @cvar errors: the possible errors. An error is sent as the first of these classes that it is an instance of.
    """

    errors: ClassVar[tuple[type[Exception], ...]] = ()


@dataclass(frozen=True)
class Unknown(Question[None]):
    """Stands for a question that this side does not support."""


def wired(decode: Callable[[Any], Any], encode: Callable[[Any], Any] = list) -> Any:
    """A dataclass field of a type that JSON does not have. C{None} is passed unchanged."""
    return field(metadata={"decode": decode, "encode": encode})


def _encoded(each: Field[Any], value: Any) -> Any:
    encode = each.metadata.get("encode")
    return value if encode is None or value is None else encode(value)


#: The messages that one side supports: for each class, a function that is called with the fields by name. For a
#: question, it returns the answer or a Deferred of it, or raises one of the question's errors.
Handlers = Mapping[type[Command], Callable[..., Any]]


@implementer(IReadDescriptor, IWriteDescriptor)
class IpcConnection:
    """
    One end of a pair of sockets between two processes.

    @param name: the name of the other side in the log.
    @param handlers: the messages that this side supports.
    @param lost: called once, when the other side is gone.
    @ivar waiting_bytes: how much data waits to be sent.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        connection: socket.socket,
        name: str,
        handlers: Handlers,
        lost: Callable[[], object],
    ) -> None:
        connection.setblocking(False)
        self._reactor = reactor
        self._socket = connection
        self._name = name
        self._handlers: dict[str, tuple[type[Command], Callable[..., Any]]] = {}
        self.handle(handlers)
        self._lost = lost
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[memoryview] = deque()
        self._numbers = count(1)
        self._asked: dict[int, tuple[Question[Any], Deferred[Any]]] = {}
        self._takes = True
        self.waiting_bytes = 0
        self.open = True

    def handle(self, handlers: Handlers) -> None:
        """Add handlers."""
        self._handlers.update({command.__name__: (command, handler) for command, handler in handlers.items()})

    def start(self) -> None:
        """Begin to receive."""
        if self.open:
            self._reactor.addReader(self)

    # --- sending

    def tell(self, command: Command) -> None:
        """Send a command. Does nothing if the other side is gone."""
        self._send({"tell": type(command).__name__, "with": command.to_wire()})

    def hand_over(self, fd: int, command: Command) -> bool:
        """
        Send a command with a copy of a descriptor, if the other side accepts it now.

        @return: whether it was sent.
        """
        if not self._takes or self._unsent:
            return False
        frame = _frame({"tell": type(command).__name__, "with": command.to_wire(), "descriptor": True})
        try:
            sent = socket.send_fds(self._socket, [frame], [fd])
        except OSError as error:
            # ETOOMANYREFS: too many descriptors are in transit to processes that do not receive them.
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS):
                self._send_no_more()
            return False
        self._queue(memoryview(frame)[sent:])
        return True

    def ask(self, question: Question[A]) -> Deferred[A]:
        """
        Send a question.

        @return: fires with the answer. Fails with one of the question's errors, with L{IpcConnectionLost} if the other
            side is gone before it answered, or with L{Failed} if it could not answer.
        """
        if not self.open:
            return fail(IpcConnectionLost(f"the connection to {self._name} was lost"))
        number = next(self._numbers)
        answer: Deferred[A] = Deferred()
        self._asked[number] = (question, answer)
        self._send({"ask": type(question).__name__, "with": question.to_wire(), "number": number})
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
        """See C{twisted.internet.interfaces.IWriteDescriptor}."""
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
        """The other side no longer receives. Data that it sent before is still read, up to the end of the stream."""
        self._takes = False
        self._unsent.clear()
        self.waiting_bytes = 0
        self._reactor.removeWriter(self)

    def flush(self, timeout_s: float) -> None:
        """Send buffered data, and block until it is sent. For a process that is about to end."""
        if self._unsent:
            self._socket.settimeout(timeout_s)
            self.doWrite()

    # --- receiving

    def doRead(self) -> None:
        """See C{twisted.internet.interfaces.IReadDescriptor}."""
        self._read()

    def read_all(self) -> None:
        """Handle everything that was received already: the other side has ended."""
        while self._read():
            pass

    def _read(self) -> bool:
        """
        Handle the data of one read.

        @return: whether there may be more.
        """
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
            # This process has too many descriptors. The kernel delivers those of one frame at a time, so the lost one
            # belongs to this frame.
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
                _log.failure("could not handle a message from {name}", name=self._name)

    def _take(self, message: dict[str, Any]) -> None:
        values = message.get("with", {})
        if message.get("descriptor"):
            values["fd"] = self._descriptors.popleft()
        if "tell" in message:
            command, handler = self._handlers[message["tell"]]
            handler(**command.from_wire(values))
        elif "ask" in message:
            number = message["number"]
            command, handler = self._handlers.get(message["ask"], (Unknown, partial(_unknown, message["ask"])))
            answer = maybeDeferred(lambda: handler(**command.from_wire(values)))
            answer.addCallback(lambda value: self._send({"answer": number, "value": value}))
            answer.addErrback(lambda failure: self._send({"answer": number, **_error_on_the_wire(command, failure)}))
        else:
            question, answered = self._asked.pop(message["answer"])
            if "error" in message:
                errors = {error.__name__: error for error in question.errors}
                answered.errback(errors.get(message["error"], Failed)(*values))
            else:
                answered.callback(message["value"])

    # --- the end

    def close(self) -> None:
        """Close the connection from this side."""
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
        for _, answer in asked.values():
            answer.errback(IpcConnectionLost(f"the connection to {self._name} was lost"))
            if not tell:
                # A signal during the start may have come before the answer's errback was added: nobody waits for it then.
                answer.addErrback(lambda failure: failure.trap(IpcConnectionLost))
        if tell:
            self._lost()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave up on the socket."""
        self._end()

    def fileno(self) -> int:
        """See C{twisted.internet.interfaces.IFileDescriptor}."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See C{twisted.internet.interfaces.ILoggingContext}."""
        return self._name


def _unknown(name: str, /, **values: Any) -> None:
    """Fail for a question that this side does not support."""
    raise LookupError(f"unknown question: {name}")


def _error_on_the_wire(command: type[Command], failure: Failure) -> dict[str, Any]:
    """Encode an error as the part of an answer."""
    for error in command.errors if issubclass(command, Question) else ():
        if isinstance(failure.value, error):
            return {"error": error.__name__, "with": failure.value.args}
    return {"error": Failed.__name__, "with": [failure.getErrorMessage()]}


def _frame(message: dict[str, Any]) -> bytes:
    """
    Encode a message.

    @raise ValueError: it is longer than the other side accepts.
    """
    content = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(content) > MOST_BYTES:
        raise ValueError(f"a message of {len(content)} bytes")
    return _LENGTH.pack(len(content)) + content
