"""Losses, mining and the state of a training."""
