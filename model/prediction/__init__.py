"""Scores of new clips."""
