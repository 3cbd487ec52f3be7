"""
The C{rest-server} command: the drop-in daemon (in the foreground, logging to stderr, no pid file, exit status 0 after
SIGTERM) and its subcommands.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from twisted.logger import LogEvent, LogLevel, eventAsText, globalLogBeginner

from .config.options import Options
from .errors import StartError
from .process import allocator
from .process.start_signals import end_the_start, told_to_end
from .process.utf8 import use_utf8
from .threads.reactor import installed_reactor

#: The subcommands; each is a module of L{resticserver.commands} with a function C{main}.
COMMANDS = ("config", "user", "policy", "usage", "status", "health", "trash", "scrub", "objects")
#: Those whose output has names of files, or text made of them.
UTF8_COMMANDS = ("config", "usage", "status", "trash", "scrub", "objects")


def stderr_observer(debug: bool) -> Callable[[LogEvent], None]:
    """
    Return a log observer that writes each event to stderr as one line without a prefix: this package's messages, and
    warnings and errors of other packages.

    @param debug: include this package's debug messages.
    """
    lowest = LogLevel.debug if debug else LogLevel.info

    def observe(event: LogEvent) -> None:
        level = event.get("log_level") or LogLevel.info
        ours = str(event.get("log_namespace", "")).startswith("resticserver.")
        if level >= (lowest if ours else LogLevel.warn):
            text = eventAsText(event, includeTimestamp=False, includeSystem=False)
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    return observe


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the server, or the subcommand named by the first argument.

    @param arguments: the command line without the program's name.
    @return: the exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return _subcommand(arguments[0], arguments[1:])
    end_the_start()
    # If the start fails, this spares Python's final garbage collection most of its work: a tenth of the time of a
    # failed start.
    allocator.leave_out_what_stays()
    allocator.put_off_collections()
    options = Options()
    options.parseOptions(arguments)
    observer: Any = stderr_observer(options.settings.debug)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)

    from .tap import makeService

    service = makeService(options)
    try:
        service.startService()
    except StartError:
        allocator.leave_out_what_stays()
        return 0 if told_to_end() else 1  # the reason was logged
    reactor = installed_reactor()
    if told_to_end():
        reactor.callWhenRunning(reactor.stop)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    return 0


def _subcommand(name: str, arguments: Sequence[str]) -> int:
    if name in UTF8_COMMANDS:
        try:
            use_utf8()
        except StartError as error:
            print(f"rest-server {name}: {error}", file=sys.stderr)
            return 1
    # The server does not need these modules, so they are imported only here.
    command = import_module(f"{__package__}.commands.{name}")
    return int(command.main(arguments))
