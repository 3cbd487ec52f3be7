"""
Thread pools and the order of their jobs. Nothing here knows of files or HTTP.
"""
