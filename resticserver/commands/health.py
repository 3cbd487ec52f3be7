"""
C{rest-server health}: asks a running server whether it can do its work (C{/-/ready}). For the health checks of containers and
service managers, which run it every few seconds, so it imports little and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import io
import ipaddress
import os
import socket
import ssl
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from ..config.console import OneLineParser, write_line
from ..config.server_flags import add_server_flags, server_settings, settings_of
from ..config.settings import Settings
from ..config.sources import PREFIX
from ..net.addresses import Place, place_of

#: The server itself waits for its disk for three seconds.
_TIMEOUT_S = 5.0
#: The longest response that is read; the server's has one line.
_MOST_BYTES = 64 << 10
_LONGEST_REASON = 300
#: What a command line calls the server: the command, or the plugin of twistd.
_SERVER_NAMES = ("rest-server", "restic-rest")
#: The header of a connection that no proxy forwards, for listeners that want one.
_PROXY_HEADER = b"PROXY UNKNOWN\r\n"


class _NotAsked(Exception):
    """The server cannot be asked; the message says why in one line."""


class _Question(NamedTuple):
    """
    Where and how to ask.

    @ivar path: of the page.
    @ivar cafile: CA certificates to verify the server's with, or C{None} for the system's.
    @ivar verified: whether the server's certificate is verified.
    """

    place: Place
    path: str = "/-/ready"
    cafile: str | None = None
    verified: bool = False


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{health}.
    @return: 0 if the server is ready; 1 if it says that it is not; 2 if it could not be asked.
    """
    parser = _parser()
    try:
        asked = parser.parse_args(list(arguments))
        question = _question(asked, parser)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    except _NotAsked as error:
        return _complain(str(error))
    try:
        status, text = _answer(question, asked.timeout)
    except (OSError, HTTPException, ValueError) as error:
        return _complain(f"{question.place}: {_reason(error, question.place)}")
    if status == 200:
        return 0 if write_line("ready") else 2
    if status == 503:
        print(f"{parser.prog}: not ready: {_printable(text)}", file=sys.stderr)
        return 1
    return _complain(f"{question.place}: status {status}, where the server says 200 or 503; is it another program?")


def _complain(line: str) -> int:
    """Print why the server could not be asked. @return: the exit status."""
    print(f"rest-server health: {_printable(line)}", file=sys.stderr)
    return 2


def _printable(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST_REASON]).strip()
    return line.encode("ascii", "backslashreplace").decode("ascii") or "no reason was given"


# --- the command line


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "rest-server health",
        description="Ask a running server whether it is ready. It is, if its data directory exists and can be written. "
        "The exit status is 0 if it is ready, 1 if it is not (with the reason), and 2 if the server could not be asked. "
        "Without ADDRESS the server is asked on this machine, at the first address of --listen and --metrics-listen "
        "that can be asked. Its certificate is then not verified, because no secret is sent.",
    )
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="URL of the server, or unix:/path; the certificate of an https:// URL is verified, except on loopback",
    )
    parser.add_argument(
        "--running",
        action="store_true",
        help="take flags and environment from the server process that runs in this container or on this machine",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long the answer may take (default {_TIMEOUT_S:g})",
    )
    parser.add_argument("--cacert", metavar="FILE", help="CA certificate to verify the server's certificate, PEM")
    add_server_flags(parser, "listen", "metrics-listen", "tls")
    return parser


def _seconds(text: str) -> float:
    number = text.removesuffix("s")
    if not number.replace(".", "", 1).isdecimal() or not 0 < float(number) <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds, more than 0 and at most 3600")
    return float(number)


def _question(asked: argparse.Namespace, parser: OneLineParser) -> _Question:
    """
    Where the arguments say that the server is.

    @raise _NotAsked: this cannot be found out.
    @raise SystemExit: an argument is invalid; one line was printed.
    """
    of_the_server = (asked.config, asked.listen, asked.metrics_listen, asked.tls)
    given = any(value is not None for value in of_the_server)
    if asked.address is not None:
        if given or asked.running:
            parser.error("ADDRESS cannot be combined with --running or the server's flags")
        return _at(asked.address, asked.cacert)
    if asked.cacert is not None:
        parser.error("--cacert needs a URL as ADDRESS")
    if not asked.running:
        return _Question(_place(server_settings(asked, parser.prog)))
    if given:
        parser.error("--running cannot be combined with the server's flags")
    return _Question(_place(settings_of(_flags_of_running(Path("/proc")), parser.prog)))


def _at(address: str, cafile: str | None) -> _Question:
    """An address of the command line."""
    if address.startswith("unix:") and address != "unix:":
        return _Question(Place(path=address.removeprefix("unix:")))
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _NotAsked(f"{address}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _NotAsked("ADDRESS must be a URL such as http://127.0.0.1:8000, or unix:/path")
    if "@" in parts.netloc:
        raise _NotAsked("the URL must not contain a user or a password; none is needed")
    tls = parts.scheme == "https"
    place = Place((host,), port if port is not None else 443 if tls else 80, tls=tls)
    path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%") + "/-/ready"
    return _Question(place, path, cafile, verified=cafile is not None or not _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _place(settings: Settings) -> Place:
    """
    The listener of a server that is simplest to ask.

    @raise _NotAsked: none of them can be asked.
    """
    found: list[Place] = []
    problems = []
    for address in (*settings.listen, *((settings.metrics_listen,) if settings.metrics_listen else ())):
        try:
            place = place_of(address, settings.tls)
        except ValueError as error:
            problems.append(f"{address}: {error}")
            continue
        if place.tls and settings.tls_client_ca is not None and settings.tls_client_required:
            problems.append(f"{address}: clients must have a certificate")
        else:
            found.append(place)
    if not found:
        raise _NotAsked(f"{'; '.join(problems)}; give the server's address, or let it listen at another one as well")
    return min(found, key=lambda place: (place.tls, place.proxied))


def _flags_of_running(proc: Path) -> list[str]:
    """
    The command line of the server that runs. Its variables C{REST_SERVER_*} replace those of this process.

    @param proc: where the kernel shows processes.
    @raise _NotAsked: no server runs, several do, or its environment may not be read.
    """
    servers = {}
    for directory in proc.glob("[0-9]*"):
        try:
            words = [os.fsdecode(word) for word in (directory / "cmdline").read_bytes().split(b"\0")[:-1]]
        except OSError:
            continue  # it has ended, or is another user's
        place = next((n for n, word in enumerate(words) if os.path.basename(word) in _SERVER_NAMES), None)
        # A subcommand has its name as the first argument, where the server has a flag.
        if place is not None and all(word.startswith("-") for word in words[place + 1 : place + 2]):
            servers[int(directory.name)] = words[place + 1 :]
    if not servers:
        raise _NotAsked("no rest-server is running")
    if len(servers) > 1:
        raise _NotAsked(f"several servers run (processes {', '.join(map(str, sorted(servers)))}): give the address")
    [(pid, flags)] = servers.items()
    try:
        variables = (proc / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError as error:
        raise _NotAsked(f"cannot read the environment of process {pid}: {error.strerror}; run as its user") from None
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    for variable in variables:
        name, _, value = os.fsdecode(variable).partition("=")
        if name.startswith(PREFIX):
            os.environ[name] = value
    return flags


# --- the request


def _answer(question: _Question, timeout_s: float) -> tuple[int, str]:
    """
    Ask.

    @param timeout_s: for everything together.
    @return: status, and the first line of the text.
    @raise OSError: the server does not respond.
    @raise HTTPException: what responds does not speak HTTP.
    """
    until_s = time.monotonic() + timeout_s

    def left_s() -> float:
        if (left := until_s - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    with _connected(question.place, left_s) as plain:
        if question.place.proxied:
            plain.sendall(_PROXY_HEADER)
        with _with_tls(plain, question) as connection:
            host = question.place.hosts[0] if question.place.hosts else "localhost"
            host = f"[{host}]" if ":" in host else host
            connection.sendall(f"GET {question.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            received = b""
            while len(received) < _MOST_BYTES:
                connection.settimeout(left_s())
                try:
                    more = connection.recv(_MOST_BYTES)
                except ssl.SSLEOFError:
                    break
                if not more:
                    break
                received += more
    if not received:
        raise ConnectionResetError("the server closed the connection without an answer")
    response = HTTPResponse(_Received(received))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read(_MOST_BYTES).decode("utf-8", "replace").partition("\n")[0] or response.reason


class _Received:
    """What C{HTTPResponse} wants of a socket, with the bytes that came."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        """See C{socket.makefile}."""
        return io.BytesIO(self._content)


def _connected(place: Place, left_s: Callable[[], float]) -> socket.socket:
    """
    Connect, to the first host that accepts.

    @raise OSError: none does.
    """
    if place.path:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(left_s())
            connection.connect(place.path)
        except BaseException:
            connection.close()
            raise
        return connection
    problem: OSError | None = None
    for host in place.hosts:
        try:
            return socket.create_connection((host, place.port), left_s())
        except OSError as error:
            # The reason of the first one: the second is IPv6, which the machine may not have.
            problem = problem or error
    assert problem is not None
    raise problem


def _with_tls(plain: socket.socket, question: _Question) -> socket.socket:
    """Put TLS on a connection, if the server wants it."""
    if not question.place.tls:
        return plain
    try:
        context = ssl.create_default_context(cafile=question.cafile)
    except OSError as error:
        raise ValueError(f"{question.cafile}: {error.strerror or 'not a certificate in PEM form'}") from None
    if not question.verified:
        # A connection to this machine, which carries no secret; the certificate has the name that clients use.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain, server_hostname=question.place.hosts[0] if question.place.hosts else None)


def _reason(error: Exception, place: Place) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {error.verify_message}; give --cacert"
    if isinstance(error, ssl.SSLError):
        return "the server does not speak TLS there, or not with this client"
    if isinstance(error, HTTPException):
        return "what answers does not speak HTTP; does the server have --tls?"
    if isinstance(error, ConnectionResetError) and not place.tls:
        return "the server closed the connection; does it have --tls?"
    return getattr(error, "strerror", None) or str(error)
