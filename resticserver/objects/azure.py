"""
The lists of a container of Azure Blob Storage.
"""

from __future__ import annotations

from collections.abc import Iterator

from .azure_list import parse_azure_page
from .azure_requests import AzureRequests
from .engine import Found
from .paged_lists import PagedLists
from .pages import Page

#: How many objects a page has; Azure gives no more, and takes the same for each list.
PAGE_OBJECTS = 5000


class AzureLists(PagedLists):
    """
    See L{PagedLists}. Azure cannot begin a list after a name, so that all pages before it are requested, and what is in them is
    dropped.
    """

    def __init__(self, requests: AzureRequests, page_objects: int = PAGE_OBJECTS) -> None:
        super().__init__(requests, page_objects)

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{resticserver.objects.engine.Engine.list_pages}."""
        for found in super().list_pages(prefix):
            if wanted := [one for one in found if one.key > after] if after else found:
                yield wanted

    def _page(self, prefix: str, after: str, token: str | None, by_folder: bool, most: int) -> Page:
        """See L{PagedLists}."""
        query = {"comp": "list", "maxresults": str(most)}
        if prefix:
            query["prefix"] = prefix
        if by_folder:
            query["delimiter"] = "/"
        if token is not None:
            query["marker"] = token
        return self._requests.get(query, lambda body: parse_azure_page(body, prefix, by_folder))
