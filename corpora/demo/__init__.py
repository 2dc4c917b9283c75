"""The demo corpus: generated videos of talking avatars whose face, voice and words each express a sentiment."""

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate

__all__ = ["DemoConfig", "generate"]
