"""
The lists of a container of Azure Blob Storage, by signed requests of our own, for the same reason as in
L{resticserver.objects.s3}: a list that is too short makes prune lose data, so each page is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

from .azure_list import parse_azure_page
from .azure_requests import AzureRequests
from .engine import EngineError, Found
from .pages import Ascending, BadPage, Page

#: How many objects a page has; Azure gives no more, and takes the same for each list.
PAGE_OBJECTS = 5000

#: How many pages without an object may follow each other.
_MOST_EMPTY_PAGES = 1000


class AzureLists:
    """
    The lists of one container. Safe from several threads.

    @param page_objects: how many objects a page has at most.
    """

    def __init__(self, requests: AzureRequests, page_objects: int = PAGE_OBJECTS) -> None:
        self._requests = requests
        self._page_objects = page_objects

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._requests.close()

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """
        See L{resticserver.objects.engine.Engine.list_pages}. Azure cannot begin a list after a name, so that all pages before it
        are requested and dropped.
        """
        for page in self._pages(prefix, by_folder=False):
            found = [one for one in page.found if one.key > after] if after else page.found
            if found:
                yield found

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{resticserver.objects.engine.Engine.list_folder}. Names that are empty are left out: no repository has them."""
        folders: list[str] = []
        names: list[str] = []
        for page in self._pages(prefix, by_folder=True):
            folders += [folder[:-1] for folder in page.folders if folder != "/"]
            names += [found.key for found in page.found if found.key]
        return folders, names

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}."""
        self._requests.get(_query("", 1), lambda body: parse_azure_page(body, ""))

    def _pages(self, prefix: str, by_folder: bool) -> Iterator[Page]:
        asked = _query(prefix, self._page_objects)
        if by_folder:
            asked["delimiter"] = "/"
        query = asked
        keys, folders = Ascending(), Ascending()
        empty = 0
        while True:
            page = self._requests.get(query, lambda body: parse_azure_page(body, prefix, by_folder))
            try:
                keys.check([found.key for found in page.found])
                folders.check(page.folders)
                empty = 0 if page.found or page.folders else empty + 1
                if page.token is not None and (page.token == query.get("marker") or empty > _MOST_EMPTY_PAGES):
                    raise BadPage("the list does not come to an end")
            except BadPage as error:
                raise EngineError(detail=str(error)) from None
            yield page
            if page.token is None:
                return
            query = asked | {"marker": page.token}


def _query(prefix: str, most: int) -> dict[str, str]:
    query = {"comp": "list", "maxresults": str(most)}
    return query | {"prefix": prefix} if prefix else query
