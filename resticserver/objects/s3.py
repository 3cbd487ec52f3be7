"""
The lists of a bucket of S3, by signed requests of our own. obstore's are not used: they end early without an error if an answer
is 200 with an error in it, or says that there is more without saying how to get it, and a list that is too short makes prune
lose data.
"""

from __future__ import annotations

from collections.abc import Iterator

from .credentials import Credentials, new_session
from .engine import EngineError, Found
from .location import Location
from .pages import Ascending, BadPage, Page
from .s3_list import parse_page
from .s3_requests import S3Requests
from .s3_settings import S3Settings, find_settings

#: How many objects a page has; engines give no more.
PAGE_OBJECTS = 1000

#: How many pages without an object may follow each other; AWS sends some where many objects were removed.
_MOST_EMPTY_PAGES = 1000


class S3Lists:
    """
    The lists of one bucket. Safe from several threads.

    @param page_objects: how many objects a page has at most.
    """

    def __init__(self, requests: S3Requests, page_objects: int = PAGE_OBJECTS) -> None:
        self._requests = requests
        self._page_objects = page_objects

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._requests.close()

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """
        See L{resticserver.objects.engine.Engine.list_pages}. The order is the engine's: S3's, or on SeaweedFS that of its
        directories (see L{Ascending}).

        @param after: the key of an object that was listed, or one below a folder, such as C{data/\\U0010ffff}. It must not be
            the name of a folder without a slash at its end: SeaweedFS 4 then leaves out what is in that folder.
        """
        for page in self._pages(prefix, after, by_folder=False):
            if page.found:
                yield page.found

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{resticserver.objects.engine.Engine.list_folder}. Names that are empty are left out: no repository has them."""
        folders: list[str] = []
        names: list[str] = []
        for page in self._pages(prefix, "", by_folder=True):
            folders += [folder[:-1] for folder in page.folders if folder != "/"]
            names += [found.key for found in page.found if found.key]
        return folders, names

    def _pages(self, prefix: str, after: str, by_folder: bool) -> Iterator[Page]:
        asked = self._query(prefix, self._page_objects)
        if by_folder:
            asked["delimiter"] = "/"
        query = asked | ({"start-after": f"{prefix}{after}"} if after else {})
        keys, folders = Ascending(after or None), Ascending()
        empty = 0
        while True:
            page = self._requests.get(query, lambda body: parse_page(body, prefix, by_folder))
            try:
                keys.check([found.key for found in page.found])
                folders.check(page.folders)
                empty = 0 if page.found or page.folders else empty + 1
                if page.token is not None and (
                    page.token == query.get("continuation-token") or empty > _MOST_EMPTY_PAGES
                ):
                    raise BadPage("the list does not come to an end")
            except BadPage as error:
                raise EngineError(detail=str(error)) from None
            yield page
            if page.token is None:
                return
            query = asked | {"continuation-token": page.token}

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}."""
        self._requests.get(self._query("", 1), lambda body: parse_page(body, ""))

    def _query(self, prefix: str, most: int) -> dict[str, str]:
        # Encoded: XML cannot have all characters of a key, and engines then write others instead.
        return {"list-type": "2", "encoding-type": "url", "max-keys": str(most), "prefix": prefix}


def open_s3(location: Location) -> tuple[S3Settings, Credentials, S3Lists]:
    """
    What is needed for a bucket: how it is reached, the credentials (obstore takes them too), and its lists. Nothing is sent to
    the engine, but perhaps to a metadata service.

    @raise StartError: what is configured is missing or wrong.
    """
    settings = find_settings(location, new_session())
    credentials = Credentials(str(location))
    return settings, credentials, S3Lists(S3Requests(settings, credentials))


def open_s3_requests(location: Location) -> S3Requests:
    """
    Requests to a bucket of their own, with connections and credentials of their own; see L{open_s3}.

    @raise StartError: what is configured is missing or wrong.
    """
    return S3Requests(find_settings(location, new_session()), Credentials(str(location)))
