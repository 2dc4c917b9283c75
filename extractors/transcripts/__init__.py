"""Transcripts: text, recognised speech and word timings of each clip."""
