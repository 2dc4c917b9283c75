"""Plan of the demo's clips: the speaker, the latent sentiment, and how each modality expresses it.

Everything follows from the seed and an index (of a clip or a speaker), so that clips can be generated independently.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from corpora.demo.appearance import HAIR_STYLES, Appearance, Motion
from corpora.demo.config import SPLIT_SHARES, DemoConfig
from corpora.demo.script import Script, Sentence, compose
from corpora.demo.voice import Prosody, Speech, loudness
from corpora.manifest import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

LIMIT = 3.0
"""Largest absolute sentiment."""
LABEL_STEP = 0.2
NEUTRAL_SHARE, FAINT_SHARE = 0.03, 0.07
"""Shares of clips with sentiment 0, and with an absolute sentiment below `CLEAR`."""
CLEAR = 0.8
INCONGRUENCE_CYCLE = 5
"""Clips of a speaker in which each modality is incongruent once, in an order of the speaker's own: it does not express
the clip's sentiment, which the other two do. A cycle and not random, so that small splits are alike."""
MISLEADING_SHARE = 0.65
"""Share of incongruent modalities that express the opposite; the others express nothing."""
MISLEADING_STRENGTH = 0.7
"""Strength of the opposite, relative to the latent sentiment."""
INTENSITY_NOISE = {"text": 0.25, "audio": 0.35, "vision": 0.35}
"""Standard deviation of a modality's expressed sentiment around the latent one."""

FPS = 25
SPEECH_START, SPEECH_TAIL = 0.20, 0.30
"""Seconds of silence before and after the speech."""

# espeak voices, each with the pitch setting that gives about 115 to 145 Hz, so that the voice does not mask the cue
VOICES = {"m2": 62, "m3": 58, "m5": 62, "m6": 64, "m7": 58, "f1": 26, "f2": 22, "f3": 18, "f4": 26, "f5": 18}
# Effects of a full sentiment on prosody
RATE_EFFECT = 45
PITCH_EFFECT, RANGE, RANGE_EFFECT = 18, 50, 44
GAIN, GAIN_EFFECT_DB = 0.5, 5.0

SMILE_NOISE, BROW_NOISE = 0.08, 0.35
SKINS = (
    (165, 195, 236),
    (150, 180, 226),
    (140, 168, 212),
    (110, 145, 195),
    (90, 120, 172),
    (70, 92, 138),
    (58, 78, 116),
)
HAIRS = (
    (18, 18, 22),
    (28, 36, 52),
    (36, 58, 92),
    (62, 104, 160),
    (96, 160, 210),
    (40, 62, 150),
    (150, 152, 156),
)
IRISES = ((40, 60, 90), (30, 40, 60), (130, 100, 60), (90, 120, 70), (120, 110, 100))


@dataclass(frozen=True, slots=True)
class Speaker:
    """A speaker: appearance, voice, and habits that are unrelated to sentiment."""

    look: Appearance
    voice: str
    pitch: int
    rate_factor: float
    mouth_curve: float
    liveliness: float


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Plan of one clip.

    Attributes:
        latent: sentiment in [-3, 3], the clip's label.
        shown: expressed sentiment by modality, in [-3, 3].
    """

    video_id: str
    clip_id: str
    split: str
    speaker: Speaker
    latent: float
    shown: dict[str, float]
    sentence: Sentence
    text: str


def split_of_speakers(config: DemoConfig) -> list[str]:
    """Draw the split of each speaker. Every split occurs."""
    counts = {name: max(1, round(share * config.speakers)) for name, share in SPLIT_SHARES.items()}
    counts["train"] = config.speakers - counts["valid"] - counts["test"]
    names = [name for name, count in counts.items() for _ in range(count)]
    order = np.random.default_rng((config.seed, 0)).permutation(config.speakers)
    return [names[i] for i in order]


def plan_speaker(seed: int, index: int) -> Speaker:
    """Draw the speaker with this index."""
    rng = np.random.default_rng((seed, 1, index))

    def choose(options: Sequence[T]) -> T:
        return options[int(rng.integers(len(options)))]

    skin = np.clip(np.array(choose(SKINS)) + rng.normal(0, 5), 30, 245)
    top = rng.uniform(120, 205) + rng.uniform(-30, 30, 3)
    lips = np.clip(skin * [0.68, 0.58, 0.82] + [12, 8, 18], 0, 235)
    voice = choose(tuple(VOICES))
    styles = HAIR_STYLES if voice.startswith("m") else HAIR_STYLES[:3]
    look = Appearance(
        width=rng.uniform(0.93, 1.05),
        jaw=rng.uniform(0.90, 1.05),
        eyes=rng.uniform(0.95, 1.14),
        nose=rng.uniform(0.88, 1.10),
        mouth=rng.uniform(0.94, 1.08),
        brow=rng.uniform(0.75, 1.25),
        skin=tuple(skin),
        hair=choose(HAIRS),
        lips=tuple(lips),
        iris=choose(IRISES),
        shirt=tuple(rng.uniform(40, 190, 3)),
        background=(tuple(top), tuple(top * rng.uniform(0.6, 0.85))),
        hair_style=choose(styles),
        fringe=rng.uniform(0.04, 0.11),
    )
    return Speaker(
        look=look,
        voice=voice,
        pitch=VOICES[voice] + int(rng.integers(-3, 4)),
        rate_factor=float(rng.uniform(0.96, 1.04)),
        mouth_curve=float(rng.normal(0, 0.06)),
        liveliness=float(rng.uniform(0.6, 1.4)),
    )


def incongruent_modality(seed: int, speaker: int, number: int) -> str | None:
    """Return the modality that does not express the sentiment of a speaker's clip with this number, or None."""
    turn = int(np.random.default_rng((seed, 4, speaker)).permutation(INCONGRUENCE_CYCLE)[number % INCONGRUENCE_CYCLE])
    return MODALITIES[turn] if turn < len(MODALITIES) else None


def draw_sentiments(incongruent: str | None, rng: np.random.Generator) -> tuple[float, dict[str, float]]:
    """Draw a latent sentiment, and the sentiment that each modality expresses; `incongruent` does not express it."""
    draw = rng.random()
    if draw < NEUTRAL_SHARE:
        latent = 0.0
    else:
        size = rng.uniform(LABEL_STEP, CLEAR) if draw < NEUTRAL_SHARE + FAINT_SHARE else rng.uniform(CLEAR, LIMIT)
        latent = float(size * rng.choice([-1, 1]))
    shown = {}
    for modality in MODALITIES:
        value = latent
        if modality == incongruent:
            value = -MISLEADING_STRENGTH * latent if rng.random() < MISLEADING_SHARE else 0.0
        shown[modality] = float(np.clip(value + rng.normal(0, INTENSITY_NOISE[modality]), -LIMIT, LIMIT))
    return latent, shown


def plan_clip(config: DemoConfig, index: int, script: Script, splits: Sequence[str]) -> ClipPlan:
    """Plan the clip with this index; `splits` is the result of `split_of_speakers`."""
    rng = np.random.default_rng((config.seed, 2, index))
    number, turn = index % config.speakers, index // config.speakers
    latent, shown = draw_sentiments(incongruent_modality(config.seed, number, turn), rng)
    sentence = compose(script, shown["text"], rng)
    return ClipPlan(
        video_id=f"speaker_{number:03d}",
        clip_id=f"{turn + 1:04d}",
        split=splits[number],
        speaker=plan_speaker(config.seed, number),
        latent=latent,
        shown=shown,
        sentence=sentence,
        text=script.joiner.join(sentence.words),
    )


def draw_prosody(speaker: Speaker, rate: int, shown: float, rng: np.random.Generator) -> Prosody:
    """Draw the voice settings for an expressed sentiment: positive is higher, livelier, faster and louder.

    `rate` is the language's base rate, `Script.rate`.
    """
    x = shown / LIMIT
    return Prosody(
        rate=int((rate + RATE_EFFECT * x + rng.normal(0, 6)) * speaker.rate_factor),
        pitch=int(np.clip(speaker.pitch + PITCH_EFFECT * x + rng.normal(0, 2), 0, 99)),
        pitch_range=int(np.clip(RANGE + RANGE_EFFECT * x + rng.normal(0, 5), 0, 99)),
        gain=float(GAIN * 10 ** ((GAIN_EFFECT_DB * x + rng.normal(0, 1)) / 20)),
        emphasis=1 + 0.5 * abs(x),
    )


def _wander(rng: np.random.Generator, times: np.ndarray, size: float) -> np.ndarray:
    """Draw a slow, smooth random curve [F] of about this amplitude."""
    waves = [np.sin(2 * np.pi * (rng.uniform(0.15, 0.7) * times + rng.random())) * rng.normal() for _ in range(3)]
    curve: np.ndarray = size * np.sum(waves, axis=0) / 2
    return curve


def draw_motion(speaker: Speaker, sentiment: float, speech: Speech, frames: int, rng: np.random.Generator) -> Motion:
    """Draw the random motion of a face that speaks and expresses a sentiment.

    Args:
        speaker: face that moves.
        sentiment: sentiment that the face expresses, in [-LIMIT, LIMIT].
        speech: audio that the jaw follows.
        frames: number of frames at `FPS`, with one value each.
        rng: source of the random values.
    """
    times = np.arange(frames) / FPS
    # Expression: strongest at a random moment, the apex
    apex = rng.uniform(0.3, 0.8) * times[-1]
    envelope = 0.55 + 0.45 * np.exp(-(((times - apex) / (0.35 * times[-1])) ** 2))
    expression = sentiment / LIMIT * envelope
    smile = expression + speaker.mouth_curve + rng.normal(0, SMILE_NOISE) + _wander(rng, times, 0.06)
    brow = 0.5 * expression + rng.normal(0, BROW_NOISE) + _wander(rng, times, 0.10)
    # Jaw: loudness of the speech
    jaw = loudness(speech.samples, speech.sample_rate, times - SPEECH_START)
    jaw = np.clip(jaw / max(float(jaw.max()), 1e-6), 0, 1) ** 0.8 * rng.uniform(0.35, 0.6)
    # Blinks of 0.1 s, 1.5 to 4 s apart
    blink = np.zeros(frames)
    moment = rng.uniform(0.3, 2.0)
    while moment < times[-1]:
        blink = np.maximum(blink, np.exp(-(((times - moment) / 0.06) ** 2)))
        moment += rng.uniform(1.5, 4.0)
    turn = 0.10 * speaker.liveliness
    return Motion(
        smile=np.clip(smile, -1.1, 1.1),
        jaw=jaw,
        brow=np.clip(brow, -1, 1),
        blink=blink,
        yaw=_wander(rng, times, 1.2 * turn) + rng.normal(0, 0.08),
        pitch=_wander(rng, times, 0.6 * turn) + rng.normal(0, 0.03),
        roll=_wander(rng, times, 0.5 * turn) + rng.normal(0, 0.03),
        shift=np.stack([_wander(rng, times, 0.02), _wander(rng, times, 0.012)], axis=1),
    )


def _round_label(value: float) -> str:
    """Round to `LABEL_STEP`."""
    return f"{round(value / LABEL_STEP) * LABEL_STEP + 0.0:.1f}".replace("-0.0", "0.0")


LABEL_COLUMNS = (
    "video_id",
    "clip_id",
    "text",
    "label",
    "label_T",
    "label_A",
    "label_V",
    "annotation",
    "mode",
    "gender",
)


def format_labels(plans: Sequence[ClipPlan], limit: float = LIMIT) -> str:
    """Format `label.csv` with MMSA's columns, sorted by video and clip; labels in [-limit, limit]."""
    scale = limit / LIMIT
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(LABEL_COLUMNS)
    for plan in sorted(plans, key=lambda p: (p.video_id, p.clip_id)):
        label = _round_label(scale * plan.latent)
        shown = [_round_label(scale * plan.shown[m]) for m in MODALITIES]
        polarity = float(label)
        annotation = "Positive" if polarity > 0 else "Negative" if polarity < 0 else "Neutral"
        gender = {"m": "male", "f": "female"}[plan.speaker.voice[0]]
        writer.writerow([plan.video_id, plan.clip_id, plan.text, label, *shown, annotation, plan.split, gender])
    return out.getvalue()
