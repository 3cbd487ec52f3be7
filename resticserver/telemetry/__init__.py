"""
Logs, metrics, events and the status: everything here reads one L{resticserver.telemetry.record.Record} per request.
"""
