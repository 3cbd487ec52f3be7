"""
The lists of a bucket of S3, and what is needed for them.
"""

from __future__ import annotations

from .credentials import Credentials, new_session
from .location import Location
from .paged_lists import PagedLists
from .pages import Page
from .s3_list import parse_page
from .s3_requests import S3Requests
from .s3_settings import S3Settings, find_settings

#: How many objects a page has; engines give no more.
PAGE_OBJECTS = 1000


class S3Lists(PagedLists):
    """
    See L{PagedLists}. The order is the engine's: S3's, or on SeaweedFS that of its directories (see
    L{resticserver.objects.pages.Ascending}). What a list begins after must be the key of an object that was listed, or one below
    a folder, such as C{data/\\U0010ffff}, and not the name of a folder without a slash at its end: SeaweedFS 4 then leaves out
    what is in that folder.
    """

    def __init__(self, requests: S3Requests, page_objects: int = PAGE_OBJECTS) -> None:
        super().__init__(requests, page_objects)

    def _page(self, prefix: str, after: str, token: str | None, by_folder: bool, most: int) -> Page:
        """See L{PagedLists}."""
        # Encoded: XML cannot have all characters of a key, and engines then write others instead.
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(most), "prefix": prefix}
        if by_folder:
            query["delimiter"] = "/"
        if token is not None:
            query["continuation-token"] = token
        elif after:
            query["start-after"] = f"{prefix}{after}"
        return self._requests.get(query, lambda body: parse_page(body, prefix, by_folder))


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
