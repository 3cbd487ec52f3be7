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
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure

from . import allocator
from .access.htpasswd import Htpasswd
from .access.policy import Decides, Policy
from .access.policyfile import PolicyFile
from .access.proxies import TrustedProxies
from .access.throttle import Throttle
from .errors import StartError
from .listen import Listeners
from .options import Options as Options  # twistd looks for it here
from .pools import JobPool
from .settings import Settings
from .storage.local import LocalStore
from .telemetry.accesslog import AccessLog, CombinedLogService
from .web.site import RepositorySite

if TYPE_CHECKING:
    from .tls import ReloadingCertificates
    from .web.authentication import Authentication

#: Jobs on the disk at once; most of them wait for it.
DISK_THREADS = 16
#: Uploads that are hashed and written at once. Each is a core's full work: with more of them than cores the reactor waits
#: longer for the interpreter's lock, and the whole is slower by a tenth.
WRITER_THREADS = max(2, os.cpu_count() or 1)
#: Password checks at once; each is a core's full work, and stands back for transfers: a flood of them gets half the cores
#: at most, and of those only what transfers leave.
PASSWORD_THREADS = max(1, (os.cpu_count() or 1) // 2)
PASSWORD_NICE = 19
#: How often the files of users and rules, and of certificates, are looked at.
RULES_INTERVAL_S = 10.0
CERTIFICATES_INTERVAL_S = 2.0

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
            max_depth=settings.max_depth,
        )
        self.disk = JobPool(reactor, "disk", DISK_THREADS)
        self.writers = JobPool(reactor, "writers", WRITER_THREADS)
        self.passwords = JobPool(reactor, "passwords", PASSWORD_THREADS, PASSWORD_NICE)
        self.htpasswd = self._users()
        flags = Policy(settings.append_only, settings.private_repos, settings.read_only)
        self.policy_file = self._policy_file(flags)
        self.policy: Decides = self.policy_file or flags
        self.certificates = self._certificates()
        self.proxies = TrustedProxies.parse(settings.trusted_proxies or ())
        access_log = AccessLog()
        log_file = CombinedLogService(settings.log, access_log, self.disk.run) if settings.log else None
        self.log_file = log_file
        if settings.debug:
            access_log.add(_debug_line)
        self.listeners = Listeners(
            reactor,
            settings.listen,
            lambda: self._site(access_log),
            self.certificates.creator if self.certificates is not None else None,
            settings.shutdown_timeout_s,
        )
        rules = FileWatch("rules watch", reactor, RULES_INTERVAL_S, self.reload_rules)
        certificates = FileWatch("certificates watch", reactor, CERTIFICATES_INTERVAL_S, self.reload_certificates)
        for child in (log_file, self.disk, self.writers, self.passwords, rules, certificates, self.listeners):
            if child is not None:
                child.setServiceParent(self)
        self._profile = cProfile.Profile() if settings.cpu_profile else None
        if settings.cpu_profile and not os.access(os.path.dirname(settings.cpu_profile), os.W_OK | os.X_OK):
            raise StartError(f"cannot write the profile {settings.cpu_profile}")

    def _users(self) -> Htpasswd | None:
        if not self.settings.passwords:
            return None
        htpasswd = Htpasswd(self.settings.htpasswd_path, self._reactor.seconds)
        htpasswd.load()
        return htpasswd

    def _policy_file(self, flags: Policy) -> PolicyFile | None:
        if self.settings.policy is None:
            return None
        policy_file = PolicyFile(self.settings.policy, flags)
        policy_file.load()
        return policy_file

    def _certificates(self) -> ReloadingCertificates | None:
        if not self.settings.tls:
            return None
        from .tls import ReloadingCertificates  # OpenSSL takes its time to import

        settings = self.settings
        return ReloadingCertificates(
            settings.certificate_path,
            settings.key_path,
            settings.tls_min_ver,
            settings.tls_client_ca,
            settings.tls_client_required,
        )

    def _site(self, access_log: AccessLog) -> RepositorySite:
        """The HTTP server factory with everything behind it."""
        from .web.api import Api  # Klein installs the reactor when it is imported

        api = Api(self.store, self.disk, self.writers, self._door(), self.policy, self.settings.auto_create)
        settings = self.settings
        return RepositorySite(
            api.resource(), self._reactor, access_log, settings.max_depth, settings.proxy_prefix, self.proxies
        )

    def _door(self) -> Authentication:
        """Who says who a user is."""
        from .web.authentication import (
            CertificateAuthentication,
            NoAuthentication,
            PasswordAuthentication,
            ProxyAuthentication,
        )

        settings = self.settings
        if settings.no_auth:
            return NoAuthentication()
        passwords = None
        if self.htpasswd is not None:
            throttle = Throttle(settings.auth_failures, self._reactor.seconds)
            passwords = PasswordAuthentication(self.htpasswd, self.passwords, throttle, self._reactor)
        door: Authentication | None = passwords
        if settings.tls_client_ca is not None and settings.tls_client_user != "none":
            door = CertificateAuthentication(settings.tls_client_user, passwords)
        if settings.proxy_auth_username is not None:
            door = ProxyAuthentication(settings.proxy_auth_username, passwords, door)
        assert door is not None
        return door

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
        elif settings.proxy_auth_username:
            _log.info("Proxy Authentication enabled.")
            trusted = self.proxies.describe()
            header = settings.proxy_auth_username
            _log.info("The header {header} is believed from {trusted}", header=header, trusted=trusted)
        else:
            _log.info("Authentication enabled")
        if settings.tls_client_ca:
            _log.info("Clients are asked for certificates of {path}", path=settings.tls_client_ca)
        if self.htpasswd is not None:
            _log.info("Loaded htpasswd file {path}", path=settings.htpasswd_path)
        if settings.policy:
            _log.info("Loaded policy {path}", path=settings.policy)
        if settings.read_only:
            _log.info("Read only mode enabled")
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
        """SIGHUP: read users, rules and certificates again, open the access log by its name again."""
        self.reload_rules(True)
        self.reload_certificates(True)
        if self.log_file is not None:
            self.log_file.reopen()

    def reload_rules(self, force: bool = False) -> Deferred[None]:
        """Read the htpasswd and the policy file again if they changed, or in any case."""

        def read() -> None:
            for file in (self.htpasswd, self.policy_file):
                if file is not None:
                    file.reload_if_changed(force)

        return self.disk.run(read).addErrback(_log_failure)

    def reload_certificates(self, force: bool = False) -> Deferred[None]:
        """Read certificate, key and authorities again if they changed, or in any case."""

        def read() -> None:
            if self.certificates is not None:
                self.certificates.reload_if_changed(force)

        return self.disk.run(read).addErrback(_log_failure)

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


class FileWatch(Service):
    """
    Has files looked at every few seconds, so that a change holds without a signal.

    @param look: a look, which does not fail; the next comes when it has ended.
    """

    def __init__(self, name: str, reactor: Any, interval_s: float, look: Callable[[], Deferred[None]]) -> None:
        self._call = LoopingCall(look)
        self._call.clock = reactor
        self._interval_s = interval_s
        self.setName(name)

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._call.start(self._interval_s, now=False)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        self._call.stop()


def _log_failure(failure: Failure) -> None:
    _log.failure("could not read a file again", failure)


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
