"""
Thread pools and the order of jobs in them; nothing here knows of files or HTTP.
"""
