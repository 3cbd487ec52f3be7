"""
Quota arithmetic, and the admission of uploads.
"""
