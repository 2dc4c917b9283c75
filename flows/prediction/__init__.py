"""Scoring of files and folders, and how results are shown."""
