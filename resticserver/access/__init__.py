"""
Authentication and authorization. Knows no HTTP and no reactor.
"""
