"""Corruption of media, transcripts and datasets, for robustness studies."""
