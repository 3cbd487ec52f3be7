"""
Bodies between a socket and a file in a pool's thread, past the reactor's thread.
"""
