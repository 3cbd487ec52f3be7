"""
Sockets that listen: opened at an address, or inherited from systemd; and how their addresses are written.

Sockets are opened here and handed to the reactor, so that a port is never anything but what was asked for: Twisted's own unix
ports make their socket writable to everyone and remove sockets that are not theirs.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import sys
from collections.abc import MutableMapping
from typing import Any

from twisted.internet.interfaces import IListeningPort

from ..access.proxies import UNIX, plain_address
from ..errors import StartError

UNIX_MODE = 0o660
#: How many bytes the kernel accepts for a unix socket's path.
_LONGEST_UNIX = 107 if sys.platform == "linux" else 103
#: Connections that may wait to be accepted, as far as the kernel lets them (net.core.somaxconn). With a short queue a flood of
#: connections fills it, and the kernel drops the SYNs of others: they connect a second later, or three, or seven.
BACKLOG = 4096

#: The first descriptor of systemd's socket activation (sd_listen_fds(3)).
_FIRST_INHERITED = 3


def tcp_socket(host: str, port: int) -> socket.socket:
    """
    A listening TCP socket; without a host on both IP families, or on IPv4 alone where there is no IPv6. C{::} means both
    families too, as in Go.

    @raise StartError: the address is not available.
    """
    address = _ipv6(host)
    try:
        if address is not None and address == ipaddress.IPv6Address("::"):
            return _bound(socket.AF_INET6, ("::", port), dual=True)
        if address is not None and address.ipv4_mapped is not None:
            host = str(address.ipv4_mapped)
        if not host:
            try:
                return _bound(socket.AF_INET6, ("::", port), dual=True)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                return _bound(socket.AF_INET, ("0.0.0.0", port))
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return _bound(found[0][0], found[0][4])
    except UnicodeError as error:
        raise StartError(f"cannot listen on {joined_address(host, port)}: host not found") from error
    except OSError as error:
        raise StartError(f"cannot listen on {joined_address(host, port)}: {error.strerror}") from error


def _ipv6(host: str) -> ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(host)
    except ValueError:
        return None


def _bound(family: int, address: Any, dual: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def unix_socket(path: str, mode: int = UNIX_MODE) -> socket.socket:
    """
    A listening unix socket; one that a killed server has left is replaced.

    @raise StartError: another server answers there, the file is no socket, or the socket cannot be made.
    """
    name = short_path(path)
    try:
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(name)
            # Before listen(2): no client can connect while the mode is the umask's.
            os.chmod(path, mode)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise StartError(f"cannot listen on unix:{path}: {error.strerror or error}") from error


def short_path(path: str) -> str:
    """
    A path that the kernel accepts for a unix socket: as it is, or relative to the current directory, as it may have been given.

    @raise StartError: it is too long for that.
    """
    for name in (path, os.path.relpath(path)):
        if len(os.fsencode(name)) <= _LONGEST_UNIX:
            return name
    length = len(os.fsencode(path))
    reason = f"the path has {length} bytes, and the limit for a Unix socket is {_LONGEST_UNIX}"
    raise StartError(f"cannot listen on unix:{path}: {reason}")


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"cannot listen on unix:{path}: the file exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(short_path(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so a server listens
    raise StartError(f"cannot listen on unix:{path}: another server is listening there")


def process_environment() -> dict[str, str]:
    """
    The environment that the process was started with. Removes systemd's variables from C{os.environ}, so that no child
    process uses them.

    Twisted's endpoints module removes LISTEN_PID and LISTEN_FDS from C{os.environ} when it is imported, and ignores the
    sockets if LISTEN_FDNAMES is missing. So the kernel's copy is read where there is one.
    """
    environment = dict(os.environ)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (pair.partition(b"=") for pair in file.read().split(b"\0"))
            environment |= {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    except OSError:
        pass
    return environment


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """
    The sockets that systemd passed (sd_listen_fds(3)), each with the family that its descriptor has.

    The variables are removed, so that no child process uses them.
    """
    if environ.pop("LISTEN_PID", None) != str(pid):
        return []
    environ.pop("LISTEN_FDNAMES", None)
    count = environ.pop("LISTEN_FDS", "0")
    if not count.isdecimal():
        raise StartError(f"LISTEN_FDS={count} is not a number of sockets")
    sockets = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError as error:
            raise StartError(f"cannot use the inherited descriptor {fd}: {error.strerror}") from error
    return sockets


def joined_address(host: str, port: int) -> str:
    """Host and port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(port: IListeningPort) -> str:
    """Where a port listens, as rest-server prints it: C{[::]:8000}, C{127.0.0.1:8000} or a socket's path."""
    address: Any = port.getHost()
    name = getattr(address, "name", None)
    if name is not None:
        return unix_address(name)
    return joined_address(address.host, address.port)


def unix_address(name: str | bytes) -> str:
    """A unix socket's name as an absolute path."""
    path = os.fsdecode(name)
    return path if not path or path.startswith(("\0", "/")) else os.path.abspath(path)


def peer_address(connection: socket.socket) -> str | None:
    """
    The address of a connection's other end, IPv4 in its own form.

    @return: C{-} for a unix socket; C{None} if the client is gone already.
    """
    if connection.family == socket.AF_UNIX:
        return UNIX
    try:
        return plain_address(connection.getpeername()[0])
    except OSError:
        return None
