"""
What runs behind the routes as long as the server does: logins, quotas, metrics, readiness, hooks.
"""
