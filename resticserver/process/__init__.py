"""
What the server configures in its own process: encoding, signals, memory, descriptors, clock, children.
"""
