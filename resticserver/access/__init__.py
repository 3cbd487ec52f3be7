"""
Who you are and what you may. Knows no HTTP and no reactor.
"""
