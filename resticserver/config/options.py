"""
The flags of the C{rest-server} command and of the twistd plugin, in the syntax of Go's flags: C{--flag value},
C{--flag=value}, C{--switch=true|false}.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.python import usage

from .. import __version__
from ..access.proxies import TrustedProxies
from ..access.throttle import parse_rate
from ..dates import parse_duration
from ..errors import StartError
from ..files import runnable
from ..names import MOST_FOLDERS
from ..objects.location import is_location, parse_location
from ..process.cores import default_workers, usable_cores
from ..process.utf8 import as_text, use_utf8
from ..sizes import parse_bandwidth, parse_bytes_per_second, parse_free_space, parse_size
from ..targets import parse_prefix
from . import sources
from .console import write_line
from .flags import CHOICES, COMPLETIONS, DESCRIPTION, DIRECTORIES, FILES, PARAMETERS, SWITCHES
from .settings import DEFAULT_LISTEN, Settings, default_path
from .thresholds import read_thresholds

#: A larger number is taken for a typing error.
MOST_WORKERS = 128

#: Repeatable flags.
_LISTS = frozenset(("listen", "trusted-proxy"))

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
#: C{s3://bucket}, and restic's C{s3:https://host/bucket}.
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)+//")
#: The user and the password of a URL.
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]*:[^/@\s]*@")
_UNIX = re.compile(r"((?:haproxy:)*unix:)([^:/@][^:]*)")

#: Flags that cannot be used with an object store, and why.
_FILES_ONLY = {
    "min-free": "it has no file system whose free space is known",
    "group-accessible-repos": "its objects have no group",
}

_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")

_T = TypeVar("_T")


class Options(usage.Options):
    """
    Parses flags into settings.

    An invalid flag ends the program with one line on stderr and status 1. This is also so under twistd, which would
    otherwise print its whole help to stdout.
    """

    def getSynopsis(self) -> str:
        """The first line of the help; see C{usage.Options.getSynopsis}."""
        return "Usage: rest-server [options]" if self.parent is None else str(super().getSynopsis())

    longdesc = DESCRIPTION
    optFlags = SWITCHES
    optParameters = PARAMETERS
    compData = COMPLETIONS

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[str, str] = {}
        self["listen"] = []
        self["trusted-proxy"] = []

    def opt_listen(self, address: str) -> None:
        """listen address: host:port, :port, unix:/path or an endpoint string; repeatable (default :8000)"""
        self["listen"].append(address)

    def opt_trusted_proxy(self, network: str) -> None:
        """network of proxies whose X-Forwarded-For and user header are trusted; repeatable (default: loopback)"""
        self["trusted-proxy"].append(network)

    def opt_version(self) -> None:
        """print the version and exit"""
        sys.exit(0 if write_line(version_line()) else 1)

    def opt_help(self) -> None:
        """print this help and exit"""
        sys.exit(0 if write_line(str(self)) else 1)

    opt_v = opt_version
    opt_h = opt_help

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse an argument list.

        @raise SystemExit: an argument is invalid; the exit message says which one and why.
        """
        try:
            use_utf8()
            arguments = list(sys.argv[1:] if options is None else options)
            super().parseOptions(self._with_others(self._in_getopt_form(arguments)))
            self.settings = self._checked()
        except StartError as error:
            raise SystemExit(f"rest-server: {error}") from None
        except usage.UsageError as error:
            raise SystemExit(f"rest-server: {self.where_it_stands(str(error))}") from None

    def parseArgs(self, *rest: str) -> None:
        """Reject arguments that are not flags; see C{usage.Options.parseArgs}."""
        if rest:
            raise usage.UsageError(f"unexpected argument: {rest[0]}")

    def _in_getopt_form(self, arguments: list[str]) -> list[str]:
        """Rewrite Go's switch syntax for getopt, which rejects C{--switch=value} and accepts abbreviations."""
        flags = self._flags()
        switches = flags.switches | {"help", "version"}
        known = switches | flags.all | {"config"}
        rewritten: list[str] = []
        switched: dict[str, bool] = {}
        left = iter(arguments)
        for argument in left:
            if argument == "--":
                rewritten += [argument, *left]
                break
            if not argument.startswith("--"):
                rewritten += [argument]
                continue
            name, equals, value = argument[2:].partition("=")
            if name not in known:
                raise usage.UsageError(f"unknown flag: --{name}")
            self._sources[name] = f"--{name}"
            if name in switches:
                switched[name] = _boolean(f"--{name}", value) if equals else True
            else:
                rewritten += [argument] if equals else [argument, *_next_value(name, left)]
        return [f"--{name}" for name, on in switched.items() if on] + rewritten

    def _flags(self) -> sources.FlagNames:
        """The flags that can also be set in the environment and the file."""
        others = frozenset(str(parameter[0]) for parameter in self.optParameters) - {"config"}
        return sources.FlagNames(frozenset(str(flag[0]) for flag in self.optFlags), _LISTS, others)

    def _with_others(self, arguments: list[str]) -> list[str]:
        """
        Return the command line, preceded by the flags from the environment and the file that it does not contain.

        @raise UsageError: a value in the environment or the file is invalid.
        """
        if {"help", "version"} & self._sources.keys() or {"-h", "-v"} & set(arguments):
            return arguments
        flags = self._flags()
        try:
            layers = [sources.from_environment(os.environ, flags, self._refuse)]
            if (path := self._config_file(arguments)) is not None:
                layers.append(sources.from_file(path, flags, self._refuse))
        except OSError as error:
            raise usage.UsageError(f"--config: cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise usage.UsageError(str(error)) from None
        more: list[str] = []
        for layer in layers:
            for flag, (values, source) in layer.items():
                if flag in self._sources:
                    continue
                self._sources[flag] = source
                if flag not in flags.switches:
                    more += [f"--{flag}={value}" for value in values]
                elif self._is_on(source, values[0]):
                    more.append(f"--{flag}")
        return more + arguments

    def _refuse(self, problem: str) -> None:
        """Called for each unusable variable, and each unusable key of the file."""
        sources.stop(problem)

    def _is_on(self, source: str, value: str) -> bool:
        """The value of a switch from the environment or the file."""
        return _boolean(source, value)

    def _config_file(self, arguments: list[str]) -> str | None:
        """
        The path of the file with more flags, or C{None}.

        @raise UsageError: the path is empty.
        """
        path = os.environ.get(sources.variable("config"))
        if path is not None and "config" not in self._sources:
            self._sources["config"] = sources.variable("config")
        for position, argument in enumerate(arguments):
            if argument == "--config":
                path = arguments[position + 1]
            elif argument.startswith("--config="):
                path = argument.partition("=")[2]
        if path == "":
            raise usage.UsageError("--config must not be empty")
        return path

    def where_it_stands(self, message: str) -> str:
        """
        If a message begins with a flag, replace the flag by the place where it was set: a flag, an environment
        variable, or a file and its key.
        """
        flag = re.match(r"--([a-z-]+)", message)
        source = self._sources.get(flag[1]) if flag is not None else None
        return message if flag is None or source is None else source + message[flag.end() :]

    def _default(self, flag: str) -> Any:
        return next(parameter[2] for parameter in self.optParameters if parameter[0] == flag)

    def _one_of(self, flag: str, reason: str) -> None:
        if self[flag] not in CHOICES[flag]:
            raise usage.UsageError(f"--{flag} {self[flag]}: {reason}")

    def _parsed(self, flag: str, parse: Callable[[Any], _T]) -> _T:
        try:
            return parse(self[flag])
        except ValueError as error:
            raise usage.UsageError(f"--{flag} {error}") from None

    def _checked(self) -> Settings:
        """
        Check the flags and convert them to settings.

        @raise UsageError: a flag is invalid, alone or combined with others.
        """
        self._check_paths()
        self._check_tls()
        self._check_values()
        return self._as_settings()

    def _check_paths(self) -> None:
        objects = bool(self["path"]) and is_location(self["path"])
        if objects:
            try:
                parse_location(self["path"])
            except StartError as error:
                raise usage.UsageError(str(error)) from None
        self._check_objects(objects)
        for flag in DIRECTORIES + FILES:
            if flag == "path" and objects:
                continue
            if self[flag] and _URL.match(self[flag]):
                kind = "directory" if flag in DIRECTORIES else "file"
                raise usage.UsageError(f"--{flag} {without_password(self[flag])}: must be a local {kind}, not a URL")
        for flag in DIRECTORIES:
            if self[flag] == "":
                raise usage.UsageError(f"--{flag} must not be empty")
        for flag in ("policy", "tls-client-ca"):
            if self[flag] == "":
                raise usage.UsageError(f"--{flag} must not be empty")

    def _check_objects(self, objects: bool) -> None:
        """What an object store needs, and what only files have."""
        if not objects:
            if self["spool-dir"]:
                raise usage.UsageError("--spool-dir needs a --path that names an object store, such as s3://bucket")
            return
        if not self["state-dir"]:
            raise usage.UsageError(
                "--path: an object store needs --state-dir, a local directory for what this server remembers"
            )
        if self["objects-unconditional"] and _workers(self["workers"]) > 1:
            raise usage.UsageError("--objects-unconditional needs --workers 1")
        for flag, why in _FILES_ONLY.items():
            if self[flag] != self._default_of(flag):
                raise usage.UsageError(f"--{flag} cannot be used with an object store: {why}")

    def _default_of(self, flag: str) -> Any:
        return 0 if flag in self._flags().switches else self._default(flag)

    def _check_tls(self) -> None:
        if not self["tls"]:
            for flag in ("tls-cert", "tls-key", "tls-client-ca"):
                if self[flag]:
                    raise usage.UsageError(f"--{flag} needs --tls")
        if not self["tls-client-ca"]:
            for flag in ("tls-client-auth", "tls-client-user"):
                if self[flag] != self._default(flag):
                    raise usage.UsageError(f"--{flag} needs --tls-client-ca")
        self._one_of("tls-min-ver", "unknown TLS version, 1.2 and 1.3 are allowed")
        self._one_of("tls-client-auth", "only required and optional are allowed")
        self._one_of("tls-client-user", "only cn, email, dns and none are allowed")

    def _check_values(self) -> None:
        self._one_of("log-format", "only combined and json are allowed")
        if self["no-auth"]:
            for flag in ("private-repos", "policy", "proxy-auth-username", "tls-client-ca"):
                if self[flag]:
                    raise usage.UsageError(f"--{flag} cannot be combined with --no-auth, because it needs users")
        if self["log-format"] != self._default("log-format") and not self["log"]:
            raise usage.UsageError("--log-format needs --log")
        if self["metrics-listen"] == "":
            raise usage.UsageError("--metrics-listen: must be an address, such as 127.0.0.1:9100")
        header = self["proxy-auth-username"]
        if header is not None and not _HEADER.match(header):
            raise usage.UsageError(f"--proxy-auth-username {header}: not a header name")
        self._parsed("trusted-proxy", TrustedProxies.parse)
        if not re.fullmatch("[0-9]{1,2}", self["max-depth"]) or int(self["max-depth"]) > MOST_FOLDERS:
            raise usage.UsageError(f"--max-depth {self['max-depth']}: must be a number from 0 to {MOST_FOLDERS}")
        workers = _workers(self["workers"])
        if 0 < self._parsed("max-uploads", _number) < workers:
            raise usage.UsageError(f"--max-uploads {self['max-uploads']}: must be at least {workers}, one per worker")

    def _bandwidth(self, flag: str) -> int:
        """The limit of one direction: its own flag's, or that of both."""
        both = self._parsed("bandwidth", _bandwidth)
        return both if self[flag] is None else self._parsed(flag, _bandwidth)

    def _as_settings(self) -> Settings:
        """Convert each flag to its setting. Long only because there are many flags."""
        min_free = self._parsed("min-free", parse_free_space)
        return Settings(
            path=_place(self["path"]) or os.path.abspath(default_path()),
            path_is_default=not self["path"],
            listen=tuple(map(_absolute_socket, self["listen"])) or (DEFAULT_LISTEN,),
            no_auth=bool(self["no-auth"]),
            htpasswd_file=_absolute(self["htpasswd-file"]),
            private_repos=bool(self["private-repos"]),
            append_only=bool(self["append-only"]),
            no_verify_upload=bool(self["no-verify-upload"]),
            group_accessible_repos=bool(self["group-accessible-repos"]),
            tls=bool(self["tls"]),
            tls_cert=_absolute(self["tls-cert"]),
            tls_key=_absolute(self["tls-key"]),
            tls_min_ver=self["tls-min-ver"],
            read_only=bool(self["read-only"]),
            policy=_absolute(self["policy"]),
            auto_create=bool(self["auto-create"]),
            max_depth=int(self["max-depth"]),
            proxy_prefix=self._parsed("proxy-prefix", _prefix),
            proxy_auth_username=self["proxy-auth-username"],
            trusted_proxies=tuple(self["trusted-proxy"]) or None,
            auth_failures=self._parsed("auth-failures", parse_rate),
            tls_client_ca=_absolute(self["tls-client-ca"]),
            tls_client_required=self["tls-client-auth"] == "required",
            tls_client_user=self["tls-client-user"],
            max_size_bytes=self._parsed("max-size", parse_size),
            min_free_bytes=min_free.size_bytes,
            min_free_percent=min_free.percent,
            delete_delay_s=self._parsed("delete-delay", parse_duration),
            state_dir=_absolute(self["state-dir"]),
            scrub_interval_s=self._parsed("scrub-interval", parse_duration),
            scrub_rate_bytes=self._parsed("scrub-rate", parse_bytes_per_second),
            spool_dir=_absolute(self["spool-dir"]),
            spool_size_bytes=self._parsed("spool-size", parse_size),
            objects_unconditional=bool(self["objects-unconditional"]),
            prometheus=bool(self["prometheus"]),
            prometheus_no_auth=bool(self["prometheus-no-auth"]),
            metrics_listen=_absolute_socket(self["metrics-listen"]) if self["metrics-listen"] else None,
            on_event=self._parsed("on-event", _command) if self["on-event"] is not None else (),
            log=self["log"] if self["log"] == "-" else _absolute(self["log"]),
            log_format=self["log-format"],
            debug=bool(self["debug"]),
            header_timeout_s=self._parsed("header-timeout", _timeout),
            stall_timeout_s=self._parsed("stall-timeout", _timeout),
            max_connections=self._parsed("max-connections", _number),
            max_connections_per_address=self._parsed("max-connections-per-address", _number),
            max_object_size_bytes=self._parsed("max-object-size", parse_size),
            max_uploads=self._parsed("max-uploads", _number),
            bandwidth_up=self._bandwidth("bandwidth-up"),
            bandwidth_down=self._bandwidth("bandwidth-down"),
            cpu_profile=_absolute(self["cpu-profile"]),
            workers=_workers(self["workers"]),
            shutdown_timeout_s=_seconds(self["shutdown-timeout"]),
            thresholds=read_thresholds(self._parsed),
        )


def without_password(text: str) -> str:
    """A text without the user and the password of a URL in it."""
    return _CREDENTIALS.sub("(hidden)@", text)


def version_line() -> str:
    """The versions of this server and of the software that matters for bug reports."""
    import twisted
    from OpenSSL import SSL

    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")
    return (
        f"rest-server {__version__} (Python/Twisted), Python {platform.python_version()}, "
        f"Twisted {twisted.__version__}, {openssl}"
    )


def _boolean(source: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise usage.UsageError(f"{source}={value}: only true and false are allowed")


def _next_value(name: str, left: Any) -> list[str]:
    for value in left:
        return [value]
    raise usage.UsageError(f"flag needs an argument: --{name}")


def _absolute(path: str | None) -> str | None:
    """Make a path absolute. Relative paths refer to the current directory, which twistd may change later."""
    return os.path.abspath(path) if path else None


def _place(path: str | None) -> str | None:
    """The data directory, made absolute; an object store in its usual form."""
    return str(parse_location(path)) if path and is_location(path) else _absolute(path)


def _absolute_socket(address: str) -> str:
    """The same for the unix sockets of C{--listen}."""
    return (
        _UNIX.sub(lambda found: found[1] + os.path.abspath(found[2]), address, count=1)
        if _UNIX.match(address)
        else address
    )


def _prefix(text: str) -> tuple[str, ...]:
    return parse_prefix(as_text(text)) if text else ()


def _command(text: str) -> tuple[str, ...]:
    """
    Split a command line as a shell would. No shell runs.

    @raise ValueError: it is empty or malformed, or the program does not exist.
    """
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"is no command line: {error}") from None
    # The arguments may be secrets.
    if not command or not runnable(command):
        raise ValueError(f"{command[0] if command else text!r}: no such program, or it is not executable")
    return (os.path.abspath(command[0]) if os.sep in command[0] else command[0], *command[1:])


def _workers(text: str) -> int:
    if text == "auto":
        return min(default_workers(usable_cores()), MOST_WORKERS)
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_WORKERS:
        raise usage.UsageError(f"--workers {text}: must be a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{text}: must be a number, or 0 for no limit")
    return int(text)


def _timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 1:
        raise ValueError(f"{text}: must be at least 1s")
    return seconds


def _bandwidth(text: str) -> int:
    return 0 if text.strip() == "0" else parse_bandwidth(text)


def _seconds(text: str) -> float:
    number = text.removesuffix("s")
    if not number.replace(".", "", 1).isdecimal():
        raise usage.UsageError(f"--shutdown-timeout {text}: must be a number of seconds")
    return float(number)
