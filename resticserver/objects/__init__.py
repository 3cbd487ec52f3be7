"""
Repositories in an object store: C{--path s3://bucket/prefix}. Needs the extra C{resticserver[objects]}.
"""
