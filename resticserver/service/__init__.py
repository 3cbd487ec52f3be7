"""
Services that run behind the routes: logins, quotas, metrics, readiness, hooks.
"""
