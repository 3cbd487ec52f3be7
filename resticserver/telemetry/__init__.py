"""
Metrics, logs and status. Everything here that concerns requests reads one L{resticserver.telemetry.record.Record} per
request.
"""
