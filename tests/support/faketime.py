"""
A server whose wall clock the test sets, by Debian's libfaketime. The monotonic clock is left alone, as a step leaves it.
"""

from __future__ import annotations

from pathlib import Path

#: The library for programs with threads; C{None} where it is not installed.
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
SKIP_WITHOUT_FAKETIME = None if LIBRARY else "libfaketime is not installed (Debian and Ubuntu: apt-get install faketime)"


class WallClock:
    """
    The wall clock of one server's processes.

    @param file: where the library reads how far the clock is off; it is made here.
    @ivar environment: what the server needs in its environment.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step_s = 0
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            # Read the file each time, so that a step is there at once.
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Else each step would change the times of all files as this process sees them; a real step does not.
            "NO_FAKE_STAT": "1",
        }

    def set(self, step_s: int) -> None:
        """Set the clock so many seconds off the real time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{step_s:+d}\n")
        new.replace(self._file)  # the library must not see half a file
        self.step_s = step_s
