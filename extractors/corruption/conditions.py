"""The registry of corruptions, and `Condition`: one of them at a level, with a seed.

Audio and vision are corrupted in the media file, before any extractor reads it; text in the transcript. All random
numbers derive from the seed, the corruption's name and the clip id, and are the same at every level. So a clip is
corrupted identically whichever clips are processed with it, and corruption grows smoothly with the level.

`python -m extractors.corruption.conditions` prints the table in docs/robustness.md.
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

MediaCorruption = Callable[[Path, Path, float, np.random.Generator], Path]
"""(media file, output path without suffix, level, random numbers) -> the file that was written."""

TextCorruption = Callable[[str, str, float, np.random.Generator, Lexicon | None], Edit]
"""(text, language, level, random numbers, lexicon) -> the replacements of the text's units."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way to degrade a modality.

    Attributes:
        modality: text, audio or vision.
        unit: unit of the level.
        low, high: range of the level, both included.
        clean_level: the level that leaves a clip unchanged.
        effect: what is done to the clip, for the documentation.
        simulates: the real-world defect that it resembles, for the documentation.
        corrupt_media: the implementation, for audio and vision.
        corrupt_text: the implementation, for text.
        version: to be raised when a change to the code changes the result.
        needs_lexicon: whether `corrupt_text` needs the words of the corpus.
    """

    modality: str
    unit: str
    low: float
    high: float
    clean_level: float
    effect: str
    simulates: str
    corrupt_media: MediaCorruption | None = None
    corrupt_text: TextCorruption | None = None
    version: int = 1
    needs_lexicon: bool = False

    @property
    def range(self) -> str:
        """The range of the level, in words."""
        low, high = (f"{value:g}" for value in (self.low, self.high))
        return f"{low} or more" if math.isinf(self.high) else f"{low} to {high}"


CORRUPTIONS = {
    "audio.noise": Corruption(
        "audio", "signal-to-noise ratio, dB", -30, math.inf, math.inf,
        "noise with the long-term spectrum of speech is added; the ratio compares the mean powers over the clip",
        "many people talking in the background",
        corrupt_media=audio.add_noise,
    ),
    "audio.spans": Corruption(
        "audio", "fraction of the duration", 0, 1, 0,
        "spans of 0.1 to 0.3 s are silenced",
        "lost packets, a bad connection",
        corrupt_media=audio.silence_spans,
    ),
    "vision.blur": Corruption(
        "vision", "standard deviation, fraction of the frame's shorter side", 0, 0.5, 0,
        "every frame is blurred by a Gaussian",
        "a camera out of focus, an enlarged small video",
        corrupt_media=vision.blur,
    ),
    "vision.occlusion": Corruption(
        "vision", "fraction of the frame's area", 0, 1, 0,
        "a grey patch covers part of the frame; it starts at a random place and moves slowly",
        "a hand, a microphone or a caption in front of the face",
        corrupt_media=vision.occlude,
    ),
    "vision.frames": Corruption(
        "vision", "fraction of the frames", 0, 0.99, 0,
        "random frames are dropped; the previous frame stays on the screen",
        "lost frames, a stuttering camera",
        corrupt_media=vision.drop_frames,
    ),
    "vision.rate": Corruption(
        "vision", "frames per second", 0.1, math.inf, math.inf,
        "the video is reduced to this frame rate, evenly; a video with a lower rate is unchanged",
        "a video call over a slow network",
        corrupt_media=vision.lower_rate,
    ),
    "text.words": Corruption(
        "text", "probability per word", 0, 1, 0,
        "words are dropped",
        "gaps in a transcript",
        corrupt_text=text.drop_words,
    ),
    "text.recogniser": Corruption(
        "text", "word error rate (Chinese: character error rate)", 0, 1, 0,
        "70 % of the errors replace a word by one that sounds alike, 20 % delete a word, 10 % insert a frequent word; "
        "all words are from the corpus",
        "the output of a speech recogniser",
        corrupt_text=text.misrecognise,
        needs_lexicon=True,
    ),
    "text.negation": Corruption(
        "text", "probability per clip", 0, 1, 0,
        "the sentence is negated, or its negations are removed; English and Chinese",
        "words that contradict the voice and the face",
        corrupt_text=text.flip_negation,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """A corruption at a level, with a seed.

    Raises:
        ValueError: unknown corruption, a level that is not a number or out of range, or a negative seed.
    """

    corruption: str
    level: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.corruption not in CORRUPTIONS:
            near = difflib.get_close_matches(self.corruption, CORRUPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ValueError(f"unknown corruption {self.corruption!r}{hint} Known: {', '.join(CORRUPTIONS)}")
        kind, level = self.kind, self.level
        if isinstance(level, bool) or not isinstance(level, int | float) or not kind.low <= level <= kind.high:
            raise ValueError(
                f"{self.corruption}: level {level!r} must be a number ({kind.unit}), {kind.range}; "
                f"{kind.clean_level:g} leaves clips unchanged"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"{self.corruption}: seed {self.seed!r} must be a whole number of 0 or more")
        object.__setattr__(self, "level", float(level))

    @property
    def kind(self) -> Corruption:
        """The corruption."""
        return CORRUPTIONS[self.corruption]

    @property
    def modality(self) -> str:
        """The corrupted modality."""
        return self.kind.modality

    @property
    def is_clean(self) -> bool:
        """Whether clips stay unchanged."""
        return self.level == self.kind.clean_level

    @property
    def signature(self) -> str:
        """Identifier that changes whenever the corrupted clips could."""
        return json.dumps([self.corruption, self.kind.version, self.level, self.seed])

    def rng(self, clip_id: str) -> np.random.Generator:
        """Return a clip's random number generator, which does not depend on the level."""
        payload = json.dumps([self.seed, self.corruption, clip_id])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(payload.encode()).digest()))

    def write_media(self, media: Path, clip_id: str, out: Path) -> Path:
        """Write the corrupted stream of a clip's media, without the other streams.

        Args:
            media: the clip's media file.
            clip_id: seeds the random numbers.
            out: output path without suffix.

        Returns:
            The file that was written: `out` with a suffix.

        Raises:
            MissingModalityError: the file has no stream to corrupt.
            MediaError, ExtractionError: the file cannot be read.
        """
        assert self.kind.corrupt_media is not None
        try:
            return self.kind.corrupt_media(media, out, self.level, self.rng(clip_id))
        except MissingStreamError as error:
            raise MissingModalityError(str(error)) from error

    def change_text(self, transcript: Transcript, language: str, lexicon: Lexicon | None = None) -> Transcript:
        """Return the corrupted transcript, or the same object where nothing changes.

        Args:
            transcript: a clip's transcript; the new words get times where it has them.
            language: ISO 639-1.
            lexicon: words of the corpus in that language, where `kind.needs_lexicon`.

        Raises:
            ValueError: the corruption does not support the language.
        """
        if self.is_clean:
            return transcript
        assert self.kind.corrupt_text is not None
        rng = self.rng(transcript.clip_id)
        units, replacements = self.kind.corrupt_text(transcript.text, language, self.level, rng, lexicon)
        return text.apply_edit(transcript, language, units, replacements)


def table() -> str:
    """Return the corruptions as a Markdown table."""
    head = ("name", "level", "range (clean level)", "effect", "simulates")
    rows = [head, ("---",) * len(head)]
    for name, kind in CORRUPTIONS.items():
        rows.append((f"`{name}`", kind.unit, f"{kind.range} ({kind.clean_level:g})", kind.effect, kind.simulates))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
