"""
Everything that exists only with C{--workers}: the parent, the child processes, and their protocol.
"""
