"""Checkpoints on disk, their description, card and exports."""
