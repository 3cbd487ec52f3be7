"""
What the server sets for its own process: encoding, signals, memory, descriptors, clock, children.
"""
