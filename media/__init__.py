"""Media reading: open, probe and decode audio and video files."""
