"""
The service of C{--cpu-profile}.
"""

from __future__ import annotations

import cProfile
from typing import TYPE_CHECKING

from twisted.application.service import Service

if TYPE_CHECKING:
    pass


class CpuProfile(Service):
    """
    Profiles the reactor's thread from the start to the stop of this service.

    @param path: the file for the profile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._profile = cProfile.Profile()
        self.setName("profile")

    def startService(self) -> None:
        """Begin to profile."""
        super().startService()
        self._profile.enable()

    def stopService(self) -> None:
        """Write the profile."""
        super().stopService()
        self._profile.disable()
        self._profile.dump_stats(self._path)
