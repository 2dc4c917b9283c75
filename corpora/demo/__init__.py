"""The demo corpus: generated media of talking avatars whose face, voice and words show a sentiment each."""

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate

__all__ = ["DemoConfig", "generate"]
