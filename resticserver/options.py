"""
The flags of both front doors, in the forms that Go's flags take: C{--flag value}, C{--flag=value}, C{--switch=true|false}.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from twisted.python import usage

from . import __version__
from .settings import DEFAULT_LISTEN, Settings, default_path

_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")


class Options(usage.Options):
    """
    Flags to settings.

    A bad flag ends the program with one line on stderr and status 1, also under twistd, which else would print its whole
    help to stdout.
    """

    synopsis = "[options]"
    longdesc = (
        "Serves restic repositories below a directory over HTTP. https://restic.readthedocs.io/ says how to use them."
    )

    optFlags = [
        ["no-auth", None, "disable authentication"],
        ["private-repos", None, "users can only access the repositories below the folder of their name"],
        ["append-only", None, "nothing can be removed but locks"],
        ["no-verify-upload", None, "do not verify the hash of uploads (it is on a name conflict). Not recommended"],
        ["group-accessible-repos", None, "let the group access repositories (files 0660, directories 0770)"],
        ["tls", None, "serve TLS"],
        ["debug", None, "log debug messages"],
    ]

    optParameters = [
        ["path", None, None, f"data directory (default {default_path()})"],
        ["htpasswd-file", None, None, "htpasswd file with the users (default .htpasswd in the data directory)"],
        ["tls-cert", None, None, "TLS certificate chain, PEM (default public_key in the data directory)"],
        ["tls-key", None, None, "TLS private key, PEM (default private_key in the data directory)"],
        ["tls-min-ver", None, "1.2", "lowest TLS version, 1.2 or 1.3"],
        ["log", None, None, "write an access log in combined format to this file (- for stdout)"],
        ["cpu-profile", None, None, "write a profile of the reactor's thread to this file"],
        ["shutdown-timeout", None, "30", "seconds that transfers may take to finish when the server stops"],
    ]

    compData = usage.Completions(
        optActions={
            "path": usage.CompleteDirs(),
            "htpasswd-file": usage.CompleteFiles(),
            "tls-cert": usage.CompleteFiles(),
            "tls-key": usage.CompleteFiles(),
            "tls-min-ver": usage.CompleteList(["1.2", "1.3"]),
            "log": usage.CompleteFiles(),
            "cpu-profile": usage.CompleteFiles(),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, address: str) -> None:
        """
        listen address: host:port, :port, [ipv6]:port, unix:/path or a Twisted endpoint string; may be given again and
        again (default :8000)
        """
        self["listen"].append(address)

    def opt_version(self) -> None:
        """print the version and exit"""
        print(version_line())
        sys.exit(0)

    opt_v = opt_version
    opt_h = usage.Options.opt_help

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse an argument list.

        @raise SystemExit: with a line that says what is wrong.
        """
        try:
            arguments = list(sys.argv[1:] if options is None else options)
            super().parseOptions(self._in_getopt_form(arguments))
            self.settings = self._checked()
        except usage.UsageError as error:
            raise SystemExit(f"rest-server: {error}") from None

    def parseArgs(self, *rest: str) -> None:
        """Twisted's call with what is no flag."""
        if rest:
            raise usage.UsageError(f"unexpected argument: {rest[0]}")

    def _in_getopt_form(self, arguments: list[str]) -> list[str]:
        """
        Go's forms of switches, rewritten for getopt, which refuses C{--switch=value} and takes abbreviations.
        """
        switches = {flag[0] for flag in self.optFlags} | {"help", "version"}
        known = switches | {parameter[0] for parameter in self.optParameters} | {"listen"}
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
            if name in switches:
                switched[name] = _boolean(name, value) if equals else True
            else:
                rewritten += [argument] if equals else [argument, *_next_value(name, left)]
        return [f"--{name}" for name, on in switched.items() if on] + rewritten

    def _checked(self) -> Settings:
        """
        The flags as settings.

        @raise UsageError: flags that make no sense, alone or together.
        """
        if not self["tls"]:
            for flag in ("tls-cert", "tls-key"):
                if self[flag]:
                    raise usage.UsageError(f"--{flag} needs --tls")
        if self["tls-min-ver"] not in ("1.2", "1.3"):
            raise usage.UsageError(f"--tls-min-ver {self['tls-min-ver']}: unknown TLS version, 1.2 and 1.3 are allowed")
        if self["no-auth"] and self["private-repos"]:
            raise usage.UsageError("--private-repos needs users and cannot go with --no-auth")
        return Settings(
            path=os.path.abspath(self["path"] or default_path()),
            path_is_default=not self["path"],
            listen=tuple(self["listen"]) or (DEFAULT_LISTEN,),
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
            log=self["log"] if self["log"] == "-" else _absolute(self["log"]),
            debug=bool(self["debug"]),
            cpu_profile=_absolute(self["cpu-profile"]),
            shutdown_timeout_s=_seconds(self["shutdown-timeout"]),
        )


def version_line() -> str:
    """This server's version and those that matter for a report."""
    import twisted
    from OpenSSL import SSL

    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")
    return (
        f"rest-server {__version__} (Python/Twisted), Python {platform.python_version()}, "
        f"Twisted {twisted.__version__}, {openssl}"
    )


def _boolean(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise usage.UsageError(f"--{name}={value}: only true and false are allowed")


def _next_value(name: str, left: Any) -> list[str]:
    for value in left:
        return [value]
    raise usage.UsageError(f"flag needs an argument: --{name}")


def _absolute(path: str | None) -> str | None:
    """Flags name files from where the user stands; twistd may change the directory later."""
    return os.path.abspath(path) if path else None


def _seconds(text: str) -> float:
    number = text.removesuffix("s")
    if not number.replace(".", "", 1).isdecimal():
        raise usage.UsageError(f"--shutdown-timeout {text}: a number of seconds is needed")
    return float(number)
