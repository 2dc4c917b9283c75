"""Corruptions of clips, by name: what can be wrong with a recording or with a transcript, and by how much.

Media are corrupted as files, before any extractor sees them, transcripts as text. All draws follow from seed,
corruption and clip id; the level only says how far they go. So a clip is corrupted alike whatever is done beside it,
and one level's corruption grows out of the other's, which makes curves over the levels smooth.

`python -m extractors.corruption.conditions` prints the table that docs/robustness.md shows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractors.base import MissingModalityError
from extractors.corruption import audio, text, vision
from extractors.corruption.text import Edit, Lexicon
from media.container import MissingStreamError

if TYPE_CHECKING:
    from extractors.transcripts.table import Transcript

ChangeMedia = Callable[[Path, Path, float, Callable[[], np.random.Generator]], Path]
"""(media file, where to write, without the ending, level, draws from their beginning) -> the file that was written."""

ChangeText = Callable[[str, str, float, np.random.Generator, Lexicon | None], Edit]
"""(text, language, level, draws, lexicon) -> what stands in the place of each of the text's units."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way in which a modality can be spoilt.

    Attributes:
        modality: text, audio or vision.
        unit: of the level.
        low, high: the level's range, both included.
        clean_level: the level at which a clip stays exactly what it is.
        meaning: what is done, for people.
        stands_for: what it is like.
        change: does it.
        version: raised by hand when a change to the code changes what comes out.
        needs_lexicon: whether `change` wants to know the corpus's words.
    """

    modality: str
    unit: str
    low: float
    high: float
    clean_level: float
    meaning: str
    stands_for: str
    change: ChangeMedia | ChangeText
    version: int = 1
    needs_lexicon: bool = False

    @property
    def range(self) -> str:
        """The levels, in words."""
        low, high = (f"{value:g}" for value in (self.low, self.high))
        return f"{low} or more" if math.isinf(self.high) else f"{low} to {high}"


CORRUPTIONS = {
    "audio.noise": Corruption(
        "audio", "signal-to-noise ratio, dB", -30, math.inf, math.inf,
        "noise with the long-term spectrum of speech is added; the ratio is of the mean powers over the clip",
        "many people talking in the background",
        audio.add_noise,
    ),
    "audio.spans": Corruption(
        "audio", "fraction of the duration", 0, 1, 0,
        "spans of 0.1 to 0.3 s are silent",
        "lost packets, a bad connection",
        audio.silence_spans,
    ),
    "vision.blur": Corruption(
        "vision", "standard deviation, fraction of the picture's shorter side", 0, 0.5, 0,
        "a Gaussian blur of every picture",
        "out of focus, a small picture enlarged",
        vision.blur,
    ),
    "vision.occlusion": Corruption(
        "vision", "fraction of the picture's area", 0, 1, 0,
        "a grey patch lies over a part of the picture, and moves slowly from a random place",
        "a hand, a microphone, a caption in front of the face",
        vision.cover,
    ),
    "vision.frames": Corruption(
        "vision", "fraction of the frames", 0, 0.99, 0,
        "frames are missing at random; the one before stays on the screen",
        "lost frames, a camera that stutters",
        vision.lose_frames,
    ),
    "vision.rate": Corruption(
        "vision", "frames a second", 0.1, math.inf, math.inf,
        "so many frames a second are left, evenly; a video with fewer keeps all of its",
        "a video call in a narrow network",
        vision.lower_rate,
    ),
    "text.words": Corruption(
        "text", "probability of each word", 0, 1, 0,
        "words are missing",
        "gaps in a transcript",
        text.drop_words,
    ),
    "text.recogniser": Corruption(
        "text", "word error rate (Chinese: character error rate)", 0, 1, 0,
        "70 % of the errors are words that sound alike, 20 % words left out, 10 % frequent words put in; all of them "
        "words of the corpus",
        "transcripts of a speech recogniser",
        text.mishear,
        needs_lexicon=True,
    ),
    "text.negation": Corruption(
        "text", "probability of each clip", 0, 1, 0,
        "a negation is put in, or those that there are go; English and Chinese",
        "a sentence that says the contrary, while voice and face stay",
        text.flip_negation,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """A corruption at a level, with a seed.

    Raises:
        ValueError: no such corruption, a level that is no number or out of its range, a seed below 0.
    """

    corruption: str
    level: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.corruption not in CORRUPTIONS:
            near = difflib.get_close_matches(self.corruption, CORRUPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(CORRUPTIONS)
            raise ValueError(f"no corruption is called {self.corruption!r}{hint} Known: {known}")
        kind, level = self.kind, self.level
        if isinstance(level, bool) or not isinstance(level, int | float) or not kind.low <= level <= kind.high:
            raise ValueError(
                f"{self.corruption}: the level is {level!r}: it must be a number ({kind.unit}), {kind.range}; "
                f"{kind.clean_level:g} leaves clips as they are"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"{self.corruption}: the seed is {self.seed!r}: it must be a whole number of 0 or more")
        object.__setattr__(self, "level", float(level))

    @property
    def kind(self) -> Corruption:
        """The corruption itself."""
        return CORRUPTIONS[self.corruption]

    @property
    def modality(self) -> str:
        """The one that is corrupted."""
        return self.kind.modality

    @property
    def is_clean(self) -> bool:
        """Whether clips stay exactly what they are."""
        return self.level == self.kind.clean_level

    @property
    def signature(self) -> str:
        """Changes whenever what it makes of a clip could."""
        return json.dumps([self.corruption, self.kind.version, self.level, self.seed])

    def draws(self, clip_id: str) -> np.random.Generator:
        """The clip's random numbers, the same at every level."""
        payload = json.dumps([self.seed, self.corruption, clip_id])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(payload.encode()).digest()))

    def write_media(self, media: Path, clip_id: str, out: Path) -> Path:
        """Write the clip's corrupted media to `out` with a fitting ending, and give that path; of the other streams
        nothing is kept.

        Raises:
            MissingModalityError: there is no stream to corrupt, so that the clip stays without the modality.
            MediaError, ExtractionError: the file cannot be read.
        """
        try:
            return self.kind.change(media, out, self.level, lambda: self.draws(clip_id))
        except MissingStreamError as error:
            raise MissingModalityError(str(error)) from error

    def change_text(self, transcript: Transcript, language: str, lexicon: Lexicon | None = None) -> Transcript:
        """The corrupted transcript, words that were timed with their times; the same object where nothing changes.

        Args:
            lexicon: the corpus's words in that language, for a corruption that `needs_lexicon`.

        Raises:
            ValueError: the corruption does not know the language.
        """
        if self.is_clean:
            return transcript
        draws = self.draws(transcript.clip_id)
        units, instead = self.kind.change(transcript.text, language, self.level, draws, lexicon)
        return text.edited(transcript, language, units, instead)


def table() -> str:
    """The corruptions in Markdown."""
    head = ("name", "level", "range (as it is)", "what is done", "stands for")
    rows = [head, ("---",) * len(head)]
    for name, kind in CORRUPTIONS.items():
        rows.append((f"`{name}`", kind.unit, f"{kind.range} ({kind.clean_level:g})", kind.meaning, kind.stands_for))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
