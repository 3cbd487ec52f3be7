"""
How large an object may be, and how many uploads there may be at once.
"""

from __future__ import annotations

from ..errors import TooLarge, TooManyUploads
from ..sizes import format_size
from ..telemetry.limited import MAX_OBJECT_SIZE, MAX_UPLOADS, Limited

#: Uploads of this type do not count: a client must always be able to renew its lock.
_UNCOUNTED = "locks"


class UploadGate:
    """
    The limits for the uploads of one process.

    @param limited: receives what they refuse.
    @param most_object_bytes: the size of the largest object; 0 for no limit.
    @param most_uploads: how many uploads there may be at once, those of locks besides; 0 for no limit.
    """

    def __init__(self, limited: Limited, most_object_bytes: int = 0, most_uploads: int = 0) -> None:
        self._limited = limited
        self._most_object_bytes = most_object_bytes
        self._most_uploads = most_uploads
        self._uploads = 0

    def check_size(self, size_bytes: int) -> None:
        """
        Check the size of an object, as far as it is known.

        @raise TooLarge: it is too large.
        """
        most_bytes = self._most_object_bytes
        if most_bytes and size_bytes > most_bytes:
            most = format_size(most_bytes)
            self._limited.limited(MAX_OBJECT_SIZE, f"--max-object-size: an upload of more than {most} was refused")
            raise TooLarge(f"the object is larger than {most}, the most that this server takes")

    def enter(self, object_type: str) -> None:
        """
        An upload begins. Call L{leave} at its end.

        @raise TooManyUploads: there are enough.
        """
        most = self._most_uploads
        if most and object_type != _UNCOUNTED:
            if self._uploads >= most:
                self._limited.limited(
                    MAX_UPLOADS, f"--max-uploads: there are {most}, and one more was refused with 503"
                )
                raise TooManyUploads()
            self._uploads += 1

    def leave(self, object_type: str) -> None:
        """An upload has ended."""
        if self._most_uploads and object_type != _UNCOUNTED:
            self._uploads -= 1
