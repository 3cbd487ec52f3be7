"""
The keys of a bucket, as restic's own S3 and Azure backends have them: C{PREFIX/REPOSITORY/config},
C{PREFIX/REPOSITORY/data/ab/ID}, so that both may use a bucket at once. What is ours lies below C{.rest-server}.
"""

from __future__ import annotations

from ..errors import NotFound
from ..names import CONFIG
from ..storage.layout import Repository
from ..storage.volume import FOLDER

#: The engines' limit of a key, in bytes of UTF-8.
MOST_KEY_BYTES = 1024

#: An empty object with this name says that there is a repository, before its config is there.
_MARKER = "repository"


class Keys:
    """
    The keys below one prefix.

    @param prefix: empty, or with a slash at its end.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.volume_marker = f"{prefix}{FOLDER}/id"

    def repository(self, repository: Repository) -> str:
        """What the keys of a repository begin with."""
        return self.prefix + "".join(f"{folder}/" for folder in repository)

    def marker(self, repository: Repository) -> str:
        """The key of the object that says that there is a repository."""
        return self._bounded(f"{self.repository(repository)}{FOLDER}/{_MARKER}")

    @staticmethod
    def is_repository_marker(names: list[str]) -> bool:
        """Whether the marker is among the names of a repository's own folder."""
        return _MARKER in names

    def objects(self, repository: Repository, object_type: str) -> str:
        """What the keys of all objects of a type begin with."""
        return f"{self.repository(repository)}{object_type}/"

    def object(self, repository: Repository, object_type: str, name: str) -> str:
        """
        The key of an object.

        @raise NotFound: it would be longer than engines take.
        """
        top = self.repository(repository)
        if object_type == CONFIG:
            return self._bounded(top + CONFIG)
        if object_type == "data":
            return self._bounded(f"{top}data/{name[:2]}/{name}")
        return self._bounded(f"{top}{object_type}/{name}")

    def _bounded(self, key: str) -> str:
        # Two bytes for each letter at most need no look.
        if len(key) * 4 > MOST_KEY_BYTES and len(key.encode("utf-8", "surrogatepass")) > MOST_KEY_BYTES:
            raise NotFound("the object store has no room for a name this long")
        return key


def name_in(key: str, object_type: str) -> str:
    """
    The name of an object.

    @param key: without what all keys of its type begin with.
    @return: empty where the key has another form.
    """
    if object_type == "data":
        folder, _, name = key.partition("/")
        return name if name[:2] == folder else ""
    return key
