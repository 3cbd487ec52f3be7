"""
Listening: C{endpoints} reads an address, C{sockets} opens it, C{ports} accepts from it, C{listeners} is the service of all.
C{shared_sockets} does that for several processes. Then C{tls} and C{proxy_protocol}.
"""
