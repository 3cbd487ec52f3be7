"""
Lists of a bucket, page by page, by signed requests of our own. obstore's are not used: they end early without an error if an
answer is 200 with an error in it, or says that there is more without saying how to get it, and a list that is too short makes
prune lose data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from .engine import EngineError, Found
from .pages import Ascending, BadPage, Page
from .signed_requests import SignedRequests

#: How many pages without an object may follow each other; AWS sends some where many objects were removed.
_MOST_EMPTY_PAGES = 1000


class PagedLists(ABC):
    """
    The lists of one bucket. Safe from several threads.

    @param page_objects: how many objects a page has at most.
    """

    def __init__(self, requests: SignedRequests, page_objects: int) -> None:
        self._requests = requests
        self._page_objects = page_objects

    @abstractmethod
    def _page(self, prefix: str, after: str, token: str | None, by_folder: bool, most: int) -> Page:
        """
        Request a page.

        @param after: only keys that come after this one, without the prefix, if the engine can do that.
        @param token: of the page before; C{None} for the first.
        @param by_folder: whether all keys below a folder are one entry.
        @param most: how many entries it may have.
        """

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._requests.close()

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{resticserver.objects.engine.Engine.list_pages}."""
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

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}."""
        self._page("", "", None, False, 1)

    def _pages(self, prefix: str, after: str, by_folder: bool) -> Iterator[Page]:
        keys, folders = Ascending(after or None), Ascending()
        empty = 0
        token: str | None = None
        while True:
            page = self._page(prefix, after, token, by_folder, self._page_objects)
            try:
                keys.check([found.key for found in page.found])
                folders.check(page.folders)
                empty = 0 if page.found or page.folders else empty + 1
                if page.token is not None and (page.token == token or empty > _MOST_EMPTY_PAGES):
                    raise BadPage("the list does not come to an end")
            except BadPage as error:
                raise EngineError(detail=str(error)) from None
            yield page
            token = page.token
            if token is None:
                return
