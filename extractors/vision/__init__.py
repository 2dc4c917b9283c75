"""Vision extractors."""
