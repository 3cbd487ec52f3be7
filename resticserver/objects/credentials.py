"""
The credentials for S3, from wherever botocore finds them: the environment, C{~/.aws/credentials} and C{~/.aws/config}, a web
identity, the metadata of a container or an instance. They are read again when they expire, when one of the files changes, and
when the engine has refused them; a change needs no restart.

botocore is imported when the first of these objects is made, not before.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from ..errors import StartError
from .engine import AccessRefused

if TYPE_CHECKING:
    from botocore.session import Session  # type: ignore[import-untyped,import-not-found]

#: How often credentials that were refused are looked for anew at most, in seconds: metadata services limit requests.
RELOAD_PAUSE_S = 5.0

#: For how long obstore is told that credentials are valid. It asks again as soon as less than five minutes are left, but not
#: more often than ten times a second.
OBSTORE_TTL = timedelta(seconds=60)

_SOURCES = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and the files ~/.aws/credentials and ~/.aws/config "
    "(AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE), or give the machine a role"
)


@dataclass(frozen=True)
class Credential:
    """
    What a request is signed with. Nothing of it is shown by C{repr}.

    @ivar token: for temporary credentials only.
    """

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


def new_session() -> Session:
    """A session of botocore's, without its descriptions of services, which are large and are not needed."""
    from botocore.session import Session

    return Session()


class Credentials:
    """
    The credentials that are valid now. Safe from several threads; calls may block for as long as a metadata service takes.
    Give it to obstore as C{credential_provider}.

    @param name: the bucket, for messages.
    @param new_session: makes a session of botocore's that has read the environment and the files.
    @param clock: seconds, monotonic.
    @raise StartError: there are no credentials, or what is configured is wrong.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        new_session: Callable[[], Session] = new_session,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._new_session = new_session
        self._clock = clock
        self._lock = threading.Lock()
        self._reloaded_at = -RELOAD_PAUSE_S
        #: Each file with what tells one content of it from another.
        self._seen: dict[str, object] = {}
        try:
            self._source = self._load()
            source = self._source
            if source is not None:
                source.get_frozen_credentials()
        except _errors() as error:
            raise StartError(f"--path: {name}: no credentials: {_in_one_line(error)}") from None
        if source is None:
            raise StartError(f"--path: {name}: no credentials found: {_SOURCES}")

    def current(self) -> Credential:
        """
        The credentials for the next request.

        @raise AccessRefused: they have expired, and there are no others.
        """
        if any(_state_of(path) != seen for path, seen in self._seen.items()):
            self._read_again(only_changed=True)
        return self._frozen()

    def reload(self, refused: Credential | None = None) -> bool:
        """
        Look for credentials anew, after the engine has refused them; not more often than every L{RELOAD_PAUSE_S}.

        @param refused: the ones that were refused; by default the ones that are in use.
        @return: whether there are others now, so that another try is worth it.
        @raise AccessRefused: see L{current}.
        """
        if refused is None:
            refused = self._frozen()
        elif self.current() != refused:
            return True
        self._read_again(only_changed=False)
        return self._frozen() != refused

    def __call__(self) -> dict[str, Any]:
        """The credentials in obstore's form (C{S3Credential})."""
        credential = self.current()
        return {
            "access_key_id": credential.access_key,
            "secret_access_key": credential.secret_key,
            "token": credential.token,
            "expires_at": datetime.now(UTC) + OBSTORE_TTL,
        }

    def sign(
        self,
        method: str,
        url: str,
        region: str,
        credential: Credential | None = None,
        sha256: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, str]:
        """
        Sign a request (AWS's signature version 4).

        @param url: with its query, encoded as it is going to be sent.
        @param credential: by default the ones that are valid now.
        @param sha256: of the content; C{None} if there is none.
        @param headers: further ones.
        @return: the header fields to be sent.
        """
        from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped,import-not-found]
        from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped,import-not-found]

        request = AWSRequest(method, url, headers)
        signer = S3SigV4Auth(credential or self.current(), "s3", region)
        if sha256 is not None:
            # What botocore would calculate from the content.
            signer.payload = lambda _: sha256.hex()
        signer.add_auth(request)
        return {str(name): str(value) for name, value in request.headers.items()}

    def _frozen(self) -> Credential:
        try:
            found = self._source.get_frozen_credentials()
        except _errors() as error:
            raise AccessRefused(detail=f"the credentials cannot be renewed: {_in_one_line(error)}") from None
        return Credential(found.access_key, found.secret_key, found.token)

    def _load(self) -> Any:
        """What a new session finds: an object of botocore's, or C{None}."""
        session = self._new_session()
        paths = [
            os.path.expanduser(str(session.get_config_variable(variable)))
            for variable in ("credentials_file", "config_file")
        ]
        # Before they are read: a file that changes meanwhile is read again.
        self._seen = {path: _state_of(path) for path in paths}
        return session.get_credentials()

    def _read_again(self, only_changed: bool) -> None:
        """
        Replace the credentials by what a new session finds. If it finds none, the old ones stay: a file may be half written,
        and it is for the engine to say whether they are still valid.
        """
        with self._lock:
            if only_changed:
                if all(_state_of(path) == seen for path, seen in self._seen.items()):
                    return
            elif self._clock() < self._reloaded_at + RELOAD_PAUSE_S:
                return
            else:
                self._reloaded_at = self._clock()
            problem = "there are none"
            try:
                found = self._load()
                if found is not None:
                    found.get_frozen_credentials()
            except _errors() as error:
                found, problem = None, _in_one_line(error)
            if found is not None:
                self._source = found
                return
        self._log.warn(
            "{name}: the credentials cannot be read again, the old ones stay in use: {problem}",
            name=self._name,
            problem=problem,
        )


def _errors() -> tuple[type[Exception], ...]:
    """What botocore raises if credentials cannot be had; C{RuntimeError} is for ones that are expired when they come."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped,import-not-found]

    return (BotoCoreError, ClientError, OSError, RuntimeError, ValueError)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _state_of(path: str) -> object:
    """What changes if a file's content does."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
