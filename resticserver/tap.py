"""
The twistd plugin: the flags, and the whole server as one service.
"""

from __future__ import annotations

from twisted.application.service import IService

from .config.options import Options as Options  # twistd looks it up here
from .errors import StartError
from .process.clock import use_monotonic_clock
from .server import ResticServer
from .threads.reactor import installed_reactor


def makeService(options: Options) -> IService:
    """Build the server as one service, for twistd."""
    reactor = installed_reactor()
    use_monotonic_clock(reactor)
    try:
        return ResticServer(options.settings, reactor, options.where_it_stands)
    except StartError as error:
        raise SystemExit(f"rest-server: {options.where_it_stands(str(error))}") from None
