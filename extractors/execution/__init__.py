"""Resumable, crash-isolated extraction over many clips."""
