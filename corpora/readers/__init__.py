"""Corpus readers: one module for each on-disk layout that a corpus comes in."""
