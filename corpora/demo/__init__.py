"""The demo corpus: generated media of talking avatars whose face, voice and words show a sentiment each."""

from corpora.demo.generate import generate
from corpora.demo.plan import DemoConfig

__all__ = ["DemoConfig", "generate"]
