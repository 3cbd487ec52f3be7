"""
The composition root: from settings to a tree of services.

C{makeService} opens nothing, since twistd forks after it; what can be checked without opening is checked there, so that the
person at the terminal is told. The tree starts in order (access log, pools, listeners) and stops in the other, one service
after the other: listeners and their transfers, pools, access log.
"""

from __future__ import annotations

import cProfile
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, Logger

from . import allocator
from .access.htpasswd import Htpasswd
from .access.policy import Policy
from .errors import StartError
from .listen import Listeners
from .options import Options as Options  # twistd looks for it here
from .pools import JobPool
from .settings import Settings
from .storage.local import LocalStore
from .telemetry.accesslog import AccessLog, CombinedLogService
from .web.site import RepositorySite

#: Jobs on the disk at once; most of them wait for it.
DISK_THREADS = 16
#: Uploads that are hashed and written at once. Each is a core's full work: with more of them than cores the reactor waits
#: longer for the interpreter's lock, and the whole is slower by a tenth.
WRITER_THREADS = max(2, os.cpu_count() or 1)
#: Password checks at once; each is a core's full work.
PASSWORD_THREADS = 2
#: How often the htpasswd file is looked at.
HTPASSWD_INTERVAL_S = 10.0

_log = Logger()


def makeService(options: Options) -> IService:
    """twistd's call: the whole server as one service."""
    from twisted.internet import reactor

    try:
        return ResticServer(options.settings, reactor)
    except StartError as error:
        raise SystemExit(f"rest-server: {error}") from None


class ResticServer(MultiService):
    """
    One server.

    @param reactor: the real one: this module and C{cli} are the only ones to see it.
    @raise StartError: a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        self.store = LocalStore(
            settings.path,
            verify=not settings.no_verify_upload,
            group_accessible=settings.group_accessible_repos,
        )
        self.disk = JobPool(reactor, "disk", DISK_THREADS)
        self.writers = JobPool(reactor, "writers", WRITER_THREADS)
        self.passwords = JobPool(reactor, "passwords", PASSWORD_THREADS)
        self.htpasswd = self._users()
        access_log = AccessLog()
        log_file = CombinedLogService(settings.log, access_log, self.disk.run) if settings.log else None
        self.log_file = log_file
        if settings.debug:
            access_log.add(_debug_line)
        self.listeners = Listeners(
            reactor,
            settings.listen,
            lambda: self._site(access_log),
            self._connection_creator(),
            settings.shutdown_timeout_s,
        )
        watch = HtpasswdWatch(reactor, self.reload_users) if self.htpasswd is not None else None
        for child in (log_file, self.disk, self.writers, self.passwords, watch, self.listeners):
            if child is not None:
                child.setServiceParent(self)
        self._profile = cProfile.Profile() if settings.cpu_profile else None

    def _users(self) -> Htpasswd | None:
        if self.settings.no_auth:
            return None
        htpasswd = Htpasswd(self.settings.htpasswd_path, self._reactor.seconds)
        htpasswd.load()
        return htpasswd

    def _connection_creator(self) -> Any:
        if not self.settings.tls:
            return None
        from .tls import ConnectionCreator, server_context  # OpenSSL takes its time to import

        settings = self.settings
        return ConnectionCreator(server_context(settings.certificate_path, settings.key_path, settings.tls_min_ver))

    def _site(self, access_log: AccessLog) -> RepositorySite:
        """The HTTP server factory with everything behind it."""
        from .web.api import Api  # Klein installs the reactor when it is imported
        from .web.authentication import NoAuthentication, PasswordAuthentication

        policy = Policy(append_only=self.settings.append_only, private_repos=self.settings.private_repos)
        door = NoAuthentication() if self.htpasswd is None else PasswordAuthentication(self.htpasswd, self.passwords)
        api = Api(self.store, self.disk, self.writers, door, policy)
        return RepositorySite(api.resource(), self._reactor, access_log, self.store.max_depth)

    def startService(self) -> None:
        """
        Twisted's call: open everything.

        @raise StartError: something cannot be opened. Under twistd this ends the process with one line on stderr.
        """
        allocator.keep_large_blocks()
        # Before anyone is told that the server is there: the signal's default ends the process.
        self._on_signal(signal.SIGHUP, self.reload)
        try:
            self._announce()
            self.store.prepare()
            super().startService()
        except (StartError, OSError) as error:
            line = str(error) if isinstance(error, StartError) else f"cannot open {error.filename}: {error.strerror}"
            _log.error("{line}", line=line)
            # twistd lets the exception through to the interpreter, which would print a traceback (and has put its log
            # where sys.stderr was).
            sys.excepthook = lambda *_: print(f"rest-server: {line}", file=sys.__stderr__)
            raise StartError(line) from None
        if self._profile is not None:
            self._profile.enable()

    def _announce(self) -> None:
        """Say what is on and what is off, in rest-server's words: people and scripts look for them."""
        settings = self.settings
        if settings.path_is_default:
            _log.warn(
                "WARNING: no --path given, so backups go to {path}, which the system may empty at any time",
                path=settings.path,
            )
        _log.info("Data directory: {path}", path=settings.path)
        if settings.no_auth:
            _log.info("Authentication disabled")
        else:
            _log.info("Authentication enabled")
            _log.info("Loaded htpasswd file {path}", path=settings.htpasswd_path)
        for what, on in (
            ("Append only mode", settings.append_only),
            ("Private repositories", settings.private_repos),
            ("Group accessible repos", settings.group_accessible_repos),
        ):
            _log.info("{what} {state}", what=what, state="enabled" if on else "disabled")
        if settings.tls:
            _log.info(
                "TLS enabled, private key {key}, pubkey {certificate}",
                key=settings.key_path,
                certificate=settings.certificate_path,
            )

    def _on_signal(self, number: int, call: Callable[[], object]) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, lambda *_: self._reactor.callFromThread(call))

    def reload(self) -> None:
        """SIGHUP: read the users again, open the access log by its name again."""
        if self.htpasswd is not None:
            self.reload_users(True)
        if self.log_file is not None:
            self.log_file.reopen()

    def reload_users(self, force: bool = False) -> Deferred[bool]:
        """Read the htpasswd file again if it changed, or in any case."""
        assert self.htpasswd is not None
        return self.passwords.run(self.htpasswd.reload_if_changed, force)

    def stopService(self) -> Deferred[None]:
        """Twisted's call: stop the services one after the other, the last started first."""
        # A second signal means: now. (Twisted's own handler would log a traceback.)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._on_signal(number, self.listeners.abort)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        Service.stopService(self)
        for child in reversed(list(self)):
            stopping = child.stopService()
            if stopping is not None:
                await stopping
        if self._profile is not None and self.settings.cpu_profile is not None:
            self._profile.disable()
            self._profile.dump_stats(self.settings.cpu_profile)
        _log.info("shutdown cleanly")


class HtpasswdWatch(Service):
    """Looks at the htpasswd file every few seconds; the users change within 30 s of the file without a signal."""

    def __init__(self, reactor: Any, reload_users: Callable[[], Deferred[bool]]) -> None:
        self._call = LoopingCall(reload_users)
        self._call.clock = reactor
        self.setName("htpasswd watch")

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._call.start(HTPASSWD_INTERVAL_S, now=False)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        self._call.stop()


def _debug_line(event: LogEvent) -> None:
    """Under C{--debug}: a line for each request among the diagnostics."""
    record = event["record"]
    _log.debug(
        "{method} {uri} from {address}: {status} {ending}, {received} bytes in, {sent} bytes out, {ms:.1f} ms",
        method=ascii(record.method.decode("latin-1"))[1:-1],
        uri=ascii(record.uri.decode("latin-1"))[1:-1],
        address=record.address,
        status=record.status,
        ending=record.ending.value,
        received=record.received_bytes,
        sent=record.sent_bytes,
        ms=record.duration_s * 1000,
    )
