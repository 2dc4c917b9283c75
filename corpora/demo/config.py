"""Size and seed of the demo corpus."""

from __future__ import annotations

from dataclasses import dataclass

SPLIT_SHARES = {"train": 0.60, "valid": 0.15, "test": 0.25}


@dataclass(frozen=True)
class DemoConfig:
    """Size and seed of the generated corpus.

    Attributes:
        clips: number of clips, at least one per speaker.
        speakers: number of speakers; each has one video and is in one split.
        seed: seed of all random draws.

    Raises:
        ValueError: a value is out of range.
    """

    clips: int = 320
    speakers: int = 40
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("clips", "speakers", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"prepare.demo.{name} must be a whole number, found {value!r}")
        if self.speakers < len(SPLIT_SHARES):
            raise ValueError(
                f"prepare.demo.speakers must be at least {len(SPLIT_SHARES)}, one for each split, found "
                f"{self.speakers}; raise it"
            )
        if self.clips < self.speakers:
            raise ValueError(
                f"prepare.demo.clips must be at least prepare.demo.speakers ({self.speakers}), "
                f"found {self.clips}; raise it or lower speakers"
            )
        if self.seed < 0:
            raise ValueError(f"prepare.demo.seed must not be negative, found {self.seed}; use 0 or more")
