"""Parameters and presets."""
