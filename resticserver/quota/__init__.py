"""
The arithmetic of quotas, and the admission of uploads.
"""
