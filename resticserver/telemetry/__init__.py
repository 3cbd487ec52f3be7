"""
What is told about requests: everything here reads one L{resticserver.telemetry.record.Record} per request.
"""
