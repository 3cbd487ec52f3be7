"""
Repositories and where they are kept. Knows no HTTP and no reactor: plain blocking Python, safe from several threads.
"""
