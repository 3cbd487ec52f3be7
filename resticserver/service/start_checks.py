"""
What a start would refuse, found out without starting: users, policy, certificates, addresses and files are looked at by the
functions that the server itself uses. Nothing is created, and no stored data are read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from twisted.internet.protocol import Factory

from ..config.settings import Settings
from ..errors import StartError
from ..net.endpoints import parse_address
from ..net.listeners import METRICS, REQUESTS
from ..net.shared_sockets import shared_factory
from ..storage.interface import ServedStore
from ..storage.state import StateFile
from ..telemetry.accesslog import AccessLog, AccessLogService
from .factories import check_profile, load_users, make_certificates, make_policy, make_state, make_store

#: Addresses of sockets that only the started service has.
_INHERITED = re.compile("(?:haproxy:)*(?:systemd|fd):")


def start_problems(settings: Settings) -> Iterator[str]:
    """
    Look for what would keep a server with these settings from starting. What the server would only warn of is logged, as it
    would log it.

    @return: a line for each problem; it begins with the flag that it is about, if there is one.
    """
    listen = [address for address in settings.listen if not _INHERITED.match(address)]
    for check in (
        lambda: _check_state_directory(settings),
        lambda: _check_data_directory(settings),
        lambda: _check_users(settings),
        lambda: _load_policy(settings),
        lambda: make_certificates(settings),
        lambda: check_profile(settings.cpu_profile),
        lambda: _check_log(settings.log),
        *(_address_check(address, REQUESTS.flag, settings.workers > 1) for address in listen),
        *(_address_check(address, METRICS.flag) for address in [settings.metrics_listen] if address is not None),
    ):
        try:
            check()
        except StartError as error:
            yield str(error)


def _check_users(settings: Settings) -> None:
    load_users(settings, _store(settings).volume, time.monotonic)


def _check_data_directory(settings: Settings) -> None:
    """
    See C{prepare} of the stores, which tries it.

    @raise StartError: it cannot be used.
    """
    if settings.location is not None:
        from .object_store import make_object_store

        store = make_object_store(settings, settings.location, make_state(settings))
        flags, policy = make_policy(settings)
        if policy is not None:
            policy.load()
        store.expect_kept((policy or flags).longest_delete_delay())
        store.look()
        return
    try:
        if _store(settings).volume.is_missing():
            return
    except OSError as error:
        raise StartError(f"--path: cannot read the volume's marker {error.filename}: {error.strerror}") from error
    _check_directory(f"--path: cannot use the data directory {settings.path}", settings.path, not settings.read_only)


def _store(settings: Settings) -> ServedStore:
    state = make_state(settings)
    store = make_store(settings, state)
    # A state directory that cannot be used has a line of its own.
    with suppress(StartError):
        store.volume.expect(state.marker())
    return store


def _check_state_directory(settings: Settings) -> None:
    if settings.state_dir is None:
        return
    words = f"--state-dir: cannot use the state directory {settings.state_dir}"
    _check_directory(words, settings.state_dir, not settings.read_only)
    StateFile(settings.path, settings.state_dir, read_only=True).marker()


def _check_directory(words: str, path: str, must_be_writable: bool) -> None:
    """
    Check that a directory can be used, or be made.

    @param words: the beginning of the message.
    @raise StartError: it cannot.
    """
    try:
        is_there = os.path.lexists(path)
        existing = path
        while not os.path.lexists(existing) and existing != os.path.dirname(existing):
            existing = os.path.dirname(existing)
        os.close(os.open(existing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise StartError(f"{words}: {error.strerror}") from error
    wanted = os.W_OK | os.X_OK if must_be_writable or not is_there else os.X_OK
    if not os.access(existing, wanted, effective_ids=True):
        where = "" if is_there else f" ({existing} cannot be written)"
        raise StartError(f"{words}: Permission denied{where}")


def _load_policy(settings: Settings) -> None:
    _, policy = make_policy(settings)
    if policy is not None:
        policy.load()


def _check_log(path: str | None) -> None:
    if path:
        AccessLogService(path, AccessLog(), lambda job: None).check()


def _address_check(address: str, flag: str, shared: bool = False) -> Callable[[], object]:
    # Only the form is checked: the port may be in use by the very server whose configuration this is.
    if shared:
        return lambda: shared_factory(address, Factory(), None)
    return lambda: parse_address(None, address, flag)
