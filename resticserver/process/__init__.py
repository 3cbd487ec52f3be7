"""
What the server configures in its own process, or finds out about it: encoding, signals, memory, descriptors, clock, children,
cores.
"""
