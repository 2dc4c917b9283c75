"""Clips, batches and their augmentation."""
