"""
HTTP/1.1 on Twisted's transports. Nothing here knows restic.
"""
