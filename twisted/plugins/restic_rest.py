"""
C{twistd restic-rest}: names the service by a string and imports nothing of it, so that C{twistd --help} stays quick.
"""

from twisted.application.service import ServiceMaker

resticRest = ServiceMaker(
    "restic repository server",
    "resticserver.tap",
    "A repository server for restic backups (restic's REST protocol).",
    "restic-rest",
)
