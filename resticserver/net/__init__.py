"""
Listening sockets, TLS contexts and the PROXY protocol.
"""
