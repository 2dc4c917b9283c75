"""What several test packages share: clips, datasets and whole projects, as functions and as fixtures."""
