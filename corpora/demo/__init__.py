"""The demo corpus: generated videos of talking avatars whose face, voice and words each express a sentiment."""
