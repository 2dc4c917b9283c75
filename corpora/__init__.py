"""Corpora: the manifest that every later stage reads, readers for the layouts users have, the demo generator."""
