"""
Limits for clients: bandwidth and connections; and how refusals of all limits are counted and logged.
"""
