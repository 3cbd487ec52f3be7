"""
Tests of L{resticserver.limits}.
"""
